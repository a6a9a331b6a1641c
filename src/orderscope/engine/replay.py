"""The carried estimator: replay an order with the optimizer's whole state, the gradient alone predicted.

At position t with unit u = o[t],

    g = sum_k w_k g_u(theta_k)  +  C_u (theta - sum_k w_k theta_k),        x <- one step of the optimizer with g.

A batch that was not recorded has no anchors of its own. Each of its samples i is predicted as the recorded batch u that
it comes from, plus what sets the sample apart from that batch: known at the shared anchors a, and bent by the
curvature of its group i beyond that of the batch:

    g = 1/B sum_i [ sum_k w_uk g_u(theta_k)  +  C_u (theta - sum_k w_uk theta_k)
                    +  sum_a w_a (g_i - g_u)(theta_a)  +  (C_i - C_u) (theta - sum_a w_a theta_a) ].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.optimizers import States, start_states, step_parts
from orderscope.engine.tables import factor_ranges
from orderscope.engine.units import Units, some_of
from orderscope.engine.window import Window
from orderscope.task.hyper import group_rates
from orderscope_kernels import reference
from orderscope_kernels.reference import Clip, Products, Terms
from orderscope_kernels.replay import ReplayKernels, replay_kernels
from orderscope_kernels.shapes import Bool, Float, Float64

HOMES = 8  # samples of a regrouped batch whose recorded batches are used: 4 leave twice the error, 16 no less


@dataclass(frozen=True)
class Replayed:
    """Results of a replay, on the window's device.

    Args:
        theta: final weights, [orders, m].
        outside: how far the states lay outside what the anchors span: mean over the steps of the remainder's length in
            units of the anchors' distance from the start, [orders].
        regrouped: share of the steps that trained batches which were not recorded, float64 [orders].
        sorting: whether they sort samples by group more than the reference order does, see `sorts_more`, bool
            [orders].
        snapshots: weights after the steps asked for, [orders, m] each.
    """

    theta: Float[Tensor, "orders coords"]
    outside: Float64[Tensor, " orders"]
    regrouped: Float64[Tensor, " orders"]
    sorting: Bool[Tensor, " orders"]
    snapshots: dict[int, Float[Tensor, "orders coords"]]

    def cpu(self) -> Replayed:
        """The same on the CPU."""
        kept = {t: weights.cpu() for t, weights in self.snapshots.items()}
        return Replayed(self.theta.cpu(), self.outside.cpu(), self.regrouped.cpu(), self.sorting.cpu(), kept)


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
        more: whether many more orders follow, so that loading the fastest kernels pays off.
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
    shares = units.fractions.to(device)
    composed = shares.clone()  # whose curvature is used: of its groups and, for a regrouped batch, its recorded ones'
    composed[recorded:] += shares[torch.from_numpy(window.home[units.new]).to(device)].mean(1)
    ranges = factor_ranges(window.tables, composed * curvature)
    place = np.empty(len(ranges), dtype=np.int64)
    place[np.lexsort(ranges.T.cpu().numpy())] = np.arange(len(ranges))
    # Neighbours share the curvature's rows and their batch's entries, which are then read once for them all: for
    # recorded and regrouped batches together.
    sequences = np.ascontiguousarray(np.argsort(place[units.index], axis=0, kind="stable").T)
    for t in range(window.steps):
        rows = sequences[t]
        at, unit = (torch.from_numpy(x).to(device) for x in (rows, units.index[rows, t]))
        permitted = None if allowed is None else allowed[at]
        predicted = _predict(
            window, kernels, states.theta, at, unit, permitted, ranges[unit], shares=shares, new=units.new, homes=homes
        )
        outside[at] += predicted.left
        active = None if has_grad is None else has_grad[unit]
        own = None if rates is None else rates[at, t]
        _step(window, kernels, states, at, unit, predicted, t, own, active)
        if t + 1 in snapshots:
            kept[t + 1] = states.theta.clone()
    new = torch.from_numpy((units.index >= recorded).mean(1))
    sorting = torch.from_numpy(units.sorting)
    return Replayed(states.theta, outside / window.steps, new.to(device), sorting.to(device), kept)


class _Predicted(NamedTuple):
    """Gradients of some states, not yet formed: entries of `ReplayTables.entries`, rows of the curvature's factor.

    Args:
        index, weights: int64 and float [rows, terms].
        coefficients: [rows, rank].
        ranges: int32 [rows, 2].
        on: which states are an anchor, bool [rows].
        known: norms of the gradients there; not a number elsewhere, [rows].
        left: how far the states lie outside what the anchors span, [rows].
    """

    index: Tensor
    weights: Tensor
    coefficients: Tensor
    ranges: Tensor
    on: Tensor
    known: Tensor
    left: Tensor


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
    new: np.ndarray,
    homes: int | None,
) -> _Predicted:
    """Gradients of some states at recorded and at regrouped batches.

    Args:
        window: the run, ready to be replayed.
        kernels: who does the arithmetic.
        theta: [states, m].
        at: which states, int64 [rows].
        unit: of each row, int64 [rows].
        allowed: anchors that each may use, bool [rows, anchors]; None for all.
        ranges: rows of the curvature's factor that each uses, int32 [rows, 2].
        shares: of each group in each recorded batch and then each regrouped one, [units + regrouped, groups].
        new: samples of regrouped batches, [regrouped, batch].
        homes: see `replay`.
    """
    tables, anchors, regrouped = window.tables, window.anchors, unit >= window.units
    usable = window.sampled.new_ones(len(at), anchors.count) if allowed is None else allowed
    ids = new[unit[regrouped].cpu().numpy() - window.units]
    home = torch.from_numpy(window.home[some_of(ids, homes)]).to(theta.device)  # batches of some of the samples
    kinds = []  # rows, the anchors' entries that they are multiplied with, and what predicts them from the products
    if not bool(regrouped.all()):
        predict = partial(_at_recorded, theta=theta, at=at[~regrouped], unit=unit[~regrouped])
        kinds.append(((~regrouped).nonzero()[:, 0], anchors.entries(unit[~regrouped]), predict))
    if len(ids):
        predict = partial(_at_regrouped, ids=ids, home=home, mixture=shares[unit[regrouped]])
        kinds.append((regrouped.nonzero()[:, 0], anchors.entries(home.flatten()).view(len(ids), -1), predict))
    entries = _side_by_side([(rows, of) for rows, of, _ in kinds], len(at), -1)
    found = kernels.displacement_products(theta, anchors.start, at, anchors.spread, entries, tables.factor, ranges)
    pieces = [
        (rows, predict(window, kernels, Products(found.square[rows], found.along[rows, : of.shape[1]].contiguous(),
                                                 found.curved[rows]), of, usable[rows], ranges[rows], shares))
        for rows, of, predict in kinds
    ]  # fmt: skip
    joined = zip(*(piece for _, piece in pieces), strict=True)
    every = [rows for rows, _ in pieces]
    return _Predicted(*(_side_by_side(list(zip(every, fields, strict=True)), len(at), 0) for fields in joined))


def _side_by_side(parts: list[tuple[Tensor, Tensor]], count: int, fill: int) -> Tensor:
    """Rows of several tensors, each with its places, as one tensor of `count` rows; shorter rows end in `fill`."""
    if len(parts) == 1:
        return parts[0][1]
    widest = max((part for _, part in parts), key=lambda part: part[0].numel())
    out = widest.new_full((count, *widest.shape[1:]), fill)
    for rows, part in parts:
        if part.ndim == 1:
            out[rows] = part
        else:
            out[rows, : part.shape[1]] = part
    return out


def _at_recorded(
    window: Window,
    kernels: ReplayKernels,
    found: Products,
    entries: Tensor,
    allowed: Tensor,
    ranges: Tensor,
    shares: Tensor,
    *,
    theta: Tensor,
    at: Tensor,
    unit: Tensor,
) -> _Predicted:
    """At recorded batches `unit`, int64 [rows], of the states `at` of `theta`; `found` are products with the
    anchors' `entries`, the other arguments as `_predict`'s, of these rows alone."""
    tables, anchors = window.tables, window.anchors
    weights, distance, left = kernels.affine_weights(
        found.square, found.along, anchors.gram, unit, window.known[unit] & allowed, anchors.ridge, anchors.scale
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
    index = tables.single + unit[:, None] * anchors.count + torch.arange(anchors.count, device=theta.device)
    return _Predicted(index, near, bent, ranges, on, known, left.sqrt().masked_fill(on, 0))


def _at_regrouped(
    window: Window,
    kernels: ReplayKernels,
    found: Products,
    entries: Tensor,
    allowed: Tensor,
    ranges: Tensor,
    shares: Tensor,
    *,
    ids: np.ndarray,
    home: Tensor,
    mixture: Tensor,
) -> _Predicted:
    """At batches that were not recorded, of samples `ids` [rows, batch], some of which are of the recorded batches
    `home`, int64 [rows, some]; `mixture` is the share of each group in them, [rows, groups], `found` are products with
    the anchors' `entries`, the other arguments as `_predict`'s, of these rows alone."""
    tables, anchors, device = window.tables, window.anchors, found.square.device
    rows, size = home.shape
    batch, home = torch.from_numpy(window.sample_place[ids]).to(device), home.flatten()
    along = found.along.view(rows * size, -1)
    weights, _, left = kernels.affine_weights(
        found.square.repeat_interleave(size), along, anchors.gram, home,
        window.known[home] & allowed.repeat_interleave(size, 0), anchors.ridge, anchors.scale,
    )  # fmt: skip
    sampled = window.sampled
    first = home[::size].contiguous()  # the shared anchors are the same for all
    shared, _, _ = kernels.affine_weights(
        found.square, along[::size].contiguous(), anchors.gram, first, sampled & allowed, anchors.ridge, anchors.scale
    )
    near, shared = weights.to(found.curved.dtype), shared.to(found.curved.dtype)
    bent = kernels.remainder_coefficients(
        found.curved.repeat_interleave(size, 0), tables.crossed, entries.view(rows * size, -1), near,
        shares[home], tables.piece, ranges.repeat_interleave(size, 0),
    ).view(rows, size, -1).mean(1)  # fmt: skip
    apart = mixture - shares[home].view(rows, size, -1).mean(1)
    bent += kernels.remainder_coefficients(
        found.curved, tables.crossed, anchors.entries(first), shared, apart, tables.piece, ranges
    )
    near = near.view(rows, size, -1) / size
    anchor = torch.arange(len(window.sample_anchors), device=device) * window.samples
    single = (anchor[:, None] + batch[:, None, :]).flatten(1)
    whole = tables.single + home[:, None] * anchors.count + torch.arange(anchors.count, device=device)
    return _Predicted(
        index=torch.cat([single, whole.view(rows, -1)], 1),
        weights=torch.cat([(shared[:, sampled] / batch.shape[1]).repeat_interleave(batch.shape[1], 1),
                           (near - shared[:, None] / size).flatten(1)], 1),
        coefficients=bent,
        ranges=ranges,
        on=torch.zeros(rows, dtype=torch.bool, device=device),
        known=found.curved.new_full((rows,), torch.nan),
        left=left.sqrt().view(rows, size).mean(1),
    )  # fmt: skip


def _clip(window: Window, unit: Tensor, known: Tensor) -> Clip | None:
    bound = window.dynamics.max_grad_norm
    return Clip(bound, window.stands[unit.clamp_max(window.units)], known) if bound else None


def _step(
    window: Window,
    kernels: ReplayKernels,
    states: States,
    at: Tensor,
    unit: Tensor,
    predicted: _Predicted,
    position: int,
    lr: Tensor | None,
    active: Tensor | None,
) -> None:
    """Take the step; states on an anchor by torch's own arithmetic, so that recorded runs replay to the bit."""
    dynamics, on, tables = window.dynamics, predicted.on, window.tables
    clip = _clip(window, unit, predicted.known)
    if kernels is reference or tables.entries.dtype != states.theta.dtype or not bool(on.any()):
        choices = [(kernels, None)]
    else:
        choices = [(reference, on.nonzero()[:, 0]), (kernels, (~on).nonzero()[:, 0])]
    for chosen, rows in choices:
        if rows is not None and not len(rows):
            continue
        every = slice(None) if rows is None else rows
        index, weights, coefficients, ranges = (x[every] for x in predicted[:4])
        part = Terms(tables.entries, index, weights, tables.factor, coefficients, ranges)
        bound = None if clip is None else clip._replace(weight=clip.weight[every], known=clip.known[every])
        rates, moving = (None if x is None else x[every] for x in (lr, active))
        parts = step_parts(dynamics, states, at[every], position, rates, moving)
        chosen.replay_step(dynamics.optimizer, states.theta, states.moments, at[every], part, parts, bound)
