"""Do intervals hold? A family of tiny random tasks, each recorded with the defaults and asked for unseen orders.

    python benchmarks/family.py [--seeds 0 20] [--orders 40] [--keep FOLDER]

Task `tiny(seed)` is a classifier or a regression of 100 to 2,000 weights, by AdamW, Adam, SGD or SGD with momentum, at
a rate that is anything from slow to far too fast to be predictable, over 12 to 60 steps; with and without groups, in
batches of one group each or of several; from scratch or warm. The orders are those of `fidelity.unseen_orders`. Prints
a table in Markdown, one row a task; *held* is the share of true values in their intervals, of trusted orders and of
all; half-widths are of trusted orders, of all where none is.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fidelity import compare, unseen_orders
from torch import nn
from torch.utils.data import Dataset

import orderscope as osc
from orderscope.recording.costs import cpu_seconds, training_seconds

HEAD = ("seed", "task", "Spearman", "mae_ratio", "held, trusted", "held, all", "trusted", "half-width / std", "cost")
ORDER_SEED = 404


class Rows(Dataset):
    """Inputs and targets."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[i], self.y[i]


def cross_entropy(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def squared_error(model: nn.Module, batch: Any) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().mean(1)


@dataclass(frozen=True)
class _Source:
    """Where samples come from. Each group has its own cloud of inputs, and a target of its own to some extent."""

    centers: torch.Tensor
    teachers: torch.Tensor
    classes: bool
    noise: float

    def __call__(self, groups: np.ndarray, generator: torch.Generator) -> Rows:
        """Samples of these groups."""
        at = torch.from_numpy(groups)
        x = self.centers[at] + torch.randn(len(at), self.centers.shape[1], generator=generator)
        y = torch.tanh(torch.einsum("nd,ndk->nk", x, self.teachers[at]))
        y = y + self.noise * torch.randn(y.shape, generator=generator)
        return Rows(x, y.argmax(1) if self.classes else y)


def tiny(seed: int) -> dict[str, Any]:
    """Keyword arguments of the Task of a seed; `title` describes it, and is none of them."""
    rng, generator = np.random.default_rng([seed, 1]), torch.Generator().manual_seed(seed)
    classes, deep = bool(rng.random() < 0.6), bool(rng.random() < 0.3)
    inputs, outputs = int(rng.integers(4, 13)), int(rng.integers(2, 7)) if classes else int(rng.integers(1, 4))
    wanted = math.exp(rng.uniform(math.log(100), math.log(2000)))
    width = _width(wanted, inputs, outputs, deep)
    steps, batch = int(rng.integers(12, 61)), int(rng.choice([4, 8, 16]))
    groups, mixed = int(rng.choice([1, 2, 3, 4])), bool(rng.random() < 0.35)
    kind = ("adamw", "adam", "sgd", "momentum")[int(rng.integers(4))]
    least, most = {"adamw": (1e-3, 0.1), "adam": (1e-3, 0.1), "sgd": (0.01, 1.0), "momentum": (0.003, 0.3)}[kind]
    lr = math.exp(rng.uniform(math.log(least), math.log(most)))
    activation = (nn.Tanh, nn.ReLU, nn.GELU)[int(rng.integers(3))]
    decays, warm = bool(rng.random() < 0.5), bool(rng.random() < 0.5)

    common = torch.randn(1, inputs, outputs, generator=generator)
    own = torch.randn(groups, inputs, outputs, generator=generator)
    source = _Source(
        float(rng.uniform(0, 1.5)) * torch.randn(groups, inputs, generator=generator),
        (common + float(rng.uniform(0, 1.5)) * own) / inputs**0.5,
        classes,
        float(rng.uniform(0.05, 0.8)),
    )
    each = rng.integers(groups, size=(steps, batch if mixed else 1)).repeat(1 if mixed else batch, axis=1)
    labels = each.reshape(-1)
    data = source(labels, generator)
    held_out = source(np.arange(int(rng.integers(60, 241))) % groups, generator)
    loss = cross_entropy if classes else squared_error

    def fresh() -> nn.Module:
        middle = [nn.Linear(width, width), activation()] if deep else []
        return nn.Sequential(nn.Linear(inputs, width), activation(), *middle, nn.Linear(width, outputs))

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        if kind == "adamw":
            return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
        if kind == "adam":
            return torch.optim.Adam(parameters, lr=lr)
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9 if kind == "momentum" else 0.0)

    def cosine(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.1 + 0.45 * (1 + math.cos(math.pi * t / steps)))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = fresh()
    before = copy.deepcopy(start)
    state = _warmed(start, optimizer, source, groups, loss, generator) if warm else None
    if not all(p.isfinite().all() for p in start.parameters()):  # its own rate is too fast to warm up with
        start, state, warm = before, None, False
    weights = start.state_dict()

    def model() -> nn.Module:
        made = fresh()
        made.load_state_dict(weights)
        return made

    count = sum(p.numel() for p in start.parameters())
    title = f"{'classes' if classes else 'regression'}, {count} weights, {kind} {lr:.2g}, {steps} steps of {batch}"
    title += ", no groups" if groups == 1 else f", {groups} groups{', mixed' if mixed else ''}"
    return {
        "title": title + (", warm" if warm else ""),
        "model": model,
        "loss": loss,
        "data": data,
        "optimizer": optimizer,
        "scheduler": cosine if decays else None,
        "metrics": {"eval": held_out},
        "order": np.arange(steps * batch).reshape(steps, batch)[rng.permutation(steps)],
        "groups": None if groups == 1 else [f"g{g}" for g in labels],
        "optimizer_state": state,
    }


