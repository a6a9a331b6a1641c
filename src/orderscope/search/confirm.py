"""Train candidate orders to confirm them, and measure what they gain on each part of the held-out rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from orderscope.errors import OrderscopeError
from orderscope.recording.record import add_runs
from orderscope.search.objective import Objective
from orderscope.search.parts import Parts
from orderscope.search.portfolio import Progress
from orderscope.simulation.foretold import foretell
from orderscope.simulation.simulator import Simulator
from orderscope.simulation.verdict import losses_of
from orderscope.store import RunStore
from orderscope.store.names import REFERENCE
from orderscope.task import Task
from orderscope.training import load_run, true_runs
from orderscope.training.retrain import retrain

CONFIRMED = "confirmed-"


@dataclass(frozen=True)
class Trained:
    """The result of training an order.

    Args:
        metrics: name -> true value on all held-out rows.
        losses: name -> loss of each held-out row, float64 [rows].
        confirming: name -> loss of each row of a separate data set given as `confirming=`; empty without one.
    """

    metrics: dict[str, float]
    losses: dict[str, np.ndarray]
    confirming: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class PartGain:
    """What an order gains over the reference on one part of the held-out rows.

    Args:
        part: "confirming" or "searched".
        rows: how many rows.
        reference: the metric of the recorded order on them.
        predicted, error: predicted metric of this order, and half-width of its 90 % interval.
        confirmed: true value from retraining, or None.
        gain: improvement over the reference: the true one where the order was trained, else the predicted one.
        standard_error: of the true gain under resampling of the rows (paired between the two orders), or None.
    """

    part: str
    rows: int
    reference: float
    predicted: float
    error: float
    confirmed: float | None
    gain: float
    standard_error: float | None


def part_gains(
    objective: Objective,
    parts: Parts | None,
    estimates: Mapping[str, tuple[float, float]],
    trained: Trained | None,
    reference: Trained,
) -> list[PartGain]:
    """The gains of one order on both parts, the confirming part first; an empty list if the rows are not split.

    Args:
        objective: the quantity that is minimised.
        parts: searched and confirming rows, or None.
        estimates: "confirming" and "searched" -> predicted value and error, in the metric's own sign.
        trained: the result of training the order; None if it was not trained.
        reference: the result of the recorded order.
    """
    if parts is None:
        return []
    gains = []
    for name, part in (("confirming", parts.confirming), ("searched", parts.searched)):
        before = losses_on(objective, parts, reference, name)
        base = float(objective.reported({n: v.mean() for n, v in before.items()}))
        value, error = estimates[name]
        true = width = None
        if trained is not None:
            after = losses_on(objective, parts, trained, name)
            true = float(objective.reported({n: v.mean() for n, v in after.items()}))
            width = standard_error(objective, before, after)
        shown = value if true is None else true
        rows = max(part.rows.values())
        gains.append(PartGain(name, rows, base, value, error, true, objective.sign * (base - shown), width))
    return gains


def standard_error(
    objective: Objective, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> float | None:
    """Standard error over rows of the difference in the objective between two orders, the rows being paired. For
    several metrics an upper bound: their errors are added.

    Args:
        objective: the quantity that is minimised.
        before: losses of the rows under one order, metric -> [rows].
        after: losses of the same rows under the other.
    """
    total = 0.0
    for name, weight in objective.weights.items():
        if name not in before or len(before[name]) < 2:
            return None
        difference = after[name] - before[name]
        total += abs(weight) * float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return total


def losses_on(objective: Objective, parts: Parts, trained: Trained, part: str) -> dict[str, np.ndarray]:
    """Metric -> loss of each row of one part, [rows]; for a metric that is not a mean over rows its value, [1].

    Args:
        objective: the quantity that is minimised, for the names of its metrics.
        parts: searched and confirming rows.
        trained: the result of training the order.
        part: "confirming" or "searched".
    """
    losses = {}
    for name in objective.names:
        if name not in parts.searched.held_out.names:
            losses[name] = np.array([trained.metrics[name]])
        elif part == "confirming" and trained.confirming:
            losses[name] = trained.confirming[name]
        else:
            searched = parts.split.of(name)
            losses[name] = trained.losses[name][searched if part == "searched" else ~searched]
    return losses


def recorded(sim: Simulator, task: Task | None, parts: Parts | None) -> Trained:
    """The result of the reference run, as recorded.

    Args:
        sim: the simulator of the run.
        task: the recorded task, or None.
        parts: searched and confirming rows; None where the rows are not split.
    """
    losses = {name: losses_of(sim, name, [REFERENCE])[0] for name in sim.losses}
    confirming = {}
    if task is not None and parts is not None and parts.split.confirming:
        confirming = {name: values[0] for name, values in parts.confirming_losses.items()}
    return Trained(dict(sim.reference), losses, confirming)


def train_orders(
    sim: Simulator,
    task: Task,
    orders: list[np.ndarray],
    parts: Parts | None,
    progress: Progress | None,
    notes: list[str],
) -> dict[bytes, Trained]:
    """Train orders, each distinct one once. Where the run can be written to they are recorded in it; later predictions
    use them after `add_trained_runs`.

    Args:
        sim: the simulator of the run.
        task: the task to train.
        orders: sample ids, [steps, batch] each.
        parts: searched and confirming rows; None where the rows are not split.
        progress: called as `progress(stage, done, total)`.
        notes: remarks for the reader of the proposal; appended to.

    Returns:
        Bytes of the order -> its result.
    """
    distinct = {order.tobytes(): order for order in orders}
    results: dict[bytes, Trained] = {}
    keep = Path(sim.path).is_dir() and (parts is None or not parts.split.confirming)
    if distinct:  # predictions are stored before the true values can influence them
        keep = foretell(sim, list(distinct.values()), allow_other_samples=True).kept and keep
    try:
        if progress is not None and distinct:
            progress("confirm", 0, len(distinct))
        for done, (key, order) in enumerate(distinct.items(), start=1):
            trained = _train_in_run(sim, task, order) if keep else None
            results[key] = trained or _train_only(task, order, parts)
            if progress is not None:
                progress("confirm", done, len(distinct))
    except KeyboardInterrupt:
        notes.append("interrupted: not all candidates were trained")
    return results


def add_trained_runs(sim: Simulator, task: Task) -> None:
    """Add the runs that `train_orders` recorded to the table, so that a simulator opened from now on uses them.

    Args:
        sim: the simulator of the run.
        task: the task that was trained.
    """
    with suppress(OrderscopeError, OSError):  # another process is writing the run, or it is read-only
        add_runs(task, sim.path, [], CONFIRMED, jobs=1)


def _train_only(task: Task, order: np.ndarray, parts: Parts | None) -> Trained:
    sets = dict(parts.split.confirming) if parts is not None else {}
    true = retrain(task, order, allow_other_samples=True, keep_parameters=bool(sets))
    metrics = {name: float(values[0]) for name, values in true.metrics.items()}
    losses = {name: values[0].astype(np.float64) for name, values in true.losses.items()}
    confirming = {}
    if sets and true.parameters is not None:
        from orderscope.sketching.gradients import set_parameters

        model = task.build_model()
        set_parameters(model, task.layout, true.parameters[0])
        confirming = {name: task.held_out_losses(model, rows).double().numpy() for name, rows in sets.items()}
    return Trained(metrics, losses, confirming)


def _train_in_run(sim: Simulator, task: Task, order: np.ndarray) -> Trained | None:
    with suppress(OrderscopeError, OSError):  # another process writes the run, it is read-only, or the order diverges
        metrics = add_runs(task, sim.path, [order], CONFIRMED, jobs=1, tell=False)
        with RunStore.open(sim.path) as store:
            runs = (load_run(store, run, gradients=False) for run in true_runs(store))
            run = next(run for run in runs if np.array_equal(run.order, order))
            losses = {name: run.metric_losses(name)[-1].double().numpy() for name in sim.losses}
        return Trained({name: float(values[0]) for name, values in metrics.items()}, losses)
    return None
