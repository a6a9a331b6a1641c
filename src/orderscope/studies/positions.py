"""What position does to memory: the final model's loss on a recorded batch, were it trained at another position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.at_once import at_once
from orderscope.engine.calibration import Bearing, Calibration, fit_calibration
from orderscope.errors import OrderscopeError, check_whole, unknown_metric, without_task
from orderscope.simulation import trusted
from orderscope.simulation.simulator import Simulator
from orderscope.sketching.gradients import set_parameters
from orderscope.store.names import REFERENCE
from orderscope.studies.heatmap import Heat as Heat
from orderscope.task import Task
from orderscope.training import load_run
from orderscope.training.retrain import retrain

PLACES = 12  # positions of a map by default
NEIGHBOURS = 32  # other batches on which the loss of the neighbours is averaged
RIDGE = 0.1  # of the regression on the recorded runs' ends, in units of their mean squared distance
Progress = Callable[[str, int, int], None]


def positions(
    sim: Simulator,
    units: Sequence[int] | np.ndarray | None = None,
    *,
    places: Sequence[int] | np.ndarray | None = None,
    metric: str | None = None,
    verify: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Heat:
    """Estimate the final loss on recorded batches as a function of when they were trained.

    Unit i at place j is the order `move:i,j`. Its replay gives final weights, and the real model's loss there; where
    only some coordinates are carried, the loss is expanded around the end of the reference run, with the batch's own
    gradient and its groups' curvature, and corrected by what is known at the ends of the other runs. Error bars come
    from the probes: their final losses on the same batches are known.

    Args:
        sim: the run, opened with its task.
        units: recorded steps; all by default.
        places: positions; by default 12 or so, evenly spaced, the first and the last among them.
        metric: what `held_out` estimates; the first metric by default.
        verify: cells off the diagonal that are truly trained, drawn at random; one run each.
        seed: of that draw.
        progress: called as `progress("positions", done, total)`.

    Raises:
        OrderscopeError: without the task, or for units, places or a metric that are not there.
    """
    if sim.task is None:
        raise without_task("for the losses of its samples")
    check_whole(0, verify=verify)
    steps = len(sim.order)
    chosen = _steps("units", np.arange(steps) if units is None else units, steps)
    spots = np.linspace(0, steps - 1, min(PLACES, steps)).round() if places is None else places
    spots = _steps("places", spots, steps)
    name = _metric(sim, metric)
    losses = _Losses(sim, sim.task)
    recorded = losses.recorded(REFERENCE, chosen)
    own = _calibrated(sim, losses, chosen, recorded, progress)
    cells = [(i, j) for i in range(len(chosen)) for j in range(len(spots))]
    value, error, held_out, neighbours, outside = (np.empty((len(chosen), len(spots))) for _ in range(5))
    if progress is not None:
        progress("positions", 0, len(cells))
    for rows in at_once(len(cells), sim.window.coords):
        part = cells[rows]
        orders = np.stack([sim.order[_moved(steps, int(chosen[i]), int(spots[j]))] for i, j in part])
        replayed = sim.replay_of(orders)
        at = sim.bearing(replayed)
        metrics = sim.calibration[name].apply(sim.metric_model(replayed.theta, (name,))[name], at)[0]
        for c, (i, j) in enumerate(part):
            raw = losses(replayed.theta[c], int(chosen[i]))
            (value[i, j],), (error[i, j],) = own[i].apply(np.array([raw]), at[c : c + 1])
            held_out[i, j], outside[i, j] = metrics[c], at.outside[c]
            neighbours[i, j] = losses.neighbours(replayed.theta[c], int(chosen[i]))
            if progress is not None:
                progress("positions", rows.start + c + 1, len(cells))
    here = chosen[:, None] == spots[None]
    value, error = np.where(here, recorded[:, None], value), np.where(here, 0.0, error)
    held_out = np.where(here, sim.reference[name], held_out)
    trust = np.stack([_trusted(sim, own[i], value[i], error[i], outside[i], here[i]) for i in range(len(chosen))])
    cells, true, truly_held_out = _trained(sim, sim.task, chosen, spots, name, losses, int(verify), seed, progress)
    return Heat(
        chosen, spots, chosen.copy(), value, error, recorded, held_out, neighbours, name, cells, true, truly_held_out,
        trust,
    )  # fmt: skip


def _trusted(
    sim: Simulator, fitted: Calibration, value: np.ndarray, error: np.ndarray, outside: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """Whether the losses of a unit at its places are to be trusted, bool [k]: as the metrics of an order are."""
    doubts = {trusted.TOO_FAR: ~trusted.near_anchors(outside, sim.calibration.values())}
    own, none = "the batch", np.zeros(len(value))
    return trusted.judge(doubts, {own: value}, {own: error}, {own: fitted}, none, none > 0, known).trusted


def _trained(
    sim: Simulator,
    task: Task,
    units: np.ndarray,
    places: np.ndarray,
    metric: str,
    losses: _Losses,
    count: int,
    seed: int,
    progress: Progress | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some cells off the diagonal [c, 2], the true loss on their unit [c], and the true metric [c]."""
    cells = np.argwhere(units[:, None] != places[None])
    drawn = np.random.default_rng(seed).permutation(len(cells))[:count]
    cells, own, metrics = cells[np.sort(drawn)], [], []
    if progress is not None and len(cells):
        progress("train cells", 0, len(cells))
    for done, (i, j) in enumerate(cells, start=1):
        order = sim.order[_moved(len(sim.order), int(units[i]), int(places[j]))]
        truth = retrain(task, order, keep_parameters=True)
        assert truth.parameters is not None
        own.append(losses.at(truth.parameters[0], int(units[i])))
        metrics.append(float(truth.metrics[metric][0]))
        if progress is not None:
            progress("train cells", done, len(cells))
    return cells, np.array(own), np.array(metrics)


