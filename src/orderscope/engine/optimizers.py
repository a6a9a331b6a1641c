"""The optimizer's own step on the replayed states. Only the gradient is predicted, never the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orderscope_kernels.optimizers import KINDS, Kind
from orderscope_kernels.reference import Part, clip_factor, optimizer_step
from orderscope_kernels.shapes import Bool, Float, Float64, Int64


@dataclass(frozen=True)
class Slice:
    """A range of carried coordinates with the same parameter group and step count.

    Args:
        coords: their range in [0, m).
        group: parameter group.
        parameter: index of the parameter they belong to (the first of several where none ever lacks a gradient).
        count: optimizer steps already taken at the start of the dynamics.
        present: whether there is optimizer state at the start.
    """

    coords: slice
    group: int
    parameter: int
    count: float
    present: bool


@dataclass(frozen=True)
class Start:
    """Where the window starts.

    Args:
        theta: weights on the carried coordinates, [m].
        moments: the optimizer's moments by key, [m] each.
    """

    theta: Float[Tensor, " coords"]
    moments: dict[str, Float[Tensor, " coords"]]


@dataclass(frozen=True)
class Dynamics:
    """The recorded optimizer: its kind, hyper-parameters at every step, and start state.

    Args:
        optimizer: its name in torch.optim, one of `orderscope_kernels.optimizers.KINDS`.
        hyper: hyper-parameter -> float64 [steps, param_groups].
        start: state before the first step.
        slices: how hyper-parameters and step counts map to coordinates.
        parameters: number of parameters.
        masked: whether some parameter lacks a gradient in some step.
        max_grad_norm: clipping, or None.
        weight: P / m, what a carried coordinate stands for in a norm.
    """

    optimizer: str
    hyper: dict[str, Float64[np.ndarray, "steps groups"]]
    start: Start
    slices: tuple[Slice, ...]
    parameters: int
    masked: bool
    max_grad_norm: float | None
    weight: float

    @property
    def steps(self) -> int:
        return len(self.hyper["lr"])

    @property
    def kind(self) -> Kind:
        """What the optimizer is."""
        return KINDS[self.optimizer]

    def options(self, position: int, group: int) -> dict[str, float]:
        """Options of the optimizer's step, name -> number.

        Args:
            position: index of the step in the window, from 0.
            group: index of the parameter group.
        """
        return {name: float(values[position, group]) for name, values in self.hyper.items()}


@dataclass
class States:
    """Optimizer states of many replays.

    Args:
        theta: [rows, m].
        moments: by key, [rows, m].
        taken: optimizer steps a parameter has taken inside the window, [rows, n_params]; None where every parameter
            takes every step.
    """

    theta: Float[Tensor, "rows coords"]
    moments: dict[str, Float[Tensor, "rows coords"]]
    taken: Float[Tensor, "rows params"] | None


def start_states(dynamics: Dynamics, rows: int) -> States:
    """Optimizer states of some replays, all at the window's start.

    Args:
        dynamics: the recorded optimizer.
        rows: number of replays.
    """
    moments = {}
    for key in dynamics.kind.keys:
        if key.option is None or dynamics.hyper[key.option].any():
            given = dynamics.start.moments.get(key.name)
            moments[key.name] = (key.start(dynamics.start.theta) if given is None else given).repeat(rows, 1)
    taken = torch.zeros(rows, dynamics.parameters, device=dynamics.start.theta.device) if dynamics.masked else None
    return States(dynamics.start.theta.repeat(rows, 1), moments, taken)


def clip(
    dynamics: Dynamics, gradient: Float[Tensor, "rows coords"], norm: Float[Tensor, " rows"] | None = None
) -> Float[Tensor, "rows coords"]:
    """As torch.nn.utils.clip_grad_norm_: [rows, m]. `norm` [rows] is estimated from the coordinates if not given.

    Args:
        dynamics: the optimizer, its hyper-parameters at every step and the start.
        gradient: mean gradients, [rows, m].
        norm: of the whole gradients, [rows]; estimated from the coordinates if not given.
    """
    if not dynamics.max_grad_norm:
        return gradient
    size = gradient.norm(dim=1) * dynamics.weight**0.5 if norm is None else norm
    return gradient * clip_factor(size, dynamics.max_grad_norm).unsqueeze(1)


def step(
    dynamics: Dynamics,
    states: States,
    gradient: Float[Tensor, "rows coords"],
    position: int,
    lr: Float[Tensor, "rows groups"] | None,
    active: Bool[Tensor, "rows params"] | None,
) -> None:
    """Take the step at `position` with a given gradient, in place.

    Args:
        dynamics: the optimizer and its hyper-parameters at every step.
        states: the states that step; changed.
        gradient: mean gradient, already clipped, [rows, m].
        position: which step of the window, from 0.
        lr: learning rates instead of the recorded ones, [rows, groups].
        active: parameters with a gradient, bool [rows, n_params]; None where all have one.
    """
    every = torch.arange(len(gradient), device=gradient.device)
    parts = step_parts(dynamics, states, every, position, lr, active)
    optimizer_step(dynamics.optimizer, states.theta, states.moments, every, gradient, parts)


def step_parts(
    dynamics: Dynamics,
    states: States,
    at: Int64[Tensor, " rows"],
    position: int,
    lr: Float[Tensor, "rows groups"] | None,
    active: Bool[Tensor, "rows params"] | None,
) -> list[Part]:
    """What steps alike at `position`; the steps that parameters have taken are counted on.

    Args:
        dynamics: the optimizer and its hyper-parameters at every step.
        states: whose steps are counted; changed in `taken`.
        at: which states take the step, int64 [rows].
        position: which step of the window, from 0.
        lr: learning rates instead of the recorded ones, [rows, groups].
        active: parameters with a gradient, bool [rows, n_params], where some have none.
    """
    parts = []
    for part in dynamics.slices:
        h = dynamics.options(position, part.group)
        rate: float | Tensor = h["lr"] if lr is None else lr[:, part.group, None]
        if active is None or states.taken is None:
            parts.append(_part(dynamics, part, h, rate, position, None))
            continue
        moving = active[:, part.parameter]
        done = states.taken[at, part.parameter]
        for taken in done[moving].unique().tolist():  # a plain number each, for the bits of torch's bias correction
            rows = (moving & (done == taken)).nonzero()[:, 0]
            parts.append(_part(dynamics, part, h, rate, taken, rows))
        states.taken[at[moving], part.parameter] += 1
    return parts


def _part(
    dynamics: Dynamics, part: Slice, h: dict[str, float], lr: float | Tensor, taken: float, among: Tensor | None
) -> Part:
    """A slice's options; `taken` steps inside the window came before."""
    options: dict[str, Any] = {"lr": lr} | {name: h[name] for name in dynamics.kind.options}
    if dynamics.kind.counts:
        options["count"] = part.count + taken + 1
    else:
        options["first"] = taken == 0 and not part.present
    return Part(part.coords.start, part.coords.stop, options, among)


