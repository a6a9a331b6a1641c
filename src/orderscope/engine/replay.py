"""The carried estimator: replay an order with the optimizer's whole state, the gradient alone predicted.

At position t with unit u = o[t],

    g = sum_k w_k g_u(theta_k)  +  C_u (theta - sum_k w_k theta_k),        x <- one step of the optimizer with g.

A batch that was not recorded has no anchors of its own. Each of its samples i is predicted as the recorded batch u that
it comes from, plus what sets the sample apart from that batch at the shared anchors a:

    g = 1/B sum_i [ sum_k w_uk g_u(theta_k)  +  C_u (theta - sum_k w_uk theta_k)  +  sum_a w_a (g_i - g_u)(theta_a) ].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.optimizers import States, start_states, step_parts
from orderscope.engine.tables import factor_ranges
from orderscope.engine.units import Units, some_of
from orderscope.engine.window import Window
from orderscope.task.hyper import group_rates
from orderscope_kernels import reference
from orderscope_kernels.reference import Clip, Terms
from orderscope_kernels.replay import ReplayKernels, replay_kernels
from orderscope_kernels.shapes import Bool, Float, Float64

HOMES = 4  # samples of a regrouped batch whose recorded batches weigh in: a third of the time of all sixteen


@dataclass(frozen=True)
class Replayed:
    """Results of a replay, on the window's device.

    Args:
        theta: final weights, [orders, m].
        outside: how far the states lay outside what the anchors span: mean over the steps of the remainder's length in
            units of the anchors' distance from the start, [orders].
        regrouped: share of the steps that trained batches which were not recorded, float64 [orders].
        snapshots: weights after the steps asked for, [orders, m] each.
    """

    theta: Float[Tensor, "orders coords"]
    outside: Float64[Tensor, " orders"]
    regrouped: Float64[Tensor, " orders"]
    snapshots: dict[int, Float[Tensor, "orders coords"]]

    def cpu(self) -> Replayed:
        """The same on the CPU."""
        kept = {t: weights.cpu() for t, weights in self.snapshots.items()}
        return Replayed(self.theta.cpu(), self.outside.cpu(), self.regrouped.cpu(), kept)


def replay(
    window: Window,
    units: Units,
    *,
    allowed: Bool[Tensor, "orders anchors"] | None = None,
    lr: Float[np.ndarray, ...] | None = None,
    snapshots: Sequence[int] = (),
    curvature: bool = True,
    homes: int | None = HOMES,
    more: bool = False,
) -> Replayed:
    """Replay orders side by side.

    Args:
        window: the run, ready to be replayed.
        units: what they train on, see `units_of`.
        allowed: bool [orders, anchors], anchors that may be used; all if not given.
        lr: learning rates instead of the recorded ones, as `orderscope.task.hyper.group_rates` reads them.
        snapshots: positions after which weights are kept; 0 is the start.
        curvature: whether to use it; without, the gradient is only interpolated.
        homes: of how many of a regrouped batch's samples the recorded batches weigh in, evenly spaced; None for all.
        more: many more are replayed after these, so that the quickest kernels are worth loading.
    """
    orders, dynamics, recorded = len(units.index), window.dynamics, window.units
    states = start_states(dynamics, orders)
    device = states.theta.device
    has_grad = None if units.has_grad is None else units.has_grad.to(device)
    allowed = None if allowed is None else allowed.to(device)
    given = None if lr is None else group_rates(lr, dynamics.hyper["lr"], orders)
    rates = None if given is None else torch.from_numpy(np.ascontiguousarray(given)).to(states.theta)
    work = math.inf if more else states.theta.numel() * window.steps
    kernels = replay_kernels(states.theta, separate=states.taken is not None, work=work)
    outside = torch.zeros(orders, dtype=torch.float64, device=device)
    kept = {0: states.theta.clone()} if 0 in snapshots else {}
    shares = window.fractions.to(device)
    composed = shares[torch.from_numpy(window.home[units.new]).to(device)].mean(1)  # of a regrouped batch's own batches
    ranges = factor_ranges(window.tables, torch.cat([shares, composed]) * curvature)
    place = np.empty(len(ranges), dtype=np.int64)
    place[np.lexsort(ranges.T.cpu().numpy())] = np.arange(len(ranges))
    # Neighbours share the curvature's rows and their batch's entries, which are then read once for them all.
    sequences = np.argsort(place[units.index], axis=0, kind="stable")
    for t in range(window.steps):
        sequence = sequences[:, t]
        old = units.index[sequence, t] < recorded
        for rows in (sequence[old], sequence[~old]):
            if len(rows):
                at, unit = (torch.from_numpy(x).to(device) for x in (rows, units.index[rows, t]))
                permitted = None if allowed is None else allowed[at]
                known = int(unit[0]) < recorded
                predict = _predict if known else partial(_predict_regrouped, new=units.new, homes=homes)
                gradient, on, clip, far = predict(
                    window, kernels, states.theta, at, unit, permitted, ranges[unit], shares=shares
                )
                outside[at] += far
                active = None if has_grad is None else has_grad[unit]
                own = None if rates is None else rates[at, t]
                _step(window, kernels, states, at, gradient, on, clip, t, own, active)
        if t + 1 in snapshots:
            kept[t + 1] = states.theta.clone()
    new = torch.from_numpy((units.index >= recorded).mean(1))
    return Replayed(states.theta, outside / window.steps, new.to(device), kept)


def _predict(
    window: Window,
    kernels: ReplayKernels,
    theta: Tensor,
    at: Tensor,
    unit: Tensor,
    allowed: Tensor | None,
    ranges: Tensor,
    *,
    shares: Tensor,
) -> tuple[Terms, Tensor, Clip | None, Tensor]:
    """Gradients of some states at recorded batches.

    Args:
        window: the run, ready to be replayed.
        kernels: who does the arithmetic.
        theta: [states, m].
        at: which states, int64 [rows].
        unit: of each row, int64 [rows].
        allowed: anchors that each may use, bool [rows, anchors]; None for all.
        ranges: rows of the curvature's factor that each uses, int32 [rows, 2].
        shares: of each group in each recorded batch, [units, groups].

    Returns:
        the gradients, not yet formed; which states are an anchor; how they are clipped; how far the states lie outside
        what the anchors span.
    """
    tables, anchors = window.tables, window.anchors
    usable = window.known[unit] if allowed is None else window.known[unit] & allowed
    entries = anchors.entries(unit)
    found = kernels.displacement_products(theta, anchors.start, at, anchors.spread, entries, tables.factor, ranges)
    weights, distance, left = kernels.affine_weights(
        found.square, found.along, anchors.gram, unit, usable, anchors.ridge, anchors.scale
    )
    on = anchors.snap(theta, at, unit, distance, weights)
    near = weights.to(theta.dtype)
    bent = kernels.remainder_coefficients(
        found.curved, tables.crossed, entries, near, shares[unit], tables.piece, ranges
    )
    if bool(on.any()):  # no remainder, so no curvature
        bent[on] = 0
        ranges = ranges.masked_fill(on[:, None], 0)
    known = theta.new_full((len(at),), torch.nan)
    row, column = (weights[:, anchors.shared :] == 1).nonzero(as_tuple=True)
    known[row] = window.norms[unit[row], column].to(known.dtype)
    index = unit[:, None] * anchors.count + torch.arange(anchors.count, device=theta.device)
    terms = Terms(tables.gradients, index, near, tables.factor, bent, ranges)
    return terms, on, _clip(window, unit, known), left.sqrt().masked_fill(on, 0)


def _predict_regrouped(
    window: Window,
    kernels: ReplayKernels,
    theta: Tensor,
    at: Tensor,
    unit: Tensor,
    allowed: Tensor | None,
    ranges: Tensor,
    *,
    shares: Tensor,
    new: np.ndarray,
    homes: int | None,
) -> tuple[Terms, Tensor, Clip | None, Tensor]:
    """As `_predict`, at batches that were not recorded: of samples `new` [regrouped, batch]."""
    tables, anchors, device = window.tables, window.anchors, theta.device
    ids = new[unit.cpu().numpy() - window.units]
    batch, rows = torch.from_numpy(window.sample_place[ids]).to(device), len(ids)
    some = some_of(ids, homes)
    size, home = some.shape[1], torch.from_numpy(window.home[some]).to(device).flatten()
    entries = anchors.entries(home).view(rows, -1)  # of the samples' own batches, one after the other
    found = kernels.displacement_products(theta, anchors.start, at, anchors.spread, entries, tables.factor, ranges)

    along = found.along.view(rows * size, -1)
    usable = window.known[home] if allowed is None else window.known[home] & allowed.repeat_interleave(size, 0)
    weights, _, left = kernels.affine_weights(
        found.square.repeat_interleave(size), along, anchors.gram, home, usable, anchors.ridge, anchors.scale
    )
    sampled = window.sampled
    with_samples = sampled.expand(rows, -1) if allowed is None else sampled & allowed
    shared, _, _ = kernels.affine_weights(
        found.square, along[::size].contiguous(), anchors.gram, home[::size].contiguous(), with_samples,
        anchors.ridge, anchors.scale,
    )  # fmt: skip
    near = weights.to(theta.dtype)
    bent = kernels.remainder_coefficients(
        found.curved.repeat_interleave(size, 0), tables.crossed, anchors.entries(home), near, shares[home],
        tables.piece, ranges.repeat_interleave(size, 0),
    ).view(rows, size, -1).mean(1)  # fmt: skip
    near = near.view(rows, size, -1) / size

    shared = shared.to(theta.dtype)
    first = torch.arange(len(window.sample_anchors), device=device) * window.samples
    single = (first[:, None] + batch[:, None, :]).flatten(1)
    whole = tables.single + home[:, None] * anchors.count + torch.arange(anchors.count, device=device)
    terms = Terms(
        tables.entries,
        torch.cat([single, whole.view(rows, -1)], 1),
        torch.cat([(shared[:, sampled] / batch.shape[1]).repeat_interleave(batch.shape[1], 1),
                   (near - shared[:, None] / size).flatten(1)], 1),
        tables.factor, bent, ranges,
    )  # fmt: skip
    known = theta.new_full((rows,), torch.nan)
    nowhere = torch.zeros(rows, dtype=torch.bool, device=device)
    return terms, nowhere, _clip(window, unit, known), left.sqrt().view(rows, size).mean(1)


def _clip(window: Window, unit: Tensor, known: Tensor) -> Clip | None:
    bound = window.dynamics.max_grad_norm
    return Clip(bound, window.stands[unit.clamp_max(window.units)], known) if bound else None


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
