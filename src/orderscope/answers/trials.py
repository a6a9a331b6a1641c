"""Trials of studies, stored in a run: one shard when an order is asked for, and one when
its value is reported."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from orderscope.answers.stored import number_of
from orderscope.orders import order_hash
from orderscope.store import RunStore, add_if_possible

if TYPE_CHECKING:
    from orderscope.simulation.simulator import Simulator

ASKED, TOLD = "trial/", "told/"
SHORT = 12  # digits of an order's hash in a table
COLUMNS: dict[str, type] = {
    "trial": int, "metric": str, "state": str, "order_hash": str, "found_by": str, "predicted": float, "error": float,
    "value": float, "gain": float, "inside": bool,
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One order of a study.

    Args:
        number: from 1; 0 is the recorded order.
        metric: name of the metric to improve.
        maximize: whether the metric is maximised.
        order: int64 [steps, batch].
        predicted, error: estimated metric before it was trained, and half-width of its 90 % interval.
        found_by: strategy that found it; "told" for an order that did not come from `ask`.
        value: true metric; None until it is reported, NaN if the training diverged.
    """

    number: int
    metric: str
    maximize: bool
    order: np.ndarray
    predicted: float
    error: float
    found_by: str
    value: float | None = None

    @property
    def rank(self) -> float:
        """The value, negated if it is maximised; infinite if it is not known or not finite."""
        known = self.value is not None and math.isfinite(self.value)
        return (-1 if self.maximize else 1) * (self.value or 0.0) if known else math.inf


def trial_row(trial: Trial, reference: float) -> tuple[Any, ...]:
    """A trial under `COLUMNS`.

    Args:
        trial: an order that was asked for, with its value where it was reported.
        reference: the metric of the recorded order.
    """
    value = trial.value
    state = "recorded" if trial.number == 0 else "asked" if value is None else "told"
    gain = None if value is None else (value - reference if trial.maximize else reference - value)
    inside = None if value is None else bool(abs(value - trial.predicted) <= trial.error)
    return (trial.number, trial.metric, state, order_hash(trial.order)[:SHORT], trial.found_by, trial.predicted,
            trial.error, value, gain, inside)  # fmt: skip


def stored_trials(store: RunStore, metric: str | None = None, maximize: bool | None = None) -> Iterator[Trial]:
    """Trials that are kept in a run, in the order they were asked for, with their values where those were reported.

    Args:
        store: the run on disk.
        metric: only trials of this metric; all if not given.
        maximize: only trials of studies that maximize, or that minimize; all if not given.
    """
    values: dict[tuple[str, bool, bytes], float] = {}
    for name in store.names(TOLD):
        facts, order = store.attrs(name), store.read(name, ["order"])["order"]
        values[facts["metric"], facts["maximize"], order.tobytes()] = number_of(facts["value"])
    for name in store.names(ASKED):
        facts, order = store.attrs(name), store.read(name, ["order"])["order"]
        if metric in (None, facts["metric"]) and maximize in (None, facts["maximize"]):
            yield Trial(
                facts["trial"], facts["metric"], facts["maximize"], order, number_of(facts["predicted"]),
                number_of(facts["error"]), facts["found_by"],
                values.get((facts["metric"], facts["maximize"], order.tobytes())),
            )  # fmt: skip


def keep_trial(sim: Simulator, prefix: str, arrays: dict[str, np.ndarray], attrs: dict[str, Any]) -> None:
    """Keep a trial in the run, where it can be written to.

    Args:
        sim: the run, opened.
        prefix: of the shard's name, `ASKED` or `TOLD`; a number is added.
        arrays: of the shard, by key.
        attrs: its other facts, JSON values by key.
    """
    add_if_possible(sim.path, lambda store: store.write(store.next_name(prefix), arrays, attrs))
