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

from orderscope.engine.optimizers import States, start_states, step_parts
from orderscope.engine.tables import factor_ranges, factor_shares
from orderscope.engine.units import Units
from orderscope.engine.window import Window
from orderscope_kernels import reference
from orderscope_kernels.reference import Clip, Terms
from orderscope_kernels.replay import ReplayKernels, replay_kernels

MEMBERS = 3


@dataclass(frozen=True)
class Replayed:
    """Results of a replay, on the window's device.

    Args:
        theta: final weights, [members, orders, m].
        outside: how far the states lay outside what the anchors span: mean over the steps of the remainder's length in
            units of the anchors' distance from the start, [orders].
        snapshots: weights after the steps asked for, [members, orders, m] each.
    """

    theta: Tensor
    outside: Tensor
    snapshots: dict[int, Tensor]

    def cpu(self) -> Replayed:
        """The same on the CPU."""
        return Replayed(self.theta.cpu(), self.outside.cpu(), {t: kept.cpu() for t, kept in self.snapshots.items()})


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
    orders, dynamics, recorded = len(units.index), window.dynamics, len(window.table)
    states = start_states(dynamics, members * orders)
    device = states.theta.device
    has_grad = None if units.has_grad is None else units.has_grad.to(device)
    allowed = None if allowed is None else allowed.to(device).repeat(members, 1)
    rates = None if lr is None else torch.from_numpy(np.tile(lr, (members, 1))).to(states.theta)
    kernels = replay_kernels(states.theta, separate=states.taken is not None)
    outside = torch.zeros(members * orders, dtype=torch.float64, device=device)
    kept = {0: states.theta.clone().view(members, orders, -1)} if 0 in snapshots else {}
    bends = _bends(window, units.fractions.to(device), members, curvature)
    unit_of = np.tile(units.index, (members, 1))
    bend_of = unit_of + np.repeat(np.arange(members) * len(units.fractions), orders)[:, None]
    # Neighbours share the curvature's rows and their batch's entries, which are then read once for them all.
    sequences = np.argsort(bends.place[bend_of], axis=0, kind="stable")
    for t in range(window.steps):
        sequence = sequences[:, t]
        old = unit_of[sequence, t] < recorded
        for rows in (sequence[old], sequence[~old]):
            if len(rows):
                at, unit, bend = (torch.from_numpy(x).to(device) for x in (rows, unit_of[rows, t], bend_of[rows, t]))
                usable = usable_anchors(window, unit, None if allowed is None else allowed[at])
                gradient, on, clip, far = _predict(
                    window, units, kernels, states.theta, at, unit, usable, bends.ranges[bend], bends.shares[bend]
                )
                outside[at] += far
                active = None if has_grad is None else has_grad[unit]
                own = None if rates is None else rates[at, t, None]
                _step(window, kernels, states, at, gradient, on, clip, t, own, active)
        if t + 1 in snapshots:
            kept[t + 1] = states.theta.clone().view(members, orders, -1)
    return Replayed(states.theta.view(members, orders, -1), outside[:orders] / window.steps, kept)


@dataclass(frozen=True)
class _Bends:
    """The curvature that each unit has for each member, unit u of U and member k at k U + u.

    Args:
        ranges: rows of the factor, int32 [members U, 2].
        shares: what its pieces count, [members U, pieces].
        place: where it comes when those with the same ranges are neighbours, int64 [members U].
    """

    ranges: Tensor
    shares: Tensor
    place: np.ndarray


def _bends(window: Window, fractions: Tensor, members: int, curvature: bool) -> _Bends:
    every = fractions.repeat(members, 1)
    member = torch.arange(members, device=fractions.device).repeat_interleave(len(fractions))
    ranges = factor_ranges(window.tables, every * curvature, member)
    place = np.empty(len(every), dtype=np.int64)
    place[np.lexsort(ranges.T.cpu().numpy())] = np.arange(len(every))
    return _Bends(ranges, factor_shares(every, member), place)


def usable_anchors(window: Window, unit: Tensor, allowed: Tensor | None) -> Tensor:
    """Which anchors each order may use at a step, bool [orders, anchors]: those its unit has, among those allowed."""
    recorded = len(window.table)
    new = unit >= recorded
    usable = window.known[unit.masked_fill(new, 0)]
    if bool(new.any()):
        sampled = torch.zeros(window.anchors.count, dtype=torch.bool, device=unit.device)
        sampled[list(window.sample_anchors)] = True
        usable[new] = sampled
    return usable if allowed is None else usable & allowed


