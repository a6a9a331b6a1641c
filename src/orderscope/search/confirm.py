"""Orders truly trained to confirm them, and what they gain on either part of the held-out rows."""

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
    """What training an order gave.

    Args:
        metrics: name -> true value on all rows.
        losses: name -> losses of the rows, float64 [rows]; of a confirming data set of its own under `confirming`.
        confirming: name -> losses of the rows of another data set that was named to confirm on.
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
        predicted, error: of this order, and half-width of the 90 % interval.
        confirmed: true value from retraining, or None.
        gain: how much better than the reference, the true gain where it was trained, else the predicted one.
        standard_error: of the true gain over another choice of as many rows, the rows being paired, or None.
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
    told: Mapping[str, tuple[float, float]],
    own: Trained | None,
    reference: Trained,
) -> list[PartGain]:
    """Of one order, the confirming part first; none where there are no parts.

    Args:
        objective: what is to be lowered.
        parts: searched and confirming rows, or None.
        told: "confirming" and "searched" -> predicted value and error, as a reader is shown them.
        own: what training the order gave; None where it was not trained.
        reference: what the recorded order gave.
    """
    if parts is None:
        return []
    found = []
    for name, part in (("confirming", parts.confirming), ("searched", parts.searched)):
        before = losses_on(objective, parts, reference, name)
        base = float(objective.told({n: v.mean() for n, v in before.items()}))
        value, error = told[name]
        true = width = None
        if own is not None:
            after = losses_on(objective, parts, own, name)
            true = float(objective.told({n: v.mean() for n, v in after.items()}))
            width = standard_error(objective, before, after)
        shown = value if true is None else true
        rows = max(part.rows.values())
        found.append(PartGain(name, rows, base, value, error, true, objective.sign * (base - shown), width))
    return found


def standard_error(
    objective: Objective, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> float | None:
    """Of the difference of the objective between two orders over rows, which are paired; of several metrics at most
    that much.

    Args:
        objective: what is to be lowered.
        before: losses of the rows under one order, metric -> [rows].
        after: losses of the same rows under the other.
    """
    total = 0.0
    for name, weight in objective.weights.items():
        if name not in before or len(before[name]) < 2:
            return None
        apart = after[name] - before[name]
        total += abs(weight) * float(apart.std(ddof=1)) / math.sqrt(len(apart))
    return total


def losses_on(objective: Objective, parts: Parts, trained: Trained, part: str) -> dict[str, np.ndarray]:
    """Losses on a part by metric, [rows]; of a metric that has no rows its value, [1].

    Args:
        objective: its metrics.
        parts: searched and confirming rows.
        trained: what training the order gave.
        part: "confirming" or "searched".
    """
    found = {}
    for name in objective.names:
        if name not in parts.searched.held_out.names:
            found[name] = np.array([trained.metrics[name]])
        elif part == "confirming" and trained.confirming:
            found[name] = trained.confirming[name]
        else:
            mine = parts.split.of(name)
            found[name] = trained.losses[name][mine if part == "searched" else ~mine]
    return found


def recorded(sim: Simulator, task: Task | None, parts: Parts | None) -> Trained:
    """The reference as it was recorded.

    Args:
        sim: the run, opened.
        task: what was recorded, or None.
        parts: searched and confirming rows; None where the rows are not split.
    """
    losses = {name: losses_of(sim, name, [REFERENCE])[0] for name in sim.losses}
    apart = {}
    if task is not None and parts is not None and parts.split.confirming:
        apart = {name: values[0] for name, values in parts.confirming_losses.items()}
    return Trained(dict(sim.reference), losses, apart)


def train_orders(
    sim: Simulator,
    task: Task,
    orders: list[np.ndarray],
    parts: Parts | None,
    progress: Progress | None,
    notes: list[str],
) -> dict[bytes, Trained]:
    """Truly train orders, each once. Where the run can be written to they are recorded in it; `tell_runs` makes them
    part of what later predictions know.

    Args:
        sim: the run, opened.
        task: what is trained.
        orders: sample ids, [steps, batch] each.
        parts: searched and confirming rows; None where the rows are not split.
        progress: called as `progress(stage, done, total)`.
        notes: what a reader should know; added to.
    """
    distinct = {order.tobytes(): order for order in orders}
    found: dict[bytes, Trained] = {}
    keep = Path(sim.path).is_dir() and (parts is None or not parts.split.confirming)
    if distinct:  # what is predicted is put down before the run knows better
        keep = foretell(sim, list(distinct.values()), allow_other_samples=True).kept and keep
    try:
        if progress is not None and distinct:
            progress("confirm", 0, len(distinct))
        for done, (key, order) in enumerate(distinct.items(), start=1):
            own = _kept(sim, task, order) if keep else None
            found[key] = own or _trained(task, order, parts)
            if progress is not None:
                progress("confirm", done, len(distinct))
    except KeyboardInterrupt:
        notes.append("interrupted: not all candidates were trained")
    return found


def tell_runs(sim: Simulator, task: Task) -> None:
    """Make what `train_orders` recorded part of what a simulator knows that is opened from now on.

    Args:
        sim: the run, opened.
        task: what was trained.
    """
    with suppress(OrderscopeError, OSError):  # being written, or not to be written
        add_runs(task, sim.path, [], CONFIRMED, jobs=1)


def _trained(task: Task, order: np.ndarray, parts: Parts | None) -> Trained:
    sets = dict(parts.split.confirming) if parts is not None else {}
    true = retrain(task, order, allow_other_samples=True, keep_parameters=bool(sets))
    metrics = {name: float(values[0]) for name, values in true.metrics.items()}
    losses = {name: values[0].astype(np.float64) for name, values in true.losses.items()}
    apart = {}
    if sets and true.parameters is not None:
        from orderscope.sketching.gradients import set_parameters

        model = task.build_model()
        set_parameters(model, task.layout, true.parameters[0])
        apart = {name: task.held_out_losses(model, rows).double().numpy() for name, rows in sets.items()}
    return Trained(metrics, losses, apart)


def _kept(sim: Simulator, task: Task, order: np.ndarray) -> Trained | None:
    with suppress(OrderscopeError, OSError):  # being written, not to be written, or the order diverges
        metrics = add_runs(task, sim.path, [order], CONFIRMED, jobs=1, tell=False)
        with RunStore.open(sim.path) as store:
            runs = (load_run(store, run, gradients=False) for run in true_runs(store))
            run = next(run for run in runs if np.array_equal(run.order, order))
            losses = {name: run.metric_losses(name)[-1].double().numpy() for name in sim.losses}
        return Trained({name: float(values[0]) for name, values in metrics.items()}, losses)
    return None