class _Losses:
    """Mean loss on recorded batches at estimated or recorded weights."""

    def __init__(self, sim: Simulator, task: Task) -> None:
        self._sim, self._task = sim, task
        self._model = task.build_model()
        self._batches: dict[tuple[str, int], Any] = {}
        self._final = sim.window.final
        self._known: dict[int, tuple[float, np.ndarray]] = {}

    def __call__(self, theta: Tensor, unit: int) -> float:
        """At weights on the carried coordinates, [m]."""
        return self.at(theta, unit) if self._sim.exact else self._expanded(theta, unit)

    def recorded(self, run: str, units: np.ndarray) -> np.ndarray:
        """At the end of a recorded run, [units]."""
        theta = load_run(self._sim.store, run).theta()[-1]
        return np.array([self.at(theta, int(u)) for u in units])

    def neighbours(self, theta: Tensor, unit: int) -> float:
        """Of other samples of the unit's main group, at weights on the carried coordinates."""
        ids = self._neighbours(unit)
        if not self._sim.exact or not len(ids):
            return float("nan")
        return self._real(theta, ("near", unit), ids)

    def at(self, theta: Tensor, unit: int) -> float:
        """At all weights, [P]."""
        return self._real(theta, ("own", unit), self._sim.order[unit])

    def _neighbours(self, unit: int) -> np.ndarray:
        codes, order = self._sim.window.group_codes, self._sim.order
        main = np.bincount(codes[order[unit]]).argmax()
        used = np.unique(order)
        others = np.setdiff1d(used[codes[used] == main], order[unit])
        return np.random.default_rng(unit).permutation(others)[:NEIGHBOURS]

    def _real(self, theta: Tensor, key: tuple[str, int], ids: np.ndarray) -> float:
        if key not in self._batches:
            self._batches[key] = self._task.batch(ids)
        set_parameters(self._model, self._task.layout, theta)
        with torch.no_grad():
            return float(self._task.loss(self._model, self._batches[key]).double().mean())

    def _expanded(self, theta: Tensor, unit: int) -> float:
        """By the batch's expansion E around the end of the reference run, L + g . d + 1/2 d C d, and what that misses
        at the ends of the other recorded runs, in proportion to how much the weights are theirs:

            L(theta) ~ E(theta) + sum_k w_k [ L(theta_k) - E(theta_k) ],    w by ridge regression on displacements.
        """
        if unit not in self._known:
            ends = self._ends
            true = np.array([float(self.recorded(run, np.array([unit]))[0]) for run in ends[0]])
            self._known[unit] = float(true[0]), true - true[0] - self._bent(ends[1], unit).numpy()
        value, missed = self._known[unit]
        weights = self._weights(theta)
        return value + float(self._bent(theta[None], unit)[0]) + float(weights @ missed)

    @cached_property
    def _ends(self) -> tuple[list[str], Tensor]:
        """The recorded runs, the reference first, and the carried weights where they ended, [runs, m]."""
        runs, take = [REFERENCE, *self._sim.runs], self._sim.plan.coordinates.indices
        return runs, torch.stack([load_run(self._sim.store, run, gradients=False).theta(take)[-1] for run in runs])

    def _weights(self, theta: Tensor) -> np.ndarray:
        """Of weights among the runs' ends, [runs]: ridge regression on displacements from the reference's."""
        d, spread = theta - self._final, self._ends[1][1:] - self._final
        gram = (spread @ spread.T).double()
        if not len(spread):
            return np.zeros(1)
        ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(spread), dtype=torch.float64)
        share = torch.linalg.solve(gram + ridge, (spread @ d).double()).numpy()
        return np.concatenate([[0.0], share])  # nothing is missed at the reference's end

    def _bent(self, theta: Tensor, unit: int) -> Tensor:
        """g . d + 1/2 d C d of a batch, float64 [rows]."""
        window = self._sim.window
        end = max(i for i in range(window.anchors.shared) if window.anchor_runs[i] == REFERENCE)
        d = theta - self._final
        along = (d @ window.gradients(unit)[end]).double() * window.dynamics.weight
        return along + 0.5 * window.curvature(window.fractions[unit]).square(d)


