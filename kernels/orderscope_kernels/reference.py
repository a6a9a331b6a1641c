"""The arithmetic of a replay in plain torch: what every kernel must reproduce.

Shapes: `orders` rows, `coords` carried coordinates, `anchors` states at which gradients are tabled, `units` batches.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def gather_rows(table: Tensor, weights: Tensor, units: Tensor) -> Tensor:
    """Gradients interpolated between anchors: out[o] = sum_a weights[o, a] table[units[o], a].

    Args:
        table: [units, anchors, coords].
        weights: [orders, anchors].
        units: int64 [orders], the unit of each order at this step.

    Returns:
        [orders, coords]. Each unit's rows are read once for all orders that are at it.
    """
    out = torch.empty(len(units), table.shape[-1], dtype=table.dtype, device=table.device)
    for unit, index in by_unit(units):
        w = weights[index]
        chosen = (w != 0).any(0)
        if int(chosen.sum()) == 1 and bool((w[:, chosen] == 1).all()):
            out[index] = table[unit, int(chosen.nonzero())]  # on an anchor: its own bits
        else:
            out[index] = w.to(table.dtype) @ table[unit]
    return out


def unit_products(table: Tensor, units: Tensor, rows: Tensor) -> Tensor:
    """Inner products of each row with its unit's vectors: out[o, a] = table[units[o], a] . rows[o].

    Args:
        table: [units, anchors, coords].
        units: int64 [orders].
        rows: [orders, coords].

    Returns:
        [orders, anchors].
    """
    out = torch.empty(len(units), table.shape[1], dtype=rows.dtype, device=rows.device)
    for unit, index in by_unit(units):
        out[index] = rows[index] @ table[unit].T
    return out


def by_unit(units: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each unit that occurs, and the rows that are at it."""
    order = torch.argsort(units, stable=True)
    values, counts = torch.unique_consecutive(units[order], return_counts=True)
    yield from zip(values.tolist(), order.split(counts.tolist()), strict=True)


def curvature_product(factor: Tensor, displacement: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Gauss-Newton product C d = A^T (s * A d), the projected Hessian-vector product.

    Args:
        factor: A, [rank, coords].
        displacement: d, [orders, coords].
        scale: scalar, or [orders, 1].

    Returns:
        [orders, coords].
    """
    return (scale * (displacement @ factor.T)) @ factor


def adam_update(
    theta: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    *,
    count: float | Tensor,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
) -> None:
    """One step of torch.optim.Adam or AdamW in place, with the bits of torch's own single-tensor code.

    `count` is the step being taken, from 1; eps is added outside the root, as torch does. All tensors [orders, coords];
    `lr` and `count` may be [orders, 1].
    """
    if maximize:
        gradient = -gradient
    if weight_decay != 0:
        if decoupled:
            theta.mul_(1 - lr * weight_decay)
        else:
            gradient = gradient.add(theta, alpha=weight_decay)
    exp_avg.lerp_(gradient, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    correction1, correction2 = 1 - beta1**count, 1 - beta2**count
    second = exp_avg_sq
    if max_exp_avg_sq is not None:
        torch.maximum(max_exp_avg_sq, exp_avg_sq, out=max_exp_avg_sq)
        second = max_exp_avg_sq
    denominator = (second.sqrt() / correction2**0.5).add_(eps)
    size = lr / correction1
    if isinstance(size, Tensor):
        theta.sub_(size * exp_avg / denominator)
    else:
        theta.addcdiv_(exp_avg, denominator, value=-size)


def sgd_update(
    theta: Tensor,
    gradient: Tensor,
    momentum_buffer: Tensor | None,
    *,
    first: bool | Tensor,
    lr: float | Tensor,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    maximize: bool,
) -> None:
    """One step of torch.optim.SGD in place. `first`: no momentum yet, so the buffer becomes the gradient itself,
    without dampening, as torch does; bool, or [orders, 1]."""
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
