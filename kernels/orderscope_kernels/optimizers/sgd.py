"""torch.optim.SGD: momentum, dampening, Nesterov, coupled decay."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from orderscope_kernels.optimizers.kind import Kind, Options, StateKey
from orderscope_kernels.shapes import Bool, Float


def sgd_update(
    theta: Float[Tensor, "rows coords"],
    gradient: Float[Tensor, "rows coords"],
    momentum_buffer: Float[Tensor, "rows coords"] | None,
    *,
    first: bool | Bool[Tensor, "rows 1"],
    lr: float | Float[Tensor, "rows 1"],
    momentum: float,
    dampening: float,
    nesterov: float,
    weight_decay: float,
    maximize: float,
) -> None:
    """One step in place, with the bits of torch's own single-tensor code:

        g <- g + weight_decay theta,    b <- momentum b + (1 - dampening) g,    theta <- theta - lr b,

    with g + momentum b instead of b for Nesterov.

    Args:
        theta: weights, [rows, coords].
        gradient: already clipped, [rows, coords].
        momentum_buffer: b, [rows, coords], or None without momentum.
        first: no momentum yet, so that b becomes g itself, without dampening, as torch does; bool, or [rows, 1].
        lr: learning rate, a number or [rows, 1].
        momentum: share of b that is kept a step; 0 for none.
        dampening: share of g that b leaves out.
        nesterov: whether to look one step ahead.
        weight_decay: lambda, >= 0.
        maximize: whether to step against the gradient's sign.
    """
    if maximize:
        gradient = -gradient
    if weight_decay != 0:
        gradient = gradient.add(theta, alpha=weight_decay)
    if momentum != 0:
        assert momentum_buffer is not None
        if first is True:
            momentum_buffer.copy_(gradient)
        else:
            moved = (momentum_buffer * momentum).add_(gradient, alpha=1 - dampening)
            momentum_buffer.copy_(moved if first is False else torch.where(first, gradient, moved))
        gradient = gradient.add(momentum_buffer, alpha=momentum) if nesterov else momentum_buffer
    if isinstance(lr, Tensor):
        theta.sub_(lr * gradient)
    else:
        theta.add_(gradient, alpha=-lr)


def sgd_back(
    h: Options,
    weights: Float[Tensor, "*rows coords"],
    moment: Float[Tensor, "*rows coords"],
    preconditioner: Float[Tensor, " coords"] | None,
    *,
    count: float,
    first: bool,
) -> tuple[Float[Tensor, "*rows coords"], Float[Tensor, "*rows coords"], Float[Tensor, "*rows coords"]]:
    """Adjoint of one step; arguments and results as `Kind.back`, of which `preconditioner` and `count` are not used."""
    step = -h["lr"] * weights
    if not h["momentum"]:
        gradient, before = step, torch.zeros_like(moment)
    else:
        moment = moment + (h["momentum"] * step if h["nesterov"] else step)
        gradient = moment * (1.0 if first else 1 - h["dampening"]) + (step if h["nesterov"] else 0.0)
        before = torch.zeros_like(moment) if first else h["momentum"] * moment
    return gradient, weights + h["weight_decay"] * gradient, before


def sgd_direction(
    h: Options,
    g: Float[Tensor, "*rows coords"],
    theta: Float[Tensor, "*rows coords"],
    state: Mapping[str, Tensor],
    *,
    count: float,
    first: bool,
) -> Float[Tensor, "*rows coords"]:
    """Gamma, elementwise; arguments as `Kind.direction`, of which `count` is not used."""
    g = -g if h.get("maximize") else g
    g = g + h["weight_decay"] * theta if h["weight_decay"] else g
    momentum, buffer = h["momentum"], state.get("momentum_buffer")
    if not momentum:
        return g
    buffer = g if first or buffer is None else momentum * buffer + (1 - h["dampening"]) * g
    return g + momentum * buffer if h["nesterov"] else buffer


def _update(theta: Tensor, gradient: Tensor, state: Mapping[str, Tensor], options: Options) -> None:
    sgd_update(theta, gradient, state.get("momentum_buffer"), **options)


SGD = Kind(
    name="SGD",
    keys=(StateKey("momentum_buffer", option="momentum"),),
    options=("weight_decay", "momentum", "dampening", "nesterov", "maximize"),
    counts=False,
    moment="momentum_buffer",
    seconds=(),
    update=_update,
    back=sgd_back,
    direction=sgd_direction,
)
