"""The optimizer's own step on the replayed states. Only the gradient is predicted, never the optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orderscope_kernels.reference import Part, clip_factor, optimizer_step

MOMENTS = {
    "Adam": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "AdamW": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "SGD": ("momentum_buffer",),
}


@dataclass(frozen=True)
class Slice:
    """A run of carried coordinates that one parameter group's hyper-parameters hold for.

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
    """Where the window starts: weights [m] and moments by key, [m] each."""

    theta: Tensor
    moments: dict[str, Tensor]


@dataclass(frozen=True)
class Dynamics:
    """The optimizer of a dynamics.

    Args:
        optimizer: "Adam", "AdamW" or "SGD".
        hyper: hyper-parameter -> float64 [steps, param_groups].
        start: state before the first step.
        slices: how hyper-parameters and step counts map to coordinates.
        parameters: number of parameters.
        masked: whether some parameter lacks a gradient in some step.
        max_grad_norm: clipping, or None.
        weight: P / m, what a carried coordinate stands for in a norm.
    """

    optimizer: str
    hyper: dict[str, np.ndarray]
    start: Start
    slices: tuple[Slice, ...]
    parameters: int
    masked: bool
    max_grad_norm: float | None
    weight: float

    @property
    def steps(self) -> int:
        return len(self.hyper["lr"])


@dataclass
class States:
    """Optimizer states of many replays.

    Args:
        theta: [rows, m].
        moments: by key, [rows, m].
        taken: optimizer steps a parameter has taken inside the window, [rows, n_params]; None where every parameter
            takes every step.
    """

    theta: Tensor
    moments: dict[str, Tensor]
    taken: Tensor | None


def start_states(dynamics: Dynamics, rows: int) -> States:
    """`rows` copies of the window's start."""
    amsgrad = bool(dynamics.hyper.get("amsgrad", np.zeros(1)).any())
    momentum = bool(dynamics.hyper.get("momentum", np.ones(1)).any())
    moments = {}
    for key in MOMENTS[dynamics.optimizer]:
        if (key == "max_exp_avg_sq" and not amsgrad) or (key == "momentum_buffer" and not momentum):
            continue
        given = dynamics.start.moments.get(key)
        moments[key] = (torch.zeros_like(dynamics.start.theta) if given is None else given).repeat(rows, 1)
    taken = torch.zeros(rows, dynamics.parameters, device=dynamics.start.theta.device) if dynamics.masked else None
    return States(dynamics.start.theta.repeat(rows, 1), moments, taken)


def clip(dynamics: Dynamics, gradient: Tensor, norm: Tensor | None = None) -> Tensor:
    """As torch.nn.utils.clip_grad_norm_: [rows, m]. `norm` [rows] is estimated from the coordinates if not given."""
    if not dynamics.max_grad_norm:
        return gradient
    size = gradient.norm(dim=1) * dynamics.weight**0.5 if norm is None else norm
    return gradient * clip_factor(size, dynamics.max_grad_norm).unsqueeze(1)


def step(
    dynamics: Dynamics, states: States, gradient: Tensor, position: int, lr: Tensor | None, active: Tensor | None
) -> None:
    """Take the step at `position` with a given gradient, in place.

    Args:
        gradient: mean gradient, already clipped, [rows, m].
        lr, active: as `step_parts`.
    """
    every = torch.arange(len(gradient), device=gradient.device)
    parts = step_parts(dynamics, states, every, position, lr, active)
    optimizer_step(dynamics.optimizer, states.theta, states.moments, every, gradient, parts)


def step_parts(
    dynamics: Dynamics, states: States, at: Tensor, position: int, lr: Tensor | None, active: Tensor | None
) -> list[Part]:
    """What steps alike at `position`; the steps that parameters have taken are counted on.

    Args:
        at: which states take the step, int64 [rows].
        lr: learning rates instead of the recorded ones, [rows, groups].
        active: parameters with a gradient, bool [rows, n_params], where some have none.
    """
    parts = []
    for part in dynamics.slices:
        h = {name: float(values[position, part.group]) for name, values in dynamics.hyper.items()}
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
    options: dict[str, Any] = {"lr": lr, "weight_decay": h["weight_decay"], "maximize": bool(h.get("maximize", 0))}
    if dynamics.optimizer == "SGD":
        options |= {"momentum": h["momentum"], "dampening": h["dampening"], "nesterov": bool(h["nesterov"])}
        options |= {"first": taken == 0 and not part.present}
    else:
        options |= {"beta1": h["beta1"], "beta2": h["beta2"], "eps": h["eps"], "decoupled": bool(h["decoupled"])}
        options |= {"count": part.count + taken + 1}
    return Part(part.coords.start, part.coords.stop, options, among)


def slices(
    parameters: Sequence[dict[str, Any]],
    indices: Tensor | None,
    count: Tensor,
    present: Tensor,
    single: bool,
) -> tuple[Slice, ...]:
    """One slice a parameter, or, where every parameter always gets a gradient, one a run of like parameters."""
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


def adam_back(
    h: Mapping[str, float], weights: Tensor, moment: Tensor, preconditioner: Tensor, count: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Adjoint of one step of Adam or AdamW whose preconditioner D is frozen.

    Args:
        h: hyper-parameters of the step.
        weights, moment: adjoints of the weights and the first moment after the step, [..., coords].
        preconditioner: D, [coords].
        count: number of the step, from 1.

    Returns:
        adjoints of the gradient, of the weights before and of the first moment before.
    """
    moment = moment - h["lr"] / (1 - h["beta1"] ** count) * preconditioner * weights
    gradient = (1 - h["beta1"]) * moment
    weights = weights * (1 - h["lr"] * h["weight_decay"]) if h["decoupled"] else weights + h["weight_decay"] * gradient
    return gradient, weights, h["beta1"] * moment


def sgd_back(h: Mapping[str, float], weights: Tensor, moment: Tensor, *, first: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Adjoint of one step of SGD; as `adam_back`. `first`: the step makes the momentum buffer."""
    step = -h["lr"] * weights
    if not h["momentum"]:
        gradient, before = step, torch.zeros_like(moment)
    else:
        moment = moment + (h["momentum"] * step if h["nesterov"] else step)
        gradient = moment * (1.0 if first else 1 - h["dampening"]) + (step if h["nesterov"] else 0.0)
        before = torch.zeros_like(moment) if first else h["momentum"] * moment
    return gradient, weights + h["weight_decay"] * gradient, before
