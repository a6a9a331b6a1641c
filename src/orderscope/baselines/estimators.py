"""Baseline estimators behind `Simulator.predict(orders, estimator=...)`, to be compared with the carried one.

impulse   first-order impulse weights on the stored sketch (`baselines.impulse`); free; "replay" is its former name
fut       the seed method's first-order expansion (`baselines.fut`); about as many runs as there are steps
fut2      its second-order expansion; the same
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np

from orderscope.baselines.fut import ExactUpdates, ReferencePath, SeedOptions, SeedTable, replay_seed
from orderscope.baselines.impulse import impulse_values
from orderscope.engine.at_once import at_once
from orderscope.engine.batches import Batches
from orderscope.engine.held_out import HeldOut
from orderscope.engine.metrics import evaluated
from orderscope.engine.units import units_of
from orderscope.engine.window import Window
from orderscope.errors import OrderscopeError, without_task
from orderscope.sketching import SketchPlan
from orderscope.store import RunStore
from orderscope.task import Task

Answer = tuple[dict[str, np.ndarray], float]


class Recorded(Protocol):
    """What a baseline needs of the Simulator."""

    store: RunStore
    task: Task | None
    plan: SketchPlan
    window: Window

    @property
    def reference(self) -> dict[str, float]: ...

    @cached_property
    def held_out(self) -> HeldOut | None: ...


def impulse(sim: Recorded, orders: np.ndarray, names: tuple[str, ...], rates: np.ndarray | None) -> Answer:
    """First-order impulse weights, from the stored sketch alone.

    Args:
        sim: the run, opened.
        orders: sample ids, [n, steps, batch].
        names: metrics; one without a stored gradient, as any that is no held-out set, comes out as not a number.
        rates: learning rates instead of the recorded ones, [n, steps, groups].

    Returns:
        name -> float64 [n], where the reference order gives the recorded value exactly; cost in runs, which is zero.

    Raises:
        OrderscopeError: none of the metrics has a stored gradient.
    """
    held_out = sim.held_out
    stored = [name for name in names if held_out is not None and name in held_out.names]
    if not stored:
        raise OrderscopeError(
            f"no stored gradient of {', '.join(names) or 'any metric'}, which the estimator 'impulse' needs",
            "a metric that is a held-out set: " + (", ".join(sim.plan.metrics) or "none was recorded"),
            "ask for one of these, or use another estimator",
        )
    units = units_of(sim.window, Batches(sim.window.order), orders)
    values = {name: np.full(len(orders), np.nan) for name in names}
    for name in stored:
        assert held_out is not None
        change = impulse_values(sim.store, sim.window, units, held_out.expansion(name).gradient, rates)
        values[name] = sim.reference[name] + change
    return values, 0.0


def seed_estimate(
    sim: Recorded, orders: np.ndarray, names: tuple[str, ...], rates: np.ndarray | None, options: SeedOptions
) -> Answer:
    """The seed method with any choices; arguments and result as `impulse`.

    The reference run is trained again and the table made on first use, and kept as long as the Simulator is. The cost
    of an answer includes the table it rests on.

    Args:
        sim: the run, opened.
        orders: sample ids, [n, steps, batch].
        names: metrics.
        rates: learning rates instead of the recorded ones, [n, steps, groups]; None for those.
        options: the method's choices.

    Raises:
        OrderscopeError: the Simulator has no task.
    """
    if sim.task is None:
        why = "since a gradient is needed at every pair of a step and a batch"
        raise without_task(why, "the seed method on a Simulator")
    made = _made(sim, sim.task, options)
    index, new = Batches(sim.window.order).index(orders)
    model = evaluated(sim.task)
    values: dict[str, list[np.ndarray]] = {name: [] for name in names}
    cost = made.cost
    for rows in at_once(len(orders), sim.task.layout.size):
        theta, spent = replay_seed(made, index[rows], new, None if rates is None else rates[rows])
        cost += spent
        for name, found in model(theta, names).items():
            values[name].append(found)
    return {name: np.concatenate(parts) for name, parts in values.items()}, cost


def fut(sim: Recorded, orders: np.ndarray, names: tuple[str, ...], rates: np.ndarray | None) -> Answer:
    """The seed method's first-order expansion, as the paper has it; arguments and result as `impulse`."""
    return seed_estimate(sim, orders, names, rates, SeedOptions(order=1))


def fut2(sim: Recorded, orders: np.ndarray, names: tuple[str, ...], rates: np.ndarray | None) -> Answer:
    """The seed method's second-order expansion, as the paper has it; arguments and result as `impulse`."""
    return seed_estimate(sim, orders, names, rates, SeedOptions(order=2))


ESTIMATORS: dict[str, Callable[[Recorded, np.ndarray, tuple[str, ...], np.ndarray | None], Answer]] = {
    "impulse": impulse,
    "replay": impulse,
    "fut": fut,
    "fut2": fut2,
}

_paths: WeakKeyDictionary[Recorded, ReferencePath] = WeakKeyDictionary()
_tables: WeakKeyDictionary[Recorded, dict[SeedOptions, SeedTable]] = WeakKeyDictionary()


def _made(sim: Recorded, task: Task, options: SeedOptions) -> SeedTable | ExactUpdates:
    path = _paths.get(sim)
    if path is None:
        path = _paths[sim] = ReferencePath(task, sim.window.dynamics)
    if options.derivative == "exact":
        return ExactUpdates(path, options)
    tables = _tables.setdefault(sim, {})
    if options not in tables:
        tables[options] = SeedTable(path, options)
    return tables[options]
