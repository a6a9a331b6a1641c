"""The data of a run and the results of queries as plain tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from orderscope.answers.asked import asked_orders, resolve_order
from orderscope.answers.known import known_truth
from orderscope.answers.stored import POSITIONS as MAPPED
from orderscope.answers.stored import PROPOSALS as PROPOSED
from orderscope.answers.stored import VALIDATIONS as VALIDATED
from orderscope.answers.stored import heats, proposals, validations
from orderscope.answers.trials import COLUMNS as TRIALS
from orderscope.answers.trials import stored_trials, trial_row
from orderscope.errors import OrderscopeError
from orderscope.store.names import REFERENCE
from orderscope.text import plain
from orderscope.training import load_run

if TYPE_CHECKING:
    from orderscope.simulation.simulator import Simulator

Row = tuple[str | int | float | bool | None, ...]


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Args:
        columns: name -> type of its values; any of them may be None, where it is not known.
        rows: with one value a column.
    """

    columns: dict[str, type]
    rows: list[Row]

    def records(self) -> list[dict[str, Any]]:
        """The rows as dictionaries, column -> value; `pandas.DataFrame(table.records())` is the table there."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def __str__(self) -> str:
        """Aligned columns, numbers to five figures."""
        shown = [list(self.columns), *([_shown(value) for value in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown
        )


def tables(sim: Simulator) -> tuple[dict[str, Table], list[str]]:
    """All tables by name, and the queried orders that are left out, each with the reason."""
    asked, left_out = _asked(sim)
    return {
        "orders": make_table(ORDERS, [*_recorded(sim), *asked, *_validated(sim)]),
        "proposals": make_table(PROPOSALS, _proposals(sim)),
        "positions": make_table(POSITIONS, _positions(sim)),
        "curves": make_table(CURVES, _curves(sim)),
        "steps": make_table(STEPS, _steps(sim)),
        "trials": make_table(TRIALS, _trials(sim)),
    }, left_out


# `kind` is "recorded" (the reference and the probes), "asked" (predicted as of now) or "validated" (predicted before it
# was trained).
ORDERS: dict[str, type] = {
    "kind": str, "order": str, "metric": str, "value": float, "error": float, "difference": float, "trusted": bool,
    "true": float,
}  # fmt: skip
PROPOSALS: dict[str, type] = {
    "proposal": str, "metric": str, "rank": int, "order": str, "found_by": str, "predicted": float, "error": float,
    "true": float,
}  # fmt: skip
POSITIONS: dict[str, type] = {
    "map": str, "batch": int, "recorded_at": int, "place": int, "loss": float, "error": float, "recorded_loss": float,
    "metric": str, "metric_value": float, "neighbours_loss": float, "true_loss": float, "true_metric_value": float,
}  # fmt: skip
CURVES: dict[str, type] = {"run": str, "step": int, "metric": str, "value": float}
STEPS: dict[str, type] = {"step": int, "loss": float}


def make_table(columns: dict[str, type], rows: Iterable[Row]) -> Table:
    """A table of plain values: text without control characters, and None for NaN.

    Args:
        columns: name of each column -> type of its values.
        rows: values in the order of the columns.
    """
    return Table(columns, [tuple(map(_plain, row)) for row in rows])


def _plain(value: Any) -> Any:
    """Text without control characters, and None for numbers that are not finite."""
    if isinstance(value, str):
        return plain(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _recorded(sim: Simulator) -> Iterator[Row]:
    for name, run in [(REFERENCE, REFERENCE), *((name, name) for name in sim.probes)]:
        for metric, value in load_run(sim.store, run, gradients=False).metrics[-1].items():
            yield "recorded", name, metric, float(value), 0.0, float(value - sim.reference[metric]), True, float(value)


def _asked(sim: Simulator) -> tuple[list[Row], list[str]]:
    """Held-out losses of the queried orders; nothing if the task has none, since the model is not run for other
    metrics."""
    found: dict[str, np.ndarray] = {}
    left_out = []
    for text in asked_orders(sim.store):
        try:
            found[text] = resolve_order(sim, text)
        except OrderscopeError as error:
            left_out.append(f"{text}: {error.found}")
    if not found or not sim.losses:
        return [], left_out
    prediction, known = sim.predict(np.stack(list(found.values()))), known_truth(sim)
    rows = [
        ("asked", text, metric, float(values[i]), float(prediction.error[metric][i]),
         float(values[i] - prediction.reference[metric]), bool(prediction.trusted_in(metric)[i]),
         known.get(order.tobytes(), {}).get(metric))
        for i, (text, order) in enumerate(found.items())
        for metric, values in prediction.metrics.items()
    ]  # fmt: skip
    return rows, left_out


def _validated(sim: Simulator) -> Iterator[Row]:
    for name, check in zip(sim.store.names(VALIDATED), validations(sim.store), strict=True):
        for metric, true in check.true.items():
            unknown = np.full(len(true), np.nan)
            predicted, error = check.predicted.get(metric, unknown), check.error.get(metric, unknown)
            for i, value in enumerate(predicted):
                difference = float(value - sim.reference.get(metric, math.nan))
                yield ("validated", f"{name}, order {i}", metric, float(value), float(error[i]),
                       difference, None, float(true[i]))  # fmt: skip


def _proposals(sim: Simulator) -> Iterator[Row]:
    for name, proposal in zip(sim.store.names(PROPOSED), proposals(sim.store), strict=True):
        for rank, row in enumerate(proposal.table):
            yield (name, proposal.facts["metric"], rank, row["name"], row["source"], row["predicted"], row["error"],
                   row["confirmed"])  # fmt: skip


def _positions(sim: Simulator) -> Iterator[Row]:
    for name, heat in zip(sim.store.names(MAPPED), heats(sim.store), strict=True):
        true = {tuple(cell): k for k, cell in enumerate(heat.cells.tolist())}
        for i, unit in enumerate(heat.units):
            for j, place in enumerate(heat.places):
                k = true.get((i, j))
                metric = float(heat.held_out[i, j]) if heat.held_out.size else None
                beside = float(heat.neighbours[i, j]) if heat.neighbours.size else None
                trained = (None, None) if k is None else (float(heat.true[k]), float(heat.true_held_out[k]))
                yield (name, int(unit), int(heat.at[i]), int(place), float(heat.value[i, j]), float(heat.error[i, j]),
                       float(heat.recorded[i]), heat.metric, metric, beside, *trained)  # fmt: skip


def _curves(sim: Simulator) -> Iterator[Row]:
    """Metrics of the reference and the probes at the steps whose states were stored."""
    for name in (REFERENCE, *sim.probes):
        run = load_run(sim.store, name, gradients=False)
        for step, metrics in zip(run.boundaries, run.metrics, strict=True):
            for metric, value in metrics.items():
                yield name, int(step), metric, float(value)


def _steps(sim: Simulator) -> Iterator[Row]:
    """Mean loss of every batch when the reference run trained on it."""
    losses = load_run(sim.store, REFERENCE, gradients=False).loss.double().numpy()
    for step, row in enumerate(losses):
        yield step, float(np.mean(row))


def _trials(sim: Simulator) -> Iterator[Row]:
    """Trials of all studies, by their number."""
    for trial in sorted(stored_trials(sim.store), key=lambda trial: (trial.metric, trial.maximize, trial.number)):
        yield trial_row(trial, sim.reference.get(trial.metric, math.nan))


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