def _predict(
    window: Window,
    units: Units,
    kernels: ReplayKernels,
    theta: Tensor,
    at: Tensor,
    unit: Tensor,
    usable: Tensor,
    ranges: Tensor,
    shares: Tensor,
) -> tuple[Terms, Tensor, Clip | None, Tensor]:
    """Gradients of some states, all of them at recorded batches or all at regrouped ones.

    Args:
        at: which states, int64 [rows]; the other arguments are of these: unit [rows], usable [rows, anchors], ranges
            [rows, 2] and shares [rows, pieces] of the curvature's factor.

    Returns:
        the gradients, not yet formed; which states are an anchor; how they are clipped; how far the states lie outside
        what the anchors span.
    """
    tables, anchors = window.tables, window.anchors
    recorded = len(window.table)
    new = int(unit[0]) >= recorded
    place = torch.zeros_like(unit) if new else unit  # a regrouped batch has no anchors of its own
    entries = anchors.entries(place)
    found = kernels.displacement_products(theta, anchors.start, at, anchors.spread, entries, tables.factor, ranges)
    weights, distance, left = kernels.affine_weights(
        found.square, found.along, anchors.gram, place, usable, anchors.ridge, anchors.scale
    )
    on = anchors.snap(theta, at, place, distance, weights)
    near = weights.to(theta.dtype)
    bent = kernels.remainder_coefficients(found.curved, tables.crossed, entries, near, shares, tables.piece, ranges)
    if bool(on.any()):  # no remainder, so no curvature
        bent[on] = 0
        ranges = ranges.masked_fill(on[:, None], 0)
    known = theta.new_full((len(at),), torch.nan)
    if new:
        batch = torch.from_numpy(units.new[unit.cpu().numpy() - recorded]).to(theta.device)
        first = torch.arange(len(window.sample_anchors), device=theta.device) * window.sample_rows.shape[1]
        index = (first[:, None] + batch[:, None, :]).flatten(1)
        sampled = near[:, list(window.sample_anchors)]
        terms = Terms(
            tables.samples, index, (sampled / batch.shape[1]).repeat_interleave(batch.shape[1], 1), tables.factor,
            bent, ranges,
        )  # fmt: skip
    else:
        row, column = (weights[:, anchors.count - window.norms.shape[1] :] == 1).nonzero(as_tuple=True)
        known[row] = window.norms[unit[row], column].to(known.dtype)
        index = unit[:, None] * anchors.count + torch.arange(anchors.count, device=theta.device)
        scaled = near if tables.scale is None else near * tables.scale[index]
        terms = Terms(tables.gradients, index, scaled, tables.factor, bent, ranges)
    bound = window.dynamics.max_grad_norm
    clip = Clip(bound, window.stands[unit.clamp_max(recorded)], known) if bound else None
    return terms, on, clip, left.sqrt().masked_fill(on, 0)


def _step(
    window: Window,
    kernels: ReplayKernels,
    states: States,
    at: Tensor,
    terms: Terms,
    on: Tensor,
    clip: Clip | None,
    position: int,
    lr: Tensor | None,
    active: Tensor | None,
) -> None:
    """Take the step; states on an anchor by torch's own arithmetic, so that recorded runs replay to the bit."""
    dynamics = window.dynamics
    if kernels is reference or terms.table.dtype != states.theta.dtype or not bool(on.any()):
        choices = [(kernels, None)]
    else:
        choices = [(reference, on.nonzero()[:, 0]), (kernels, (~on).nonzero()[:, 0])]
    for chosen, rows in choices:
        if rows is not None and not len(rows):
            continue
        every = slice(None) if rows is None else rows
        part = Terms(
            terms.table, terms.index[every], terms.weights[every], terms.factor, terms.coefficients[every],
            terms.ranges[every],
        )  # fmt: skip
        bound = None if clip is None else clip._replace(weight=clip.weight[every], known=clip.known[every])
        rates, moving = (None if x is None else x[every] for x in (lr, active))
        parts = step_parts(dynamics, states, at[every], position, rates, moving)
        chosen.replay_step(dynamics.optimizer, states.theta, states.moments, at[every], part, parts, bound)


def jackknife(values: np.ndarray, limit: float = np.inf, times: float = 1.0) -> np.ndarray:
    """[3, ...] values of the members -> the debiased value, [...]; one member is returned as it is.

        L(whole) - times * (mean L(halves) - L(whole))

    Args:
        limit: most that the correction may be. Where halves lead far apart it is no small correction any more, and the
            whole alone is nearer to the truth.
        times: 1 where the sample's noise is all that is wrong; more where what else is wrong goes along with it.

    Example:
        >>> jackknife(np.array([[1.0], [1.2], [1.4]]))
        array([0.7])
        >>> jackknife(np.array([[1.0], [1.2], [1.4]]), limit=0.1)
        array([0.9])
    """
    if len(values) == 1:
        return values[0]
    correction = times * ((values[1] + values[2]) / 2 - values[0])
    return values[0] - np.clip(correction, -limit, limit)
