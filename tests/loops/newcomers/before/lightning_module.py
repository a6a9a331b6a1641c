"""A regression in Lightning, clipped."""

import sys

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x):
        return self.net(x).squeeze(-1)

    def training_step(self, batch, index):
        x, y = batch
        return F.mse_loss(self(x), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    return TensorDataset(x, x.sin().sum(1) + 0.1 * torch.randn(count, generator=generator))


def fit(out, loader, callbacks):
    module = Module()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=out, callbacks=callbacks,
    )  # fmt: skip
    trainer.fit(module, loader)
    return module


def main(out):
    torch.manual_seed(0)
    loader = DataLoader(rows(64, 0), batch_size=8, shuffle=True)
    fit(out, loader, [])


if __name__ == "__main__":
    main(sys.argv[1])
