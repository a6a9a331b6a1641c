"""The carried estimator: replay an order with the optimizer's whole state, the gradient alone predicted.

At position t with unit u = o[t],

    g = sum_k w_k g_u(theta_k)  +  C_u (theta - sum_k w_k theta_k),        x <- one step of the optimizer with g.

Three members run side by side: one with the whole sampled curvature and one with each independent half of it. What
they differ in is the noise of the sample; a loss that is curved along it is too high by an amount proportional to the
noise, so 2 L(whole) - (L(half_0) + L(half_1)) / 2 is free of it to first order (the jackknife).
Source of the jackknife: Quenouille, "Notes on bias in estimation", 1956.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.optimizers import clip, start_states, step
from orderscope.engine.units import Units
from orderscope.engine.window import Window
from orderscope_kernels.reference import curvature_product, gather_rows

MEMBERS = 3


@dataclass(frozen=True)
class Replayed:
    """Results of a replay.

    Args:
        theta: final weights, [members, orders, m].
        outside: how far the states lay outside what the anchors span: mean over the steps of the remainder's length in
            units of the anchors' distance from the start, [orders].
        snapshots: weights after the steps asked for, [members, orders, m] each.
    """

    theta: Tensor
    outside: Tensor
    snapshots: dict[int, Tensor]


def replay(
    window: Window,
    units: Units,
    *,
    members: int = MEMBERS,
    allowed: Tensor | None = None,
    lr: np.ndarray | None = None,
    snapshots: Sequence[int] = (),
    curvature: bool = True,
) -> Replayed:
    """Replay orders side by side.

    Args:
        units: what they train on, see `units_of`.
        members: 3, or 1 for the whole curvature alone (quicker, no debiasing, no spread).
        allowed: bool [orders, anchors], anchors that may be used; all if not given.
        lr: learning rates instead of the recorded ones, [orders, steps].
        snapshots: positions after which weights are kept; 0 is the start.
        curvature: whether to use it; without, the gradient is only interpolated.
    """
    orders, recorded = len(units.index), len(window.table)
    dynamics = window.dynamics
    states = start_states(dynamics, members * orders)
    outside = torch.zeros(orders, dtype=torch.float64)
    kept = {0: states.theta.clone().view(members, orders, -1)} if 0 in snapshots else {}
    for t in range(window.steps):
        unit = torch.from_numpy(units.index[:, t])
        usable = usable_anchors(window, unit, allowed).repeat(members, 1)
        everyone = unit.repeat(members)
        place = everyone.masked_fill(everyone >= recorded, 0)  # a regrouped batch has no anchors of its own
        weights, remainder, far = window.anchors.weights(states.theta, place, usable)
        outside += far[:orders]
        gradient = _gather(window, units, weights, everyone, recorded)
        if curvature:
            add_curvature(window, gradient, remainder, units.fractions[unit], members)
        if dynamics.max_grad_norm:
            gradient = clip(dynamics, gradient, _norms(window, gradient, weights, place))
        rate = None if lr is None else torch.from_numpy(lr[:, t].copy()).to(gradient.dtype).repeat(members).unsqueeze(1)
        active = None if units.has_grad is None else units.has_grad[everyone]
        step(dynamics, states, gradient, t, rate, active)
        if t + 1 in snapshots:
            kept[t + 1] = states.theta.clone().view(members, orders, -1)
    return Replayed(states.theta.view(members, orders, -1), outside / window.steps, kept)


def usable_anchors(window: Window, unit: Tensor, allowed: Tensor | None) -> Tensor:
    """Which anchors each order may use at a step, bool [orders, anchors]: those its unit has, among those allowed."""
    recorded = len(window.table)
    new = unit >= recorded
    usable = window.known[unit.masked_fill(new, 0)]
    if bool(new.any()):
        sampled = torch.zeros(window.anchors.count, dtype=torch.bool)
        sampled[list(window.sample_anchors)] = True
        usable[new] = sampled
    return usable if allowed is None else usable & allowed


def add_curvature(window: Window, gradient: Tensor, remainder: Tensor, fractions: Tensor, members: int) -> None:
    """Add C_u times the remainder in place, each member with its own part of the curvature.

    Args:
        gradient, remainder: [members * orders, m].
        fractions: share of each group in each order's unit, [orders, groups].
    """
    orders = len(fractions)
    grad, rest = gradient.view(members, orders, -1), remainder.view(members, orders, -1)
    for group, halves in enumerate(window.factors):
        at = fractions[:, group].nonzero()[:, 0]
        if not len(at):
            continue
        share = fractions[at, group].unsqueeze(1)
        for half, factor in enumerate(halves):
            own = [0, 1 + half] if members == MEMBERS else [0]
            d = torch.cat([rest[member, at] for member in own])
            product = curvature_product(factor, d, share.repeat(len(own), 1))
            for member, part in zip(own, product.split(len(at)), strict=True):
                grad[member, at] += part * (0.5 if member == 0 else 1.0)


def _gather(window: Window, units: Units, weights: Tensor, unit: Tensor, recorded: int) -> Tensor:
    new = unit >= recorded
    if not bool(new.any()):
        return gather_rows(window.table, weights, unit)
    gradient = torch.empty(len(unit), window.coords, dtype=window.table.dtype)
    old = ~new
    if bool(old.any()):
        gradient[old] = gather_rows(window.table, weights[old], unit[old])
    gradient[new] = gather_rows(units.rows, weights[new], unit[new] - recorded)
    return gradient


def _norms(window: Window, gradient: Tensor, weights: Tensor, unit: Tensor) -> Tensor:
    """Norms of whole gradients, [rows]: recorded on a unit's own anchor, else estimated from the coordinates."""
    norm = gradient.norm(dim=1) * window.dynamics.weight**0.5
    row, column = (weights[:, weights.shape[1] - window.norms.shape[1] :] == 1).nonzero(as_tuple=True)
    norm[row] = window.norms[unit[row], column]
    return norm


def jackknife(values: np.ndarray) -> np.ndarray:
    """[3, ...] values of the members -> the debiased value, [...]; one member is returned as it is.

    Example:
        >>> jackknife(np.array([[1.0], [1.2], [1.4]]))
        array([0.7])
    """
    return values[0] if len(values) == 1 else 2 * values[0] - (values[1] + values[2]) / 2
