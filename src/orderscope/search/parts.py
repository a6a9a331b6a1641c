"""The split of the held-out rows: one part to search on, the other to confirm on.

A search that scores thousands of orders on a few hundred rows overfits those rows. The rows of the held-out losses are
therefore split: the search sees the losses of one part only, and its results are evaluated on the other. A row that
several metrics share is in the same part for all of them.

The losses on a part are estimated like those on all rows (`orderscope.engine.held_out`), from their values and
gradients at the ends of the recorded runs. The values are stored row by row. The gradients on the searched rows are
computed when a search starts, with one forward and backward pass per run; those on the other rows follow by subtraction
from the stored gradients on all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from orderscope.engine import HeldOut
from orderscope.engine.calibration import Calibration, fit_calibration
from orderscope.engine.held_out import Missed, scaled_as_known
from orderscope.engine.row_spread import RowSpread, row_spread
from orderscope.engine.threads import one_thread
from orderscope.errors import OrderscopeError
from orderscope.simulation.simulator import Simulator
from orderscope.sketching.gradients import Point, join, point, sample_gradients
from orderscope.sketching.held_out import HeldOutRows, held_out_rows, held_out_slopes
from orderscope.store.names import REFERENCE
from orderscope.task import Task
from orderscope.training import load_run
from orderscope.training.segments import map_theta, read_weights

SEARCHED = 0.5  # share of the rows that the search sees
LEAST = 8  # fewest rows of a part
SPREAD_ROWS = 1024  # most rows whose gradients give the standard error over rows,
SPREAD_BYTES = 1 << 27  # and most bytes of these gradients
GRADIENT_BYTES = 1 << 28  # most bytes of per-row gradients in memory at once
CHUNK = 1 << 20  # weights read at once


@dataclass(frozen=True)
class Split:
    """Which held-out rows the search sees.

    Args:
        rows: the distinct rows of all held-out sets.
        searched: whether the search sees each row, bool [rows].
        confirming: metric -> a separate data set to confirm on; the search then sees all rows.
    """

    rows: HeldOutRows
    searched: np.ndarray
    confirming: Mapping[str, Any] = field(default_factory=dict)

    def of(self, name: str) -> np.ndarray:
        """Which samples of the held-out set `name` the search sees, bool [samples]."""
        return self.searched[self.rows.places[self.rows.names.index(name)]]


def split_rows(task: Task, share: float = SEARCHED, confirming: Mapping[str, Any] | None = None) -> Split | None:
    """Split the rows at random, stratified by the held-out sets that share a row and, where a held-out set has `groups`
    (one label per row), by group. The split is the same for every search of a task: a second search must not see the
    rows that the first was confirmed on.

    Args:
        task: the task, for its held-out sets.
        share: share of the rows that the search sees.
        confirming: metric -> a separate data set to confirm on.

    Returns:
        The split; None if a part would have fewer than `LEAST` rows.
    """
    rows = held_out_rows(task)
    if confirming:
        return Split(rows, np.ones(len(rows.samples), dtype=bool), confirming)
    searched, rng = np.zeros(len(rows.samples), dtype=bool), np.random.default_rng(0)
    taken = 0.0
    for some in _strata(task, rows):
        mixed = rng.permutation(some)
        wanted = share * len(some) + taken  # the rounding error of one stratum is carried to the next
        count = int(wanted + 0.5)
        searched[mixed[:count]], taken = True, wanted - count
    split = Split(rows, searched)
    sizes = [size for name in rows.names for size in (split.of(name).sum(), (~split.of(name)).sum())]
    return split if sizes and min(sizes) >= LEAST else None


def _strata(task: Task, rows: HeldOutRows) -> list[np.ndarray]:
    labels: dict[int, str] = {}
    for name, places in zip(rows.names, rows.places, strict=True):
        groups = getattr(task.metrics[name], "groups", None)
        if isinstance(groups, Sequence | np.ndarray) and len(groups) == len(places):
            labels |= {int(row): str(label) for row, label in zip(places, groups, strict=True)}
    strata = []
    for some, _ in rows.parts():
        of_rows = np.array([labels.get(int(row), "") for row in some])
        strata += [some[of_rows == label] for label in np.unique(of_rows)]
    return strata


@dataclass(frozen=True)
class Part:
    """The held-out losses on one part of their rows.

    Args:
        held_out: the model that estimates them at given weights.
        true: name -> true losses at the ends of the recorded runs, float64 [1 + runs], the reference first.
        calibration: name -> calibration fitted on the recorded runs, each predicted from the others.
        spread: name -> standard error over these rows of the difference to the reference; empty for the confirming
            part.
        rows: name -> number of rows.
        missed: errors of the estimated weights of the left-out runs; None without such runs.
    """

    held_out: HeldOut
    true: Mapping[str, np.ndarray]
    calibration: Mapping[str, Calibration]
    spread: Mapping[str, RowSpread]
    rows: Mapping[str, int]
    missed: Missed | None = None

    def pushed(self, theta: Tensor, name: str, without: Sequence[str] | None = None) -> np.ndarray | None:
        """The change of a loss if the weights were off by the error of each left-out run, [n, runs].

        Args:
            theta: weights on the carried coordinates, [n, m].
            name: name of the loss.
            without: for each row of `theta` a run whose states are not used; None uses all.

        Returns:
            The changes; None without left-out runs.
        """
        return None if self.missed is None else self.held_out.pushed(theta, name, self.missed, without)


@dataclass
class Parts:
    """Both parts of the held-out losses of a search.

    Args:
        split: which rows the search sees.
        searched, confirming: the losses on each part.
        confirming_losses: name -> losses of a separate confirming data set at the ends of the recorded runs,
            [runs, rows], the reference first; empty without one.
    """

    split: Split
    searched: Part
    confirming: Part
    confirming_losses: Mapping[str, np.ndarray] = field(default_factory=dict)


Slopes = dict[str, Tensor]  # run -> gradients of the losses on the searched rows at the end of the run, [names, P]


def parts_of(sim: Simulator, task: Task, names: Sequence[str], split: Split, known: Slopes | None = None) -> Parts:
    """The held-out losses on both parts.

    Args:
        sim: the simulator of the run.
        task: the recorded task.
        names: names of held-out losses.
        split: which rows belong to which part.
        known: gradients from an earlier call; those of new runs are added to it.
    """
    held_out = sim.held_out
    assert held_out is not None
    known = {} if known is None else known
    confirming_losses: dict[str, np.ndarray] = {}
    model = task.build_model()
    rows = _some(split.rows, names, split.searched)

    def at(run: str) -> Point:
        return point(task, model, read_weights(sim.store, run))

    every = _of_names(held_out, names)
    if split.confirming:
        searched = every
        other = _other_rows(names, split.confirming)
        slopes = {run: held_out_slopes(task, at(run), other) for run in held_out.runs}
        confirming_losses = {
            name: np.stack([_losses(task, at(run), split.confirming[name]) for run in held_out.runs]) for name in names
        }
        means = {name: losses.mean(1) for name, losses in confirming_losses.items()}
        confirming = _with_slopes(sim, every, slopes, means)
        places = [held_out.runs.index(run) for run in (REFERENCE, *sim.runs)]
        counts = {n: (len(split.of(n)), len(split.confirming[n])) for n in names}
        true = ({n: _recorded(sim, n).mean(1) for n in names}, {n: means[n][places] for n in names})
    else:
        for run in held_out.runs:
            if run not in known:
                known[run] = held_out_slopes(task, at(run), rows)
        at_states = {name: _recorded(sim, name, held_out.runs) for name in names}
        chosen = {name: split.of(name) for name in names}
        means = {name: at_states[name][:, chosen[name]].mean(1) for name in names}
        searched = _with_slopes(sim, every, known, means)
        searched = replace(searched, shares=_shares(sim, split, names, searched=True))
        counts = {name: (int(chosen[name].sum()), int((~chosen[name]).sum())) for name in names}
        confirming = _rest(every, searched, counts, {n: at_states[n][:, ~chosen[n]].mean(1) for n in names})
        confirming = replace(confirming, shares=_shares(sim, split, names, searched=False))
        at_ends = {name: _recorded(sim, name) for name in names}
        true = (
            {name: at_ends[name][:, chosen[name]].mean(1) for name in names},
            {name: at_ends[name][:, ~chosen[name]].mean(1) for name in names},
        )
    spread = _spreads(sim, task, at(REFERENCE), split, names)

    def part(k: int, model: HeldOut, row_errors: Mapping[str, RowSpread]) -> Part:
        scaled = scaled_as_known(model)
        missed = scaled.missed(sim.left_out.runs, sim.left_out.theta) if sim.runs else None
        uncalibrated = Part(scaled, true[k], {}, row_errors, {n: counts[n][k] for n in names}, missed)
        return replace(uncalibrated, calibration=_calibrations(sim, uncalibrated))

    return Parts(split, part(0, searched, spread), part(1, confirming, {}), confirming_losses)


def _some(rows: HeldOutRows, names: Sequence[str], kept: np.ndarray) -> HeldOutRows:
    """Some of the rows, of some sets."""
    counts = rows.counts[[rows.names.index(name) for name in names]]
    chosen = np.flatnonzero(kept & (counts > 0).any(0))
    return HeldOutRows([rows.samples[i] for i in chosen], tuple(names), counts[:, chosen])


def _other_rows(names: Sequence[str], sets: Mapping[str, Any]) -> HeldOutRows:
    samples = [sets[name][i] for name in names for i in range(len(sets[name]))]
    sizes = [len(sets[name]) for name in names]
    counts = np.zeros((len(names), len(samples)), dtype=np.int64)
    for i, end in enumerate(np.cumsum(sizes)):
        counts[i, end - sizes[i] : end] = 1
    return HeldOutRows(samples, tuple(names), counts)


def _losses(task: Task, at: Point, rows: Any) -> np.ndarray:
    return task.held_out_losses(at.model, rows).double().numpy()


def _recorded(sim: Simulator, name: str, runs: Sequence[str] | None = None) -> np.ndarray:
    """Losses of all rows at the ends of runs, the reference first, float64 [1 + runs, rows]."""
    runs = (REFERENCE, *sim.runs) if runs is None else runs
    return np.stack(
        [load_run(sim.store, run, gradients=False).metric_losses(name)[-1].double().numpy() for run in runs]
    )


def _of_names(held_out: HeldOut, names: Sequence[str]) -> HeldOut:
    at = [held_out.names.index(name) for name in names]
    return replace(held_out, names=tuple(names), values=held_out.values[at], slopes=held_out.slopes[at],
                   along=held_out.along[at], shares=held_out.shares[at])  # fmt: skip


def _with_slopes(sim: Simulator, every: HeldOut, slopes: Slopes, values: Mapping[str, np.ndarray]) -> HeldOut:
    """The model with other values and gradients at the known states, and the gradients' products with the displacements
    between those states in all weights."""
    take = sim.plan.coordinates.indices
    along, on = torch.zeros_like(every.along), torch.zeros_like(every.slopes)
    states = [map_theta(sim.store, run) for run in every.runs]
    for low in range(0, sim.plan.size, CHUNK):
        d = torch.from_numpy(np.stack([state[low : low + CHUNK] for state in states])).double()
        d = d - d[0]
        for k, run in enumerate(every.runs):
            along[:, k] += slopes[run][:, low : low + CHUNK].double() @ d.T
    for k, run in enumerate(every.runs):
        on[:, k] = slopes[run] if take is None else slopes[run][:, take]
    return replace(every, values=_stacked(values, every.names), slopes=on, along=along)


def _stacked(values: Mapping[str, np.ndarray], names: Sequence[str]) -> Tensor:
    """Values by name as one tensor, float64 [names, states]."""
    return torch.from_numpy(np.stack([values[name] for name in names])).double()


def _rest(
    every: HeldOut, part: HeldOut, counts: Mapping[str, tuple[int, int]], values: Mapping[str, np.ndarray]
) -> HeldOut:
    """The losses on the rows outside a part, from those on all rows and on the part."""
    sizes = torch.tensor([counts[name] for name in every.names], dtype=torch.float64)
    share = (sizes[:, 0] / sizes.sum(1))[:, None, None]
    slopes = (every.slopes - share.to(every.slopes.dtype) * part.slopes) / (1 - share).to(every.slopes.dtype)
    along = (every.along - share * part.along) / (1 - share)
    return replace(every, values=_stacked(values, every.names), slopes=slopes, along=along)


def _shares(sim: Simulator, split: Split, names: Sequence[str], *, searched: bool) -> Tensor:
    """The weight of each pseudo-gradient in the curvature of the losses on a part, [names, n]."""
    assert sim.held_out is not None
    every = _of_names(sim.held_out, names).shares
    ids = [row for block in sim.plan.held_out_ids for row in block]
    if not ids:
        return every  # an earlier version recorded the run; it did not store which rows the pseudo-gradients are of
    drawn = split.searched[np.repeat(ids, every.shape[1] // len(ids))]
    kept = every * torch.from_numpy(drawn if searched else ~drawn)
    total = kept.sum(1, keepdim=True)
    return torch.where(total > 0, kept * (every.sum(1, keepdim=True) / total.clamp_min(1e-30)), every)


def _spreads(sim: Simulator, task: Task, at: Point, split: Split, names: Sequence[str]) -> dict[str, RowSpread]:
    """Standard errors over the searched rows, from the gradients of a random subset at the end of the reference run."""
    assert sim.held_out is not None
    center, coordinates = sim.held_out.center, sim.plan.coordinates
    most = max(LEAST, min(SPREAD_ROWS, SPREAD_BYTES // (4 * coordinates.carried)))
    used = {name: np.unique(split.rows.places[split.rows.names.index(name)][split.of(name)]) for name in names}
    rng = np.random.default_rng(0)
    drawn = {name: np.sort(rng.permutation(rows)[:most]) for name, rows in used.items()}
    ids = np.unique(np.concatenate(list(drawn.values())))
    rows, collate = split.rows.samples, task.collate or default_collate
    at_once = max(1, min(64, GRADIENT_BYTES // (4 * task.layout.size)))
    gradients = torch.empty(len(ids), coordinates.carried, dtype=center.dtype)
    chunks = sample_gradients(at, lambda some: collate([rows[int(i)] for i in some]), ids, coordinates,
                              micro_batch=at_once)  # fmt: skip
    for start, parts in zip(range(0, len(ids), at_once), chunks, strict=True):
        join(parts, gradients[start : start + at_once])
    return {
        name: row_spread(
            center, gradients[np.searchsorted(ids, drawn[name])], int(split.of(name).sum()), sim.held_out.weight
        )
        for name in names
    }


def _calibrations(sim: Simulator, part: Part) -> dict[str, Calibration]:
    left, names, fitted = sim.left_out, part.held_out.names, {}
    with one_thread():
        raw = part.held_out(left.theta, names, left.runs) if left.runs else {}
        for name in names:
            true, pushed = part.true[name], part.pushed(left.theta, name, left.runs) if left.runs else None
            fitted[name] = fit_calibration(
                raw.get(name, np.zeros(0)), true[1:], float(true[0]), sim.left_out_bearing, pushed=pushed, eps=sim.eps
            )
    return fitted


def checked_confirming(task: Task, names: Sequence[str], confirming: Any) -> dict[str, Any]:
    """Check `confirming=` of `propose`, and return it as metric -> data set.

    Args:
        task: the task that is trained.
        names: metrics of the search.
        confirming: a data set, or metric -> data set.

    Raises:
        OrderscopeError: it is not a data set, is empty, or lacks a metric of the search.
    """
    sets = dict(confirming) if isinstance(confirming, Mapping) else dict.fromkeys(names, confirming)
    for name in names:
        rows = sets.get(name)
        if rows is None or callable(rows) or not hasattr(rows, "__getitem__") or not len(rows):
            raise OrderscopeError(
                f"confirming= without rows for metric {name!r}",
                "a data set like that of the metric, or metric -> data set",
                "change confirming=, or leave it out to confirm on a part of the metric's own rows",
            )
    return {name: sets[name] for name in names}
