"""Where in a run do predictions go wrong? Each true run is predicted without what it left behind, and its recorded
gradients are compared with the predicted ones step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from orderscope.engine.step_errors import mean_slope
from orderscope.engine.step_errors import step_errors as errors_of
from orderscope.engine.threads import one_thread
from orderscope.errors import OrderscopeError
from orderscope.recording.costs import cpu_seconds, training_seconds
from orderscope.simulation.simulator import Simulator
from orderscope.studies.step_map import TABLES, StepErrorMap, held_out_loss


def step_errors(
    sim: Simulator,
    metric: str | None = None,
    runs: Sequence[str] | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> StepErrorMap:
    """Find at which steps the predicted gradients of left-out runs are wrong, and what that does to a metric.

    Each run is replayed once forwards and swept once backwards; no model is run. Runs of regrouped samples are left
    out, since the gradients of their batches are not kept: `without` names them.

    Args:
        sim: of the run; it needs no task.
        metric: a held-out loss; the task's first by default.
        runs: names of true runs, of `sim.runs`; all by default.
        progress: called as `progress(stage, done, total)`.

    Returns:
        Errors by run and step, and a summary in ten segments, `StepErrorMap.segments`.

    Raises:
        OrderscopeError: for a metric that is no held-out loss, a run that is no true run under another order, or a
            recording without one.
    """
    held_out, name = sim.held_out, held_out_loss(sim.description, metric)
    chosen = _chosen(sim, runs)
    assert held_out is not None  # there is a held-out loss
    began = cpu_seconds()
    shape = len(chosen), sim.window.steps
    tables = {column: np.full(shape, np.nan) for column in TABLES}
    kept = []
    for i, run in enumerate(chosen):
        with one_thread():
            found = errors_of(sim.window, mean_slope(held_out, name, run), run, sim.run_orders[sim.runs.index(run)])
        for column, values in tables.items():
            values[i, found.steps] = getattr(found, column)
        if len(found.steps):
            kept.append(i)
        if progress is not None:
            progress("compare gradients of left-out runs", i + 1, len(chosen))
    rows = [sim.runs.index(chosen[i]) for i in kept]
    training, true = training_seconds(sim.store), sim.run_truth[name][rows]
    return StepErrorMap(
        metric=name,
        runs=tuple(chosen[i] for i in kept),
        without=tuple(run for i, run in enumerate(chosen) if i not in kept),
        **{column: values[kept] for column, values in tables.items()},
        error=sim.left_out.values[name][rows] - true,
        weights=held_out(sim.left_out.replayed[rows], [name])[name] - true,
        cost=(cpu_seconds() - began) / training if training else math.nan,
    )


def _chosen(sim: Simulator, runs: Sequence[str] | None) -> list[str]:
    if not sim.runs:
        raise OrderscopeError(
            "a recording without true runs under other orders",
            "at least one, to be predicted without its own states",
            "record with probes, or train some orders: orderscope validate RUN",
        )
    if isinstance(runs, str):
        runs = [runs]
    for run in runs or ():
        if run not in sim.runs:
            raise OrderscopeError(f"run {run!r}", "one of " + ", ".join(sim.runs), "name a true run, of sim.runs")
    return list(sim.runs if runs is None else dict.fromkeys(runs))
