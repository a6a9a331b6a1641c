"""A search for a better order with an ask-and-tell interface: ask for an order, train it anywhere, report its metric.

    study = osc.Study(sim, metric="eval")
    trial = study.ask()
    study.tell(trial, my_training(trial.order))
    print(study.trials())

The search is `orderscope.propose`; trials are stored in the run.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orderscope.answers.known import known_truth, train_orders
from orderscope.answers.stored import json_value
from orderscope.answers.tables import Table, make_table
from orderscope.answers.trials import ASKED, COLUMNS, TOLD, Trial, keep_trial, stored_trials, trial_row
from orderscope.errors import OrderscopeError, unknown_metric
from orderscope.orders import check_order
from orderscope.search import propose
from orderscope.search.rows import REFERENCE_ROW
from orderscope.store import RunStore

if TYPE_CHECKING:
    import numpy as np

    from orderscope.search import Row
    from orderscope.simulation.simulator import Simulator

# Most searches, each with another seed, that one `ask` makes before it reports that no candidate is left.
ROUNDS = 3


class Study:
    """Ask for orders, one after the other or many at once, and report their true metrics.

    A study resumes: stored trials of the same metric are read when it is created. A run that
    cannot be written to (packed, read-only) stores none; the study then lasts as long as this object.

    Args:
        sim: the simulator. With its task, a part of the held-out rows is set aside, see `orderscope.propose`.
        metric: name of the metric to improve.
        maximize: True to maximise the metric.
        budget: orders scored by each search; a search is made when no candidate is left.
        seed: seed of all random numbers.
        options: options of `orderscope.propose`: strategies, constraints, regroup, allow_other_samples, seconds,
            anyway, searched, confirming, progress.

    Raises:
        OrderscopeError: for an option that `propose` does not take, or an unknown metric.
    """

    def __init__(
        self,
        sim: Simulator,
        metric: str = "eval",
        *,
        maximize: bool = False,
        budget: int = 500,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if not isinstance(metric, str) or metric not in sim.metric_names:
            raise unknown_metric(metric, sim.metric_names)
        unknown = set(options) - {"strategies", "constraints", "regroup", "allow_other_samples", "seconds", "anyway",
                                  "searched", "confirming", "progress"}  # fmt: skip
        if unknown:
            raise OrderscopeError(
                f"Study({sorted(unknown)[0]}=)", "options of propose other than verify= and rounds=", "leave it out"
            )
        self.sim, self.metric, self.maximize = sim, metric, bool(maximize)
        self._options: dict[str, Any] = options | {"budget": budget}
        self._other = bool(options.get("allow_other_samples", False))
        self._seed, self._searches = seed, 0
        self._waiting: list[Row] = []
        reference = float(sim.reference[metric])
        own = Trial(0, metric, self.maximize, sim.order, reference, 0.0, REFERENCE_ROW, reference)
        self._trials: dict[bytes, Trial] = {sim.order.tobytes(): own}
        with RunStore.open(sim.path) as store:
            for trial in stored_trials(store, metric, self.maximize):
                self._trials[trial.order.tobytes()] = trial

    def ask(self) -> Trial:
        """The next order to train: the best predicted new order whose interval reaches beyond the best known value.

        Raises:
            OrderscopeError: order does not matter beyond the noise (`anyway=True` searches all the same), or no
                candidate may be better than the best known value.
        """
        for searches_left in reversed(range(ROUNDS + 1)):
            while self._waiting:
                row = self._waiting.pop(0)
                if row.order.tobytes() not in self._trials and self._may_win(row):
                    return self._add(row.order, row.predicted, row.error, row.name)
            if searches_left:
                self._search()
        best = self.best
        raise OrderscopeError(
            f"no order left that may be better than {best.value:.5g} (trial {best.number})",
            "one whose interval reaches beyond the best value known",
            "stop here, or make a study with a larger budget= or another seed=",
        )

    def tell(self, trial: Trial | Any, value: float) -> Trial:
        """Report the true metric of a trained order.

        Args:
            trial: a trial returned by `ask`, or any order of the recorded samples, [steps, batch].
            value: the true metric; NaN if the training diverged.

        Raises:
            OrderscopeError: its value is known already, or the order does not fit this run.
        """
        order = check_order(
            trial.order if isinstance(trial, Trial) else trial, self.sim.order,
            samples=self.sim.description["samples"], allow_other_samples=self._other,
        )  # fmt: skip
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise OrderscopeError(
                f"a value of type {type(value).__name__}", f"the metric {self.metric}, a number", "pass a number"
            ) from None
        known = self._trials.get(order.tobytes())
        if known is not None and known.value is not None:
            raise OrderscopeError(
                f"a second value for trial {known.number}, {number:.6g} after {known.value:.6g}",
                "one value for each order", "ask for another order",
            )  # fmt: skip
        if known is None:
            prediction = self.sim.predict(order, metrics=[self.metric], allow_other_samples=self._other)
            known = self._add(
                order, float(prediction.metrics[self.metric][0]), float(prediction.error[self.metric][0]), "told"
            )
        finished = replace(known, value=number)
        self._trials[order.tobytes()] = finished
        attrs = {"trial": finished.number, "metric": self.metric, "maximize": self.maximize,
                 "value": json_value(number)}  # fmt: skip
        keep_trial(self.sim, TOLD, {"order": order}, attrs)
        return finished

    def train(self, trial: Trial) -> Trial:
        """Train an order and report its value. It becomes part of the run, and later searches are calibrated on it.

        Raises:
            OrderscopeError: the simulator has no task.
        """
        from orderscope.simulation.simulator import Simulator

        value = float(train_orders(self.sim, trial.order[None])[self.metric][0])
        finished = self.tell(trial, value)
        self.sim = Simulator(self.sim.path, self.sim.task, device=self.sim.device)
        self._waiting = []
        return finished

    @property
    def best(self) -> Trial:
        """The trial with the best known value; the recorded order if none is better."""
        return min(self._trials.values(), key=lambda trial: (trial.rank, trial.number))

    def trials(self) -> Table:
        """All trials by their number, the recorded order first; `trials().records()` is a list of dictionaries.

        Columns: trial, metric, state ("recorded", "asked" or "told"), order_hash (its first 12 digits), found_by,
        predicted, error, value, gain (over the recorded order, above 0 where it is better), inside (whether the value
        lies in the predicted interval).
        """
        ordered = sorted(self._trials.values(), key=lambda trial: trial.number)
        return make_table(COLUMNS, (trial_row(trial, float(self.sim.reference[self.metric])) for trial in ordered))

    def _may_win(self, row: Row) -> bool:
        sign = -1 if self.maximize else 1
        error = row.error if math.isfinite(row.error) else 0.0
        return sign * row.predicted - error < self.best.rank

    def _search(self) -> None:
        """Search once more, with another seed."""
        known = known_truth(self.sim)
        found = propose(self.sim, self.metric, verify=0, maximize=self.maximize, seed=self._seed + self._searches,
                        **self._options)  # fmt: skip
        if not found.searched:
            raise OrderscopeError(
                f"an effect of order hidden by noise: {found.verdict}", "an effect above the noise",
                "stop here, record with more held-out rows, or pass anyway=True",
            )  # fmt: skip
        self._searches += 1
        self._waiting = [
            row
            for row in found.table
            if row.name != REFERENCE_ROW and self.metric not in known.get(row.order.tobytes(), {})
        ]

    def _add(self, order: np.ndarray, predicted: float, error: float, by: str) -> Trial:
        number = 1 + max(trial.number for trial in self._trials.values())
        trial = Trial(number, self.metric, self.maximize, order, predicted, error, by)
        self._trials[order.tobytes()] = trial
        keep_trial(self.sim, ASKED, {"order": order}, {
            "trial": number, "metric": self.metric, "maximize": self.maximize, "predicted": json_value(predicted),
            "error": json_value(error), "found_by": by,
        })  # fmt: skip
        return trial
