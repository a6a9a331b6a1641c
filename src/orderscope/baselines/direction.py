"""An optimizer's update as a smooth function of gradient and weights, for expansions.

    theta_{t+1} = theta_t - lr_t Gamma(g, theta_t)

with moments and step counts held at those of a recorded state. Decoupled decay is part of Gamma. The replay itself uses
torch's own arithmetic (`engine.optimizers`); this form is for `torch.func`, which writes in place do not suit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orderscope.task.layout import ParameterLayout
from orderscope.training.state import TrainingState

Hyper = Mapping[str, float]


def adam_direction(
    h: Hyper,
    g: Tensor,
    theta: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    count: float,
) -> Tensor:
    """Gamma of torch.optim.Adam and AdamW, elementwise.

    Where the second moment is zero its root has no derivative; none is taken there.

    Args:
        h: hyper-parameters of the step.
        g: gradient, already clipped.
        exp_avg, exp_avg_sq, max_exp_avg_sq: moments before the step; the last with amsgrad only.
        count: number of the step, from 1.

    Example:
        >>> h = {"beta1": 0.9, "beta2": 0.99, "eps": 0.0, "weight_decay": 0.0, "decoupled": 0.0}
        >>> zero = torch.zeros(2)
        >>> adam_direction(h, torch.tensor([3.0, -0.1]), zero, zero, zero, None, 1).round(decimals=3)  # the sign
        tensor([ 1., -1.])
    """
    g = -g if h.get("maximize") else g
    decay = h["weight_decay"]
    if decay and not h["decoupled"]:
        g = g + decay * theta
    first = h["beta1"] * exp_avg + (1 - h["beta1"]) * g
    second = h["beta2"] * exp_avg_sq + (1 - h["beta2"]) * g * g
    if h.get("amsgrad") and max_exp_avg_sq is not None:
        second = torch.maximum(second, max_exp_avg_sq)
    seen = second > 0
    root = torch.where(seen, second, torch.ones_like(second)).sqrt() * seen
    gamma = (first / (1 - h["beta1"] ** count)) / (root / (1 - h["beta2"] ** count) ** 0.5 + h["eps"])
    return gamma + decay * theta if decay and h["decoupled"] else gamma


def sgd_direction(h: Hyper, g: Tensor, theta: Tensor, momentum_buffer: Tensor | None, first: bool) -> Tensor:
    """Gamma of torch.optim.SGD, elementwise. `first`: there is no momentum yet, so the buffer becomes the gradient."""
    g = -g if h.get("maximize") else g
    g = g + h["weight_decay"] * theta if h["weight_decay"] else g
    momentum = h["momentum"]
    if not momentum:
        return g
    buffer = g if first or momentum_buffer is None else momentum * momentum_buffer + (1 - h["dampening"]) * g
    return g + momentum * buffer if h["nesterov"] else buffer


@dataclass(frozen=True)
class Run:
    """Neighbouring coordinates with the same hyper-parameters and step count."""

    coords: slice
    group: int
    count: float
    present: bool


@dataclass(frozen=True)
class Direction:
    """Gamma at one recorded state, for all P coordinates.

    Args:
        optimizer: "Adam", "AdamW" or "SGD".
        hyper: hyper-parameters of the step, one mapping per parameter group.
        state: weights, moments and counts before the step.
        runs: how groups and counts map to coordinates.
    """

    optimizer: str
    hyper: tuple[dict[str, float], ...]
    state: TrainingState
    runs: tuple[Run, ...]

    def __call__(self, g: Tensor, theta: Tensor) -> Tensor:
        """Gradient and weights [..., P] -> Gamma [..., P]."""
        return torch.cat([self._run(run, g[..., run.coords], theta[..., run.coords]) for run in self.runs], dim=-1)

    def _run(self, run: Run, g: Tensor, theta: Tensor) -> Tensor:
        h, moments = self.hyper[run.group], self.state.moments
        if self.optimizer == "SGD":
            buffer = moments.get("momentum_buffer")
            return sgd_direction(h, g, theta, None if buffer is None else buffer[run.coords], not run.present)
        parts = [moments[key][run.coords] if key in moments else None for key in ADAM_MOMENTS]
        zero = torch.zeros_like(self.state.theta[run.coords])
        first, second = (zero if part is None else part for part in parts[:2])
        return adam_direction(h, g, theta, first, second, parts[2], run.count + 1)


ADAM_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def direction_at(
    layout: ParameterLayout, optimizer: str, hyper: Mapping[str, np.ndarray], step: int, state: TrainingState
) -> Direction:
    """Gamma at `state`, the state before `step`; `hyper` holds float64 [steps, param_groups]."""
    groups = range(len(next(iter(hyper.values()))[step]))
    own = tuple({name: float(values[step, g]) for name, values in hyper.items()} for g in groups)
    return Direction(optimizer, own, state, _runs(layout, state.count.tolist(), state.present.tolist()))


def _runs(layout: ParameterLayout, counts: Sequence[float], present: Sequence[bool]) -> tuple[Run, ...]:
    runs: list[Run] = []
    for i, size in enumerate(layout.sizes):
        start = layout.offsets[i]
        new = Run(slice(start, start + size), layout.group[i], float(counts[i]), bool(present[i]))
        last = runs[-1] if runs else None
        if last and (last.group, last.count, last.present) == (new.group, new.count, new.present):
            runs[-1] = Run(slice(last.coords.start, start + size), last.group, last.count, last.present)
        else:
            runs.append(new)
    return tuple(runs)