def _width(wanted: float, inputs: int, outputs: int, deep: bool) -> int:
    """The hidden width with which a model has about so many weights."""
    square, linear = (1 if deep else 0), inputs + outputs + 1 + deep
    found = (math.sqrt(linear**2 + 4 * square * wanted) - linear) / 2 if deep else wanted / linear
    return max(3, round(found))


def _warmed(
    model: nn.Module, optimizer: Any, source: _Source, groups: int, loss: Any, generator: torch.Generator
) -> dict[str, Any]:
    """Train a little, on other samples of all groups, at the window's own rate; the optimizer's state."""
    made = optimizer(model.parameters())
    for _ in range(40):
        batch = source(torch.randint(groups, (16,), generator=generator).numpy(), generator)
        made.zero_grad()
        loss(model, (batch.x, batch.y)).mean().backward()
        made.step()
    return made.state_dict()


@dataclass(frozen=True)
class Asked:
    """A recorded task and its orders.

    Args:
        title: what the task is.
        sim: its simulator.
        orders, true: unseen orders [n, steps, batch] and their true losses [n].
        cost: CPU time of recording over that of training once; not a number where that was too short to be measured.
    """

    title: str
    sim: osc.Simulator
    orders: np.ndarray
    true: np.ndarray
    cost: float


def asked(seed: int, count: int, folder: Path) -> Asked:
    """Record the task of a seed in `folder` and train `count` orders, or use what lies there."""
    keywords = tiny(seed)
    title = keywords.pop("title")
    task, kept = osc.Task(**keywords), folder / f"{seed}.npz"
    run = folder / str(seed)
    if not kept.exists():
        began = cpu_seconds()
        store = osc.record(task, run, seed=seed)
        cost = (cpu_seconds() - began) / (training_seconds(store) or math.nan)
        orders = unseen_orders(task, count, ORDER_SEED)
        np.savez(kept, orders=orders, true=osc.retrain(task, orders).metrics["eval"], cost=cost)
    with np.load(kept) as found:
        return Asked(title, osc.Simulator(run, task), found["orders"], found["true"], float(found["cost"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs=2, default=[0, 20], help="the first, and the one after the last")
    parser.add_argument("--orders", type=int, default=40)
    parser.add_argument("--keep", type=Path, help="where recorded runs and true losses are kept and used again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| " + " | ".join(HEAD) + " |\n|" + " --- |" * len(HEAD))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        kept = options.keep or Path(folder)
        kept.mkdir(parents=True, exist_ok=True)
        for seed in range(*options.seeds):
            try:
                case = asked(seed, options.orders, kept)
            except osc.OrderscopeError as error:  # the reference order itself diverges
                print(f"| {seed} | refused: {error.found.split(' (')[0]} |" + " |" * (len(HEAD) - 2), flush=True)
                continue
            told = case.sim.predict(case.orders)
            value, error, sound = told.metrics["eval"], told.error["eval"], np.isfinite(case.true)
            held = np.abs(value - case.true) <= error
            sure = told.trusted & sound
            width = (error[sure] if sure.any() else error).mean() / case.true[sound].std()
            found = compare(value[sound], error[sound], case.true[sound])
            rows.append((held[sure], held[sound], told.trusted))
            cells = [seed, case.title, f"{found['spearman']:.2f}", f"{found['mae_ratio']:.2f}", _share(held[sure]),
                     f"{held[sound].mean():.2f}", f"{told.trusted.mean():.2f}", f"{width:.2g}",
                     f"{case.cost:.0f}"]  # fmt: skip
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    trusted, every, share = (np.concatenate(part) for part in zip(*rows, strict=True))
    least = min((part.mean() for part, _, _ in rows if len(part)), default=math.nan)
    print(f"\nheld, trusted {_share(trusted)}, least of a task {least:.2f}; all {every.mean():.2f}; "
          f"trusted {share.mean():.2f}")  # fmt: skip


def _share(held: np.ndarray) -> str:
    return f"{held.mean():.2f}" if len(held) else ""


if __name__ == "__main__":
    main()
