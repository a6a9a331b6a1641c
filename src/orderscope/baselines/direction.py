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
from orderscope_kernels.optimizers import KINDS


@dataclass(frozen=True)
class Run:
    """Neighbouring coordinates with the same hyper-parameters and step count.

    Args:
        coords: place of the coordinates in the layout.
        group: index of their parameter group.
        count: steps that the optimizer has taken on them.
        present: whether the optimizer has a state for them.
    """

    coords: slice
    group: int
    count: float
    present: bool


@dataclass(frozen=True)
class Direction:
    """Gamma at one recorded state, for all P coordinates.

    Args:
        optimizer: its name in torch.optim.
        hyper: hyper-parameters of the step, one mapping per parameter group.
        state: weights, moments and counts before the step.
        runs: how groups and counts map to coordinates.
    """

    optimizer: str
    hyper: tuple[dict[str, float], ...]
    state: TrainingState
    runs: tuple[Run, ...]

    def __call__(self, g: Tensor, theta: Tensor) -> Tensor:
        """Gamma, the change of the weights over minus the learning rate, [..., P].

        Args:
            g: gradient, [..., P].
            theta: weights, [..., P].
        """
        return torch.cat([self._run(run, g[..., run.coords], theta[..., run.coords]) for run in self.runs], dim=-1)

    def _run(self, run: Run, g: Tensor, theta: Tensor) -> Tensor:
        h, moments = self.hyper[run.group], self.state.moments
        kind = KINDS[self.optimizer]
        own = {key.name: key.start(self.state.theta[run.coords]) for key in kind.keys if key.option is None}
        own |= {key.name: moments[key.name][run.coords] for key in kind.keys if key.name in moments}
        return kind.direction(h, g, theta, own, count=run.count + 1, first=not run.present)


def direction_at(
    layout: ParameterLayout, optimizer: str, hyper: Mapping[str, np.ndarray], step: int, state: TrainingState
) -> Direction:
    """Gamma at `state`, the state before `step`; `hyper` holds float64 [steps, param_groups].

    Args:
        layout: which entry of [P] belongs to which weight.
        optimizer: its name in torch.optim.
        hyper: hyper-parameter -> float64 [steps, param_groups].
        step: which step of the window, from 0.
        state: weights, moments and counts before that step.
    """
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