def slices(
    parameters: Sequence[dict[str, Any]],
    indices: Int64[Tensor, " coords"] | None,
    count: Float[Tensor, " params"],
    present: Bool[Tensor, " params"],
    single: bool,
) -> tuple[Slice, ...]:
    """One slice a parameter, or, where every parameter always gets a gradient, one a run of like parameters.

    Args:
        parameters: descriptions with `shape` and `group`, in layout order.
        indices: carried coordinates, ascending; all if None.
        count: steps already taken, [n_params].
        present: whether there is optimizer state, bool [n_params].
        single: keep parameters apart, for some lack a gradient in some step.
    """
    edges = np.cumsum([0, *(int(np.prod(p["shape"])) for p in parameters)])
    cuts = edges if indices is None else np.searchsorted(indices.numpy(), edges)
    slices: list[Slice] = []
    for i, (low, high) in enumerate(pairwise(cuts.tolist())):
        new = Slice(slice(low, high), parameters[i]["group"], i, float(count[i]), bool(present[i]))
        last = slices[-1] if slices else None
        if last and not single and (last.group, last.count, last.present) == (new.group, new.count, new.present):
            slices[-1] = Slice(slice(last.coords.start, high), last.group, last.parameter, last.count, last.present)
        elif high > low:
            slices.append(new)
    return tuple(slices)