def _calibrated(
    sim: Simulator, losses: _Losses, units: np.ndarray, recorded: np.ndarray, progress: Progress | None
) -> list[Calibration]:
    """One calibration a unit, on the probes predicted without their own anchors."""
    if not sim.runs:
        nowhere = Bearing(np.zeros(0), np.zeros((0, 0)), np.zeros(0), np.zeros(0, dtype=bool))
        return [fit_calibration(np.zeros(0), np.zeros(0), float(r), nowhere) for r in recorded]
    out = sim.left_out
    at, columns, found = sim.left_out_bearing, [], []
    parts = len(sim.runs) + len(units)
    if progress is not None:
        progress("measure the batches", 0, parts)
    for name in sim.runs:
        columns.append(losses.recorded(name, units))
        if progress is not None:
            progress("measure the batches", len(columns), parts)
    true = np.stack(columns, axis=1)
    for i, unit in enumerate(units):
        raw = np.array([losses(theta, int(unit)) for theta in out.theta])
        found.append(fit_calibration(raw, true[i], float(recorded[i]), at, eps=sim.eps))
        if progress is not None:
            progress("measure the batches", len(columns) + len(found), parts)
    return found


def _moved(steps: int, unit: int, place: int) -> np.ndarray:
    return np.insert(np.delete(np.arange(steps), unit), place, unit)


def _steps(name: str, given: Sequence[int] | np.ndarray, steps: int) -> np.ndarray:
    array = np.asarray(given)
    whole = array.ndim == 1 and len(array) and bool(np.all(array == array.astype(np.int64)))
    if not whole or array.min() < 0 or array.max() >= steps:
        raise OrderscopeError(f"{name}={np.ravel(array).tolist()}", f"steps from 0 to {steps - 1}", f"change {name}=")
    return np.unique(array.astype(np.int64))


def _metric(sim: Simulator, metric: str | None) -> str:
    names = sim.metric_names
    if not names or (metric is not None and metric not in names):
        raise unknown_metric(metric, names)
    return metric or names[0]
