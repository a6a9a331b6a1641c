"""The recorder as a callback of the real Lightning, in both distributions, on a tiny module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import orderscope as osc
from orderscope.training import load_run
from tasks_tiny import Rows

pytestmark = [pytest.mark.filterwarnings("ignore:::(?!orderscope)"), pytest.mark.filterwarnings("default::UserWarning")]
ROWS = 24


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def pl(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param)


def data(count: int = ROWS) -> Rows:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=g)
    return Rows(torch.cat([torch.arange(count)[:, None].float(), x], 1), (x.sum(1) > 0).long())


def module_of(pl: Any, optimizer: Any = torch.optim.AdamW) -> Any:
    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
            self.steps: list[list[int]] = []
            self.now: list[int] = []

        def training_step(self, batch, batch_idx):
            rows, labels = batch
            self.now += rows[:, 0].long().tolist()
            loss = F.cross_entropy(self.net(rows[:, 1:]), labels)
            self.log("loss", loss)
            return loss

        def on_train_batch_end(self, outputs, batch, batch_idx):
            if self.trainer.global_step > len(self.steps):
                self.steps.append(self.now)
                self.now = []

        def configure_optimizers(self):
            made = optimizer(self.parameters(), lr=0.02)
            return [made], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(made, 0.9), "interval": "step"}]

    return Module()


def loader(count: int = ROWS, workers: int = 0, batch: int = 4) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    return DataLoader(data(count), batch, shuffle=True, generator=generator, num_workers=workers)


def trainer_of(pl: Any, folder: Path, callbacks: list[Any], **options: Any) -> Any:
    defaults = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
                "enable_model_summary": False, "enable_checkpointing": False}  # fmt: skip
    return pl.Trainer(default_root_dir=folder, callbacks=callbacks, **(defaults | options))


def vector(module: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach()


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "clipped": {"gradient_clip_val": 0.1},
    "bf16": {"precision": "bf16-mixed"},
}


def loss(module: Any, batch: Any) -> torch.Tensor:
    rows, labels = batch
    return F.cross_entropy(module.net(rows[:, 1:]), labels, reduction="none")


@pytest.mark.parametrize("name", CASES)
def test_ids_are_those_trained_no_bit_changes_and_the_task_is_that_run(name: str, pl: Any, tmp_path: Path) -> None:
    bare = module_of(pl)
    trainer_of(pl, tmp_path, [], **CASES[name]).fit(bare, loader())
    module = module_of(pl)
    rec = osc.LightningRecorder(tmp_path / "run", anchors=3)
    trainer_of(pl, tmp_path, [rec], **CASES[name]).fit(module, osc.with_ids(loader()))
    assert torch.equal(vector(bare), vector(module))
    assert rec.order.tolist() == bare.steps
    assert rec.recorder.problems == []
    assert "training_step" not in vars(module)

    task = rec.task(
        model=lambda: module_of(pl), loss=loss, data=data(), max_grad_norm=0.1 if name == "clipped" else None
    )
    osc.record(task, tmp_path / "run", probes=0, sketch=False)
    final = load_run(osc.RunStore.open(tmp_path / "run"), "reference").theta()[-1]
    moved = (final - vector(module_of(pl))).norm()
    assert (final - vector(module)).norm() <= (0.05 if name == "bf16" else 1e-4) * moved


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_resumed_from_a_checkpoint(kind: Any, pl: Any, tmp_path: Path) -> None:
    whole = module_of(pl, kind)
    trainer_of(pl, tmp_path, []).fit(whole, loader())
    saved = pl.callbacks.ModelCheckpoint(tmp_path / "saved", save_top_k=-1, every_n_epochs=1)
    first = module_of(pl, kind)
    rec = osc.LightningRecorder(tmp_path / "run")
    once = loader()
    trainer_of(pl, tmp_path, [rec, saved], enable_checkpointing=True, max_epochs=1).fit(first, osc.with_ids(once))
    second = module_of(pl, kind)
    rec = osc.LightningRecorder(tmp_path / "run")
    trainer_of(pl, tmp_path, [rec]).fit(second, osc.with_ids(once), ckpt_path=saved.best_model_path)
    assert rec.order.tolist() == whole.steps
    assert torch.equal(vector(second), vector(whole))


def test_a_short_last_batch(pl: Any, tmp_path: Path) -> None:
    module = module_of(pl)
    rec = osc.LightningRecorder(tmp_path / "run")
    with pytest.warns(UserWarning, match=r"steps of 2 to 4 samples"):
        trainer_of(pl, tmp_path, [rec]).fit(module, osc.with_ids(loader(22)))
    assert [ids.tolist() for ids in rec.batches] == module.steps


@pytest.mark.parametrize("accumulated", [1, 2])
def test_an_order_is_played(accumulated: int, pl: Any, tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(ROWS).reshape(6, 4)
    sampler = osc.OrderSampler(order, micro_batches=accumulated)
    module = module_of(pl)
    rec = osc.LightningRecorder(tmp_path / "run")
    trainer = trainer_of(pl, tmp_path, [rec], accumulate_grad_batches=accumulated, max_epochs=1)
    trainer.fit(module, osc.with_ids(DataLoader(data(), batch_sampler=sampler, num_workers=accumulated - 1)))
    assert module.steps == order.tolist() == rec.order.tolist()


def test_several_optimizers_are_refused(pl: Any, tmp_path: Path) -> None:
    class Two(type(module_of(pl))):
        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters()), torch.optim.SGD(self.parameters())]

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(osc.OrderscopeError, match="found 2 optimizers; expected one optimizer"):
        trainer_of(pl, tmp_path, [osc.LightningRecorder(tmp_path / "run")]).fit(Two(), osc.with_ids(loader()))
