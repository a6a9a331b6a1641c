#!/usr/bin/env python3
"""Lightning: a callback, and a loader whose batches carry ids.

python examples/loops/lightning_module.py out
"""

from __future__ import annotations

import sys

import lightning.pytorch as pl
import torch
from domains import passages
from plain import Guess, asked
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import orderscope as osc


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.guess = Guess()

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return loss(self, batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def loss(module: Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(module.guess(batch["input_ids"]), batch["labels"], reduction="none")


def main(out: str, samples: int = 256) -> dict[str, float]:
    torch.manual_seed(0)
    data, module = passages(samples), Module()
    rec = osc.LightningRecorder(f"{out}/run")
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[rec], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=out,
    )  # fmt: skip
    trainer.fit(module, osc.with_ids(DataLoader(data, 8, shuffle=True)))

    start = Module  # its weights are set to the recorded ones
    task = rec.task(model=start, loss=loss, data=data, metrics={"eval": passages(96, seed=1)})
    osc.record(task, f"{out}/run")
    return asked(f"{out}/run", task)


if __name__ == "__main__":
    main(*sys.argv[1:2])
