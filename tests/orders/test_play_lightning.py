"""An order in the real Lightning: as a loader, in a DataModule, broken off inside an epoch, on two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import orderscope as osc

pytestmark = pytest.mark.filterwarnings("ignore:::(?!orderscope)")
ORDER = np.random.default_rng(0).permutation(24).reshape(6, 4)


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def pl(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param)


def module_of(pl: Any) -> Any:
    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.net = torch.nn.Linear(1, 1)
            self.seen: list[int] = []

        def training_step(self, batch, batch_idx):
            self.seen += batch.tolist()
            return (self.net(batch[:, None].float() / 24) - 1).square().mean()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.1)

    return Module()


def trainer_of(pl: Any, folder: Path, *callbacks: Any, **options: Any) -> Any:
    return pl.Trainer(
        default_root_dir=folder, callbacks=list(callbacks), max_epochs=1, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=bool(callbacks), **options,
    )  # fmt: skip


def loader(workers: int, accumulated: int) -> osc.OrderLoader:
    return osc.OrderLoader(torch.arange(24), ORDER, micro_batches=accumulated, num_workers=workers)


@pytest.mark.parametrize(("workers", "accumulated"), [(0, 1), (2, 2)])
def test_resumed_inside_an_epoch_it_plays_the_rest(workers: int, accumulated: int, pl: Any, tmp_path: Path) -> None:
    whole, saved = module_of(pl), pl.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=2)
    trainer_of(pl, tmp_path, saved, accumulate_grad_batches=accumulated).fit(whole, loader(workers, accumulated))
    assert whole.seen == ORDER.ravel().tolist()
    (checkpoint,) = tmp_path.glob("*step=2.ckpt")
    second = module_of(pl)
    trainer_of(pl, tmp_path, accumulate_grad_batches=accumulated).fit(
        second, loader(workers, accumulated), ckpt_path=str(checkpoint), weights_only=False
    )
    assert second.seen == ORDER[2:].ravel().tolist()
    assert torch.equal(second.net.weight, whole.net.weight)


def test_in_a_data_module(pl: Any, tmp_path: Path) -> None:
    class Ordered(pl.LightningDataModule):
        def train_dataloader(self):
            ranks = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
            return osc.OrderLoader(torch.arange(24), ORDER, **ranks)

    module = module_of(pl)
    trainer_of(pl, tmp_path, use_distributed_sampler=False).fit(module, datamodule=Ordered())
    assert module.seen == ORDER.ravel().tolist()


SCRIPT = """
import sys
from pathlib import Path
import numpy as np, torch
import lightning.pytorch as pl
import orderscope as osc
from orders.test_play_lightning import ORDER, module_of

class Ordered(pl.LightningDataModule):
    def train_dataloader(self):
        ranks = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        return osc.OrderLoader(torch.arange(24), ORDER, **ranks)

if __name__ == "__main__":
    out, own = Path(sys.argv[1]), sys.argv[2] == "own"
    module = module_of(pl)
    trainer = pl.Trainer(
        default_root_dir=out, max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        use_distributed_sampler=not own,
    )
    trainer.fit(module, datamodule=Ordered())
    np.save(out / f"rank-{trainer.global_rank}.npy", np.array(module.seen).reshape(6, -1))
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_on_two_ranks_the_sampler_stays(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)]),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run([*command, "own"], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    parts = [np.load(tmp_path / f"rank-{rank}.npy") for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), ORDER)
    # Where the option is forgotten Lightning says so, rather than to train on another order.
    done = subprocess.run([*command, "its"], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert "sampler" in done.stderr
