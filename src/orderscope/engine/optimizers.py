"""The optimizer's own step on the replayed states. Only the gradient is predicted, never the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from orderscope_kernels.reference import adam_update, sgd_update
from torch import Tensor

from orderscope.engine.window import Slice, Window

MOMENTS = {
    "Adam": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "AdamW": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "SGD": ("momentum_buffer",),
}


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


def start_states(window: Window, rows: int) -> States:
    """`rows` copies of the window's start."""
    amsgrad = bool(window.hyper.get("amsgrad", np.zeros(1)).any())
    momentum = bool(window.hyper.get("momentum", np.ones(1)).any())
    moments = {}
    for key in MOMENTS[window.optimizer]:
        if (key == "max_exp_avg_sq" and not amsgrad) or (key == "momentum_buffer" and not momentum):
            continue
        given = window.start.moments.get(key)
        moments[key] = (torch.zeros_like(window.start.theta) if given is None else given).repeat(rows, 1)
    taken = None if window.has_grad is None else torch.zeros(rows, window.has_grad.shape[1])
    return States(window.start.theta.repeat(rows, 1), moments, taken)


def clip(gradient: Tensor, max_norm: float, weight: float) -> Tensor:
    """As torch.nn.utils.clip_grad_norm_, with the Horvitz-Thompson estimate of the norm: [rows, m]."""
    norm = gradient.norm(dim=1, keepdim=True) * weight**0.5
    return gradient * (max_norm / (norm + 1e-6)).clamp_max(1.0)


def step(
    window: Window, states: States, gradient: Tensor, position: int, lr: Tensor | None, active: Tensor | None
) -> None:
    """Take the step at `position` in place.

    Args:
        gradient: mean gradient, already clipped, [rows, m].
        lr: learning rates instead of the recorded ones, [rows, 1], for the first parameter group; the others keep
            their ratio to it.
        active: parameters with a gradient, bool [rows, n_params], where some have none.
    """
    update = _UPDATES[window.optimizer]
    for part in window.slices:
        recorded = float(window.hyper["lr"][position, part.group])
        rate: float | Tensor = recorded
        if lr is not None:
            first = float(window.hyper["lr"][position, 0])
            rate = lr * (recorded / first) if first else lr
        if active is None or states.taken is None:
            update(window, states, part, gradient, position, rate, slice(None), None)
            continue
        rows = active[:, part.parameter].nonzero()[:, 0]
        if len(rows):
            done = states.taken[rows, part.parameter].unsqueeze(1)
            own = rate[rows] if isinstance(rate, Tensor) else rate
            update(window, states, part, gradient, position, own, rows, done)
            states.taken[rows, part.parameter] += 1


def _adam(
    window: Window,
    states: States,
    part: Slice,
    gradient: Tensor,
    position: int,
    lr: float | Tensor,
    rows: slice | Tensor,
    taken: Tensor | None,
) -> None:
    h = {name: float(values[position, part.group]) for name, values in window.hyper.items()}
    amsgrad = bool(h.get("amsgrad", 0))
    parts = [states.theta, gradient, states.moments["exp_avg"], states.moments["exp_avg_sq"]]
    parts += [states.moments["max_exp_avg_sq"]] if amsgrad else []
    own = [_part(t, part, rows) for t in parts]
    adam_update(
        *own[:4],
        own[4] if amsgrad else None,
        count=part.count + (position + 1 if taken is None else taken + 1),
        lr=lr,
        beta1=h["beta1"],
        beta2=h["beta2"],
        eps=h["eps"],
        weight_decay=h["weight_decay"],
        decoupled=bool(h["decoupled"]),
        maximize=bool(h.get("maximize", 0)),
    )
    _put_back(parts, own, part, rows)


def _sgd(
    window: Window,
    states: States,
    part: Slice,
    gradient: Tensor,
    position: int,
    lr: float | Tensor,
    rows: slice | Tensor,
    taken: Tensor | None,
) -> None:
    h = {name: float(values[position, part.group]) for name, values in window.hyper.items()}
    parts = [states.theta, gradient]
    parts += [states.moments["momentum_buffer"]] if "momentum_buffer" in states.moments else []
    own = [_part(t, part, rows) for t in parts]
    first: bool | Tensor = (position == 0 and not part.present) if taken is None else (taken == 0) & (not part.present)
    sgd_update(
        *own[:2],
        own[2] if len(own) > 2 else None,
        first=first,
        lr=lr,
        momentum=h["momentum"],
        dampening=h["dampening"],
        nesterov=bool(h["nesterov"]),
        weight_decay=h["weight_decay"],
        maximize=bool(h.get("maximize", 0)),
    )
    _put_back(parts, own, part, rows)


def _part(tensor: Tensor, part: Slice, rows: slice | Tensor) -> Tensor:
    """A view where all rows take the step, a copy of some rows otherwise."""
    return tensor[rows, part.coords]


def _put_back(parts: list[Tensor], own: list[Tensor], part: Slice, rows: slice | Tensor) -> None:
    if isinstance(rows, slice):
        return
    for index, (whole, copy) in enumerate(zip(parts, own, strict=True)):
        if index != 1:  # the gradient is only read
            whole[rows, part.coords] = copy


_UPDATES: dict[str, Callable[..., None]] = {"Adam": _adam, "AdamW": _adam, "SGD": _sgd}
