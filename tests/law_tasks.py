"""Tiny tasks on which laws are exact, and ways to change a task, all as keyword arguments of `orderscope.Task`.

quadratic   least squares with small whole numbers as inputs: gradients are affine in the weights, and the sampled
            curvature of a batch is its Hessian exactly, also when stored in 8 bits of mantissa
logistic    softmax regression: not quadratic, but its Gauss-Newton matrix is its Hessian
branching   a model that leaves out a head for batches which do not need it: gradients that are missing in some steps
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import orderscope as osc
from orderscope.engine import raw
from orderscope.recording import record as recording
from tasks_tiny import Rows, cross_entropy, generator, sgd


def double(kw: dict[str, Any]) -> dict[str, Any]:
    """The task in float64, where rounding is out of the way; starting moments and metrics that are functions go."""

    def rows(data: Rows) -> Rows:
        return Rows(*(c.double() if c.is_floating_point() else c for c in data.columns))

    build = kw["model"]
    metrics = {name: rows(m) for name, m in kw["metrics"].items() if isinstance(m, Rows)}
    return kw | {
        "model": lambda: build().double(),
        "data": rows(kw["data"]),
        "metrics": metrics,
        "optimizer_state": None,
    }


def one_group_a_batch(kw: dict[str, Any]) -> dict[str, Any]:
    """Every recorded batch its own group, so that a group's curvature is that batch's."""
    labels = np.empty(len(kw["data"]), dtype=object)
    for step, ids in enumerate(kw["order"]):
        labels[ids] = f"{step:03d}"
    return kw | {"groups": labels.tolist()}


def half_squared_error(model, batch):
    x, y = batch
    return (model(x).squeeze(-1) - y) ** 2 / 2


def quadratic(steps: int = 6, batch: int = 4, width: int = 3, **options: Any) -> dict[str, Any]:
    """`options` go to SGD."""
    g = generator(10)
    x = torch.randint(-2, 3, (steps * batch, width), generator=g).double()
    y = torch.randn(len(x), generator=g, dtype=torch.float64)
    held = torch.randint(-2, 3, (8, width), generator=g).double(), torch.randn(8, generator=g, dtype=torch.float64)
    start = torch.randn(width + 1, generator=g, dtype=torch.float64)

    def build():
        model = nn.Linear(width, 1, dtype=torch.float64)
        with torch.no_grad():
            model.weight.copy_(start[None, :width])
            model.bias.copy_(start[width:])
        return model

    order = torch.randperm(len(x), generator=g).view(steps, batch).numpy()
    return one_group_a_batch({
        "model": build,
        "loss": half_squared_error,
        "data": Rows(x, y),
        "optimizer": lambda params: sgd(params, **({"lr": 0.05} | options)),
        "metrics": {"eval": Rows(*held)},
        "order": order,
    })  # fmt: skip


def logistic(lr: float = 0.1, steps: int = 6, batch: int = 4, classes: int = 3) -> dict[str, Any]:
    g = generator(11)

    def rows(n):
        return torch.randn(n, 2, generator=g, dtype=torch.float64), torch.randint(0, classes, (n,), generator=g)

    train, held = rows(steps * batch), rows(12)
    start = torch.randn(classes, 2, generator=g, dtype=torch.float64)

    def build():
        model = nn.Linear(2, classes, bias=False, dtype=torch.float64)
        with torch.no_grad():
            model.weight.copy_(start)
        return model

    order = torch.randperm(steps * batch, generator=g).view(steps, batch).numpy()
    return one_group_a_batch({
        "model": build,
        "loss": cross_entropy,
        "data": Rows(*train),
        "optimizer": lambda params: sgd(params, lr=lr),
        "metrics": {"eval": Rows(*held)},
        "order": order,
    })  # fmt: skip


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.plain, self.extra = nn.Linear(2, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x, flag):
        hidden = torch.tanh(self.body(x))
        z = self.plain(hidden)
        if bool(flag.any()):
            z = z + flag[:, None] * self.extra(hidden)
        return z


def branching(steps: int = 8, batch: int = 3) -> dict[str, Any]:
    """`extra` gets a gradient in every other batch only."""
    g = generator(12)
    n = steps * batch
    x, y = torch.randn(n, 2, generator=g), torch.randint(0, 3, (n,), generator=g)
    flag = (torch.arange(n) // batch % 2).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(13)
        weights = Branching().state_dict()

    def build():
        model = Branching()
        model.load_state_dict(weights)
        return model

    def loss(model, rows):
        x, flag, y = rows
        return F.cross_entropy(model(x, flag), y, reduction="none")

    order = np.arange(n).reshape(steps, batch)[torch.randperm(steps, generator=g).numpy()]
    return {
        "model": build,
        "loss": loss,
        "data": Rows(x, flag, y),
        "optimizer": lambda params: torch.optim.AdamW(params, lr=3e-3, betas=(0.9, 0.95)),
        "metrics": {"eval": Rows(x[:8], flag[:8], y[:8])},
        "order": order,
    }


def simulated(
    kw: dict[str, Any], path, *, energy: float | None = None, **options: Any
) -> tuple[osc.Simulator, osc.Task]:
    """Record, sketch and open; `energy` of the curvature is kept instead of the usual share."""
    task = osc.Task(**kw)
    with nullcontext() if energy is None else patch.multiple(raw, ENERGY=energy, HIGH_ENERGY=energy):
        osc.record(task, path / "run", **options)
    return osc.Simulator(path / "run", task), task


@contextmanager
def untabled() -> Iterator[None]:
    """What is recorded here is left as it is before its table is built: all that was sketched is still there."""
    with patch.object(recording, "build_table"):
        yield


def permuted_steps(order: np.ndarray, seed: int, count: int = 1) -> np.ndarray:
    """Orders with the recorded batches in random places, [count, steps, batch]."""
    rng = np.random.default_rng(seed)
    return np.stack([order[rng.permutation(len(order))] for _ in range(count)])


def slope(sizes, errors) -> float:
    """Slope of log error against log size."""
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])
