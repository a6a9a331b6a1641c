"""The state of a proposal: the parts of the held-out rows, the searches, and the orders that were trained.

Past 400 lines: every round reads and changes this one state, which decides the value of an order on each part of the
rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from orderscope.engine.loading import table_number
from orderscope.errors import OrderscopeError
from orderscope.recording.costs import training_seconds
from orderscope.search.confirm import (
    Trained,
    add_trained_runs,
    losses_on,
    part_gains,
    recorded,
    standard_error,
    train_orders,
)
from orderscope.search.equal_cost import spent_runs
from orderscope.search.ledger import WHOLE, Ledger
from orderscope.search.objective import Objective
from orderscope.search.parts import Parts, Slopes, parts_of, split_rows
from orderscope.search.portfolio import Found, Portfolio, Progress
from orderscope.search.request import Request
from orderscope.search.rows import REFERENCE_ROW, Row, rank
from orderscope.search.score_cache import ScoreCache, search_key
from orderscope.search.scores import View
from orderscope.search.setting import Setting
from orderscope.search.strategy import PENALTY, Strategy
from orderscope.simulation.foretold import foretell
from orderscope.simulation.simulator import Simulator
from orderscope.simulation.verdict import Verdict, verdict

FEW, SHUFFLED = 8, 24  # random orders: least number with finite predictions, and number predicted
PARTS: tuple[str, ...] = ("confirming", "searched")


class Work:
    """The state of a proposal: the simulator, the two parts of the rows, and the orders trained so far.

    Args:
        sim: the simulator of the run.
        request: the checked request.
        share: share of the held-out rows that the search sees.
        confirming: metric -> a separate data set to confirm on, or None.
        seed: seed of the random numbers.
        progress: called as `progress(stage, done, total)`.

    Attributes:
        notes: remarks for the reader of the proposal.
        searching: CPU seconds of searching.
        trained: number of orders trained.
        true: bytes of an order -> its result, for all trained orders and the reference.
        whole: whether searches see all rows.
        regroup: whether the next search may regroup samples.
    """

    def __init__(
        self,
        sim: Simulator,
        request: Request,
        share: float,
        confirming: Mapping[str, Any] | None,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.sim, self.request, self.seed, self.progress = sim, request, seed, progress
        self.notes: list[str] = []
        self.searching, self.trained, self._added = 0.0, 0, 0
        self.caches: list[ScoreCache] = []
        self.split = self.parts = None
        self.whole = False
        self.regroup = request.regroup
        self._share, self._slopes = share, Slopes()
        with self.timed():
            self.losses = [name for name in request.objective.names if name in sim.losses]
            if sim.task is None:
                self.note("searched on all held-out rows: setting some apart to confirm on needs the task")
            elif self.losses and (share < 1 or confirming):
                self.split = split_rows(sim.task, share, confirming)
                if self.split is None:
                    self.note("searched on all held-out rows: too few to set some apart to confirm on")
            self._parted()
            self.reference = recorded(sim, sim.task, self.parts)
            self.true: dict[bytes, Trained] = {sim.order.tobytes(): self.reference}
            self._shuffle()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the CPU time of what is done inside as that of searching."""
        began = time.process_time()
        try:
            yield
        finally:
            self.searching += time.process_time() - began

    def _shuffle(self) -> None:
        """Predict random orders: the distribution that a proposal is compared with, and how much order matters."""
        sim, objective, rng = self.sim, self.request.objective, np.random.default_rng(0)
        steps = [rng.permutation(len(sim.order)) for _ in range(SHUFFLED)]
        parts = [
            View(sim, objective, self.parts)(sim.order[np.stack(steps[i : i + WHOLE])])
            for i in range(0, SHUFFLED, WHOLE)
        ]
        value, confirming, self.spread = (
            np.concatenate([getattr(p, key) for p in parts]) for key in ("value", "confirming", "spread")
        )
        values = objective.sign * self._of_all({"searched": (value, 0.0), "confirming": (confirming, 0.0)})[0]
        self.shuffled = values[np.isfinite(values)]
        if len(self.shuffled) < FEW:
            self.shuffled = np.append(
                objective.reported(sim.truth) if sim.probes else [], objective.reported(sim.reference)
            )

    @property
    def random(self) -> dict[str, float]:
        """Predicted mean and standard deviation of random orders on all rows, and their number; the true ones of
        reference and probes if fewer than `FEW` predictions are finite."""
        values = self.shuffled
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        return {"mean": float(values.mean()), "std": spread, "orders": float(len(values))}

    def effect(self) -> Verdict:
        """How much order matters: from predictions of random orders if their noise over rows is known, else from the
        recorded runs."""
        objective = self.request.objective
        effects = [verdict(self.sim, name) for name in objective.names]
        effect = max(effects, key=lambda e: e.ratio if math.isfinite(e.ratio) else math.inf)
        if self.parts is None or not self.spread.any() or len(self.shuffled) < FEW:
            return effect
        searched, every = (max(each.values()) for each in (self.parts.searched.rows, self._rows()))
        noise = float(np.median(self.spread)) * math.sqrt(searched / every)
        return replace(effect, metric=objective.title, sigma=self.random["std"], noise=noise, held_out=noise,
                       runs=len(self.shuffled), rows=every, shuffled=True)  # fmt: skip

    def _rows(self) -> dict[str, int]:
        """Metric -> number of rows on both parts."""
        assert self.parts is not None
        confirming = {} if self.parts.split.confirming else self.parts.confirming.rows
        return {name: count + confirming.get(name, 0) for name, count in self.parts.searched.rows.items()}

    @property
    def seen(self) -> Parts | None:
        """The split of the rows as the current search sees it; None if it sees all rows."""
        return None if self.whole else self.parts

    def _parted(self) -> None:
        if self.split is not None and self.sim.task is not None and self.sim.held_out is not None:
            self.parts: Parts | None = parts_of(self.sim, self.sim.task, self.losses, self.split, self._slopes)

    def refines(self, verify: int) -> bool:
        """Whether the search on one part of the rows is followed by one on all rows, starting from the best order.

        It needs a single objective, rows that were set aside from the metric's own, strategies that can start from an
        order, and two orders to train, one for each search.

        Args:
            verify: number of orders that may be trained.
        """
        split = self.split is not None and not self.split.confirming and self.parts is not None
        return (
            split
            and verify > 1
            and len(self.request.objectives) == 1
            and any(s.guided for s in self.request.strategies)
        )

    def note(self, text: str) -> None:
        """Add a remark for the reader of the proposal, unless it is there already."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def cost(self) -> float:
        """Total cost so far, in runs."""
        return spent_runs(self.sim, self.searching, self.trained)

    def reopen(self) -> None:
        """Open the run again, with the trained orders added to it."""
        self.add_trained()
        with self.timed():
            self.sim = Simulator(self.sim.path, self.sim.task, device=self.sim.device)
            fit_calibrations(self.sim, self.request.objective)
            if not self.whole:
                self._parted()

    def search(
        self, before: list[Row], budget: int, deadline: float, any_samples: bool, number: int, seconds: float | None
    ) -> tuple[list[Portfolio], bool]:
        """Run one search for each objective.

        Args:
            before: rows of earlier rounds. If some are confirmed, only strategies that start from the best order run.
            budget: most orders to score.
            deadline: value of `time.perf_counter` at which to stop.
            any_samples: whether samples may be repeated and left out.
            number: number of the round, from 0.
            seconds: most wall seconds, for the notes; None for no limit.

        Returns:
            One portfolio for each objective, and whether the user interrupted the search.
        """
        sim, request = self.sim, self.request
        confirmed = [
            row
            for row in before
            if row.confirmed is not None and row.name != REFERENCE_ROW and math.isfinite(row.confirmed)
        ]
        picked = request.strategies
        if confirmed:
            picked = [s for s in picked if s.guided] or picked
        if self.whole:
            picked = [s for s in picked if s.near] or picked
        portfolios: list[Portfolio] = []
        interrupted = False
        with self.timed():
            for k, objective in enumerate(request.objectives):
                share = (budget - sum(p.setting.ledger.scored for p in portfolios)) // (len(request.objectives) - k)
                if interrupted or share < 1:
                    break
                view = View(sim, objective, self.seen)
                seen = 1.0 if self.whole else self._share
                text = search_key(
                    table_number(sim.store), dict(objective.weights), len(self.reference.metrics), seen, PENALTY
                )
                cache = ScoreCache(view, sim.path, text)
                self.caches.append(cache)
                if cache.resumed:
                    self.note(f"resumed: {cache.resumed} orders had been scored before an interruption")
                ledger = Ledger(sim.order, cache, share, deadline, any_samples=any_samples)
                if request.rules is None or request.rules.holds(sim.order[None])[0]:
                    self._know(ledger, view, sim.order, REFERENCE_ROW)
                for row in confirmed:
                    self._know(ledger, view, row.order, row.name)
                setting = Setting(sim, objective, self.regroup, ledger, request.rules, view, judged=request.judged)
                portfolios.append(Portfolio(setting, self.seed + number, self.progress))
                gradient = setting.expansion is not None and not request.named and any(s.guided for s in picked)
                for strategy in (s for s in picked if s.blind and gradient):
                    self.note(f"{strategy.name}: left out, since searches that use the metric's gradient find more")
                interrupted = portfolios[-1].run([s for s in picked if not (s.blind and gradient)])
                if interrupted:
                    cache.write()
                _refuse_not_finite(ledger, objective.title)
        for note in _notes(portfolios, interrupted, seconds):
            self.note(note)
        return portfolios, interrupted

    def _know(self, ledger: Ledger, view: View, order: np.ndarray, by: str) -> None:
        """Enter the true value of an order on the searched rows into the ledger of a search."""
        trained, objective = self.true[order.tobytes()], view.objective
        searched, confirming = (self.on(trained, objective, part) for part in ("searched", "confirming"))
        spread = 0.0 if self.seen is None else self.spread_of(trained, self.reference, objective)
        row = np.array([searched[name] for name in objective.names])
        ledger.know(order, float(objective.value(searched)), by, row, spread, float(objective.value(confirming)))

    def on(self, trained: Trained, objective: Objective, part: str) -> dict[str, float]:
        """True metrics on a part of the rows, name -> value; metrics that are not means over rows are unchanged.

        Args:
            trained: the order's true metrics and losses.
            objective: the quantity that is minimised, for the names of its metrics.
            part: "searched" or "confirming".
        """
        if self.seen is None:
            return {name: trained.metrics[name] for name in objective.names}
        losses = losses_on(objective, self.seen, trained, part)
        return {name: float(values.mean()) for name, values in losses.items()}

    def spread_of(self, trained: Trained, reference: Trained, objective: Objective) -> float:
        """Standard error, over the rows that the search sees, of the objective's difference between two results; 0 if
        it is not known.

        Args:
            trained: the result of an order.
            reference: the result that it is compared with.
            objective: the quantity that is minimised.
        """
        if self.seen is None:
            return standard_error(objective, reference.losses, trained.losses) or 0.0
        before, after = (losses_on(objective, self.seen, each, "searched") for each in (reference, trained))
        return standard_error(objective, before, after) or 0.0

    def confirm(self, orders: list[np.ndarray], *, quiet: bool = False) -> None:
        """Train those of the orders that were not trained before.

        Args:
            orders: sample ids, [steps, batch] each.
            quiet: True to report no progress.
        """
        task = self.sim.task
        new = [order for order in orders if order.tobytes() not in self.true]
        if task is None or not new:
            return
        began = time.process_time()
        results = train_orders(self.sim, task, new, self.parts, None if quiet else self.progress, self.notes)
        self.true |= results
        self.trained += len(results)
        training = (training_seconds(self.sim.store) or 0.0) * len(results)  # counted as runs, not as searching
        self.searching += max(0.0, time.process_time() - began - training)

    def add_trained(self) -> None:
        """Add the orders trained since the last call to the run."""
        if self.sim.task is not None and self.trained > self._added:
            with self.timed():
                add_trained_runs(self.sim, self.sim.task)
            self._added = self.trained

    def row(self, portfolio: Portfolio, found: Found) -> Row:
        """The row of an order: its predicted and true values on all parts of the rows.

        Args:
            portfolio: the portfolio that scored it.
            found: the order, with its score.
        """
        ledger, objective = portfolio.setting.ledger, self.request.objective
        entry, trained = ledger.entry(found.order), self.true.get(found.order.tobytes())
        confirming = (found.value, found.error) if entry is None else (entry.confirming, entry.confirming_error)
        estimates = {
            "searched": (objective.sign * found.value, found.error),
            "confirming": (objective.sign * confirming[0], confirming[1]),
        }
        gains = part_gains(objective, self.seen, estimates, trained, self.reference)
        value, error = self._of_all(estimates)
        return Row(
            name=found.strategy.name,
            source=found.strategy.source,
            predicted=value,
            error=error,
            confirmed=None if trained is None else float(objective.reported(trained.metrics)),
            order=found.order,
            metrics={} if entry is None else dict(zip(objective.names, entry.metrics.tolist(), strict=True)),
            true={} if trained is None else self.with_parts(trained),
            parts=gains,
            regroups=ledger.steps_of(found.order) is None,
        )

    def known_row(self, portfolio: Portfolio, strategy: Strategy, order: np.ndarray) -> Row:
        """The row of an order that was trained though no strategy yielded it.

        Args:
            portfolio: the portfolio whose ledger the order is entered into.
            strategy: the strategy that it is attributed to.
            order: sample ids, [steps, batch].
        """
        setting = portfolio.setting
        self._know(setting.ledger, setting.view, order, strategy.name)
        entry = setting.ledger.entry(order)
        assert entry is not None
        return self.row(portfolio, Found(strategy, order, entry.value, entry.error, entry.spread))

    def _of_all(self, estimates: Mapping[str, tuple[Any, Any]]) -> tuple[Any, Any]:
        """Value and error on all rows of the metric, from those on its parts."""
        if self.seen is None or self.seen.split.confirming:
            return estimates["searched"]
        sizes = {
            "searched": max(self.seen.searched.rows.values()),
            "confirming": max(self.seen.confirming.rows.values()),
        }
        return (sum(sizes[p] * estimates[p][0] for p in sizes) / sum(sizes.values()),
                sum(sizes[p] * estimates[p][1] for p in sizes) / sum(sizes.values()))  # fmt: skip

    def with_parts(self, trained: Trained) -> dict[str, float]:
        """True metrics by name, and the objective on each part of the rows as `TITLE:confirming` and `TITLE:searched`.

        Args:
            trained: the result of training an order.
        """
        gains = part_gains(
            self.request.objective, self.parts, dict.fromkeys(PARTS, (math.nan, math.nan)), trained, self.reference
        )
        title = self.request.objective.title
        return dict(trained.metrics) | {f"{title}:{g.part}": g.confirmed for g in gains if g.confirmed is not None}

    def reference_row(self) -> Row:
        """The row of the reference, with its true values on all parts of the rows."""
        sim, objective = self.sim, self.request.objective
        value = float(objective.reported(sim.reference))
        true_values = dict.fromkeys(PARTS, (0.0, 0.0))
        if self.seen is not None:
            true_values = {p: (float(objective.reported(self.on(self.reference, objective, p))), 0.0) for p in PARTS}
        gains = part_gains(objective, self.seen, true_values, self.reference, self.reference)
        true = self.with_parts(self.reference)
        return Row(REFERENCE_ROW, "as recorded", value, 0.0, value, sim.order, dict(sim.reference), true, gains)

    def best(self, rows: list[Row]) -> Row:
        """The order to propose.

        Among trained orders, those that are better than the reference on the confirming rows come first; then the
        lowest true value plus `PENALTY` standard errors counts. If the best is not better than the reference on all
        rows, the reference is returned. If no order was trained, the best predicted one is returned.

        Args:
            rows: the orders that may be proposed.
        """
        sim, request = self.sim, self.request
        objective, order = request.objective, sim.order
        reference = self.reference_row()
        other = [row for row in rows if not np.array_equal(row.order, order)]
        trained = [row for row in other if row.confirmed is not None and math.isfinite(row.confirmed)]
        choice = trained or other
        fits = request.rules is None or bool(request.rules.holds(order[None])[0])
        if not fits:
            self.note("the recorded order does not meet the constraints")
            assert request.rules is not None
            if not choice:
                start = request.rules.start
                return Row("constraints", "the recorded order, changed to meet them", math.inf, 0.0, None, start)
        best = min(choice, key=self._charged, default=reference)
        if fits and rank(best, objective.sign) > rank(reference, objective.sign):
            best = reference
        if np.array_equal(best.order, order):
            self.note("no better order than the recorded one was found")
            return reference
        prediction = foretell(sim, [best.order], allow_other_samples=True, keep=False)  # as stored before training it
        value, error = float(objective.reported(prediction.predicted)[0]), float(objective.error(prediction.error)[0])
        return replace(best, predicted=value, error=error) if math.isfinite(value) else best

    def _charged(self, row: Row) -> tuple[bool, float]:
        """The key that orders are compared by: whether an order is no better than the reference on the confirming rows,
        then its rank on all rows plus `PENALTY` standard errors if it was trained."""
        trained, objective = self.true.get(row.order.tobytes()), self.request.objective
        width = None if trained is None else standard_error(objective, self.reference.losses, trained.losses)
        worse = bool(row.parts) and row.parts[0].confirmed is not None and row.parts[0].gain <= 0
        return worse, rank(row, objective.sign) + PENALTY * (width or 0.0)

    def forget(self) -> None:
        """Drop the stored scores of searches that have ended."""
        for cache in self.caches:
            cache.forget()


def fit_calibrations(sim: Simulator, objective: Objective) -> None:
    """Fit the calibrations before the search, so that their time does not count against the first strategy, and so that
    all data comes from the run as it is now: orders trained during the search are added to it.

    Args:
        sim: the simulator of the run.
        objective: the quantity that is minimised, for the names of its metrics.
    """
    for name in objective.names:
        sim.calibration[name]
    _ = sim.run_orders, sim.run_truth


def _notes(portfolios: list[Portfolio], interrupted: bool, seconds: float | None) -> list[str]:
    notes = []
    setting = portfolios[0].setting
    missing = [name for name in setting.objective.names if name not in setting.sim.plan.metrics]
    if missing:
        which = ", ".join(map(repr, missing))
        effect = "were left out" if setting.expansion is None else "used only the other metrics"
        notes.append(f"metric {which} has no stored expansion: strategies that use gradients {effect}")
    notes += dict.fromkeys(note for p in portfolios for note in p.setting.notes)
    if interrupted:
        notes.append("interrupted: the best found up to then, not confirmed")
    if seconds is not None and any(p.late for p in portfolios):
        notes.append(
            f"the time limit of {seconds:.3g} s ended the search, so another search may differ; raise seconds="
        )
    return notes


def _refuse_not_finite(ledger: Ledger, metric: str) -> None:
    if ledger.scored and not ledger.finite:
        raise OrderscopeError(
            f"no finite score of metric {metric!r} among {ledger.scored} orders",
            "estimates that are finite",
            "check predictions with `orderscope validate`; a lower learning rate or more anchors may help",
        )
