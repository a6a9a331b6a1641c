"""What a proposal is made with: the parts of the held-out rows, the searches, and what was truly trained.

Past 400 lines: every round reads and changes this one state; what is true of an order on which rows is decided here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from orderscope.engine.loading import table_number
from orderscope.errors import OrderscopeError
from orderscope.recording.costs import training_seconds
from orderscope.search.confirm import (
    Trained,
    part_gains,
    recorded,
    standard_error,
    tell_runs,
    train_orders,
)
from orderscope.search.equal_cost import spent_runs
from orderscope.search.ledger import WHOLE, Ledger
from orderscope.search.objective import Objective
from orderscope.search.parts import Parts, Slopes, parts_of, split_rows
from orderscope.search.portfolio import Found, Portfolio, Progress
from orderscope.search.remembered import Remembered, question_text
from orderscope.search.request import Question
from orderscope.search.rows import OWN, Row, rank
from orderscope.search.scores import View
from orderscope.search.setting import Setting
from orderscope.search.strategy import PENALTY, Strategy
from orderscope.simulation.foretold import foretell
from orderscope.simulation.simulator import Simulator
from orderscope.simulation.verdict import Verdict, verdict

FEW, SHUFFLED = 8, 24
PARTS = ("confirming", "searched")


class Work:
    """What a proposal is made with: the simulator, the two parts of the rows, and what was trained so far.

    Args:
        sim: the run, opened.
        asked: what is searched for.
        share: of the held-out rows that the search sees.
        confirming: metric -> another data set to confirm on, or None.
        seed: of the random numbers.
        progress: called as `progress(stage, done, total)`.
    """

    def __init__(
        self,
        sim: Simulator,
        asked: Question,
        share: float,
        confirming: Mapping[str, Any] | None,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.sim, self.asked, self.seed, self.progress = sim, asked, seed, progress
        self.notes: list[str] = []
        self.searching, self.trained, self._told = 0.0, 0, 0
        self.asking: list[Remembered] = []
        self.split = self.parts = None
        self.whole = False  # whether searches see all rows
        self.regroup = asked.regroup  # whether the next search may regroup samples
        self._share, self._slopes = share, Slopes()
        began = time.process_time()
        self.losses = [name for name in asked.objective.names if name in sim.losses]
        if sim.task is None:
            self.note("searched on all held-out rows: setting some apart to confirm on needs the task")
        elif self.losses and (share < 1 or confirming):
            self.split = split_rows(sim.task, share, confirming)
            if self.split is None:
                self.note("searched on all held-out rows: too few to set some apart to confirm on")
        self._parted()
        self.own = recorded(sim, sim.task, self.parts)
        self.true: dict[bytes, Trained] = {sim.order.tobytes(): self.own}
        self._shuffle()
        self.searching += time.process_time() - began

    def _shuffle(self) -> None:
        """Predict random orders: what luck would bring, and what there is to find."""
        sim, objective, rng = self.sim, self.asked.objective, np.random.default_rng(0)
        steps = [rng.permutation(len(sim.order)) for _ in range(SHUFFLED)]
        parts = [
            View(sim, objective, self.parts)(sim.order[np.stack(steps[i : i + WHOLE])])
            for i in range(0, SHUFFLED, WHOLE)
        ]
        value, apart, self.spread = (
            np.concatenate([getattr(p, key) for p in parts]) for key in ("value", "apart", "spread")
        )
        told = objective.sign * self._of_all({"searched": (value, 0.0), "confirming": (apart, 0.0)})[0]
        self.shuffled = told[np.isfinite(told)]
        if len(self.shuffled) < FEW:
            self.shuffled = np.append(objective.told(sim.truth) if sim.probes else [], objective.told(sim.reference))

    @property
    def random(self) -> dict[str, float]:
        """Predicted mean and standard deviation of random orders on all rows; the true ones of reference and probes
        where no prediction is finite."""
        values = self.shuffled
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        return {"mean": float(values.mean()), "std": spread, "orders": float(len(values))}

    def effect(self) -> Verdict:
        """What there is to find: of shuffled steps as predicted where the noise over rows is known of them; else of the
        recorded runs."""
        objective = self.asked.objective
        effects = [verdict(self.sim, name) for name in objective.names]
        effect = max(effects, key=lambda e: e.ratio if math.isfinite(e.ratio) else math.inf)
        if self.parts is None or not self.spread.any() or len(self.shuffled) < FEW:
            return effect
        searched, every = (max(each.values()) for each in (self.parts.searched.rows, self._rows()))
        noise = float(np.median(self.spread)) * math.sqrt(searched / every)
        return replace(effect, metric=objective.title, sigma=self.random["std"], noise=noise, held_out=noise,
                       runs=len(self.shuffled), rows=every, shuffled=True)  # fmt: skip

    def _rows(self) -> dict[str, int]:
        """Rows of each metric in all."""
        assert self.parts is not None
        apart = {} if self.parts.split.confirming else self.parts.confirming.rows
        return {name: count + apart.get(name, 0) for name, count in self.parts.searched.rows.items()}

    @property
    def seen(self) -> Parts | None:
        """The parts of the rows that searches know of; None where they see all rows as one."""
        return None if self.whole else self.parts

    def _parted(self) -> None:
        if self.split is not None and self.sim.task is not None and self.sim.held_out is not None:
            self.parts: Parts | None = parts_of(self.sim, self.sim.task, self.losses, self.split, self._slopes)

    def refines(self, verify: int) -> bool:
        """Whether a search on one part of the rows is to be followed by one on all of them, from the best of the first.

        It takes a single objective, rows that were set apart of its own, strategies that can start from an order, and
        two orders to be trained, one of each search.
        """
        own = self.split is not None and not self.split.confirming and self.parts is not None
        return own and verify > 1 and len(self.asked.objectives) == 1 and any(s.guided for s in self.asked.strategies)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    @property
    def cost(self) -> float:
        """All that was spent up to now, in runs."""
        return spent_runs(self.sim, self.searching, self.trained)

    def reopen(self) -> None:
        """Open the run anew, with what was added to it."""
        self.tell()
        began = time.process_time()
        self.sim = Simulator(self.sim.path, self.sim.task, device=self.sim.device)
        fitted(self.sim, self.asked.objective)
        if not self.whole:
            self._parted()
        self.searching += time.process_time() - began

    def search(
        self, before: list[Row], budget: int, deadline: float, any_samples: bool, number: int, seconds: float | None
    ) -> tuple[list[Portfolio], bool]:
        """One search an objective, and whether it was interrupted.

        Args:
            before: rows of earlier rounds. Where some are confirmed only strategies that start from the best are asked.
            budget: orders that may be scored.
            deadline: when to end, as `time.perf_counter` counts.
            any_samples: whether samples may be repeated and left out.
            number: of the round, from 0.
            seconds: most wall seconds, for the notes; None for no limit.
        """
        began = time.process_time()
        sim, asked = self.sim, self.asked
        confirmed = [
            row for row in before if row.confirmed is not None and row.name != OWN and math.isfinite(row.confirmed)
        ]
        picked = asked.strategies
        if confirmed:
            picked = [s for s in picked if s.guided] or picked
        if self.whole:
            picked = [s for s in picked if s.near] or picked
        portfolios: list[Portfolio] = []
        interrupted = False
        for k, objective in enumerate(asked.objectives):
            share = (budget - sum(p.setting.ledger.scored for p in portfolios)) // (len(asked.objectives) - k)
            if interrupted or share < 1:
                break
            view = View(sim, objective, self.seen)
            seen = 1.0 if self.whole else self._share
            text = question_text(table_number(sim.store), dict(objective.weights), len(self.own.metrics), seen, PENALTY)
            asking = Remembered(view, sim.path, text)
            self.asking.append(asking)
            if asking.resumed:
                self.note(f"resumed: {asking.resumed} orders had been scored before an interruption")
            ledger = Ledger(sim.order, asking, share, deadline, any_samples=any_samples)
            if asked.rules is None or asked.rules.holds(sim.order[None])[0]:
                self._know(ledger, view, sim.order, OWN)
            for row in confirmed:
                self._know(ledger, view, row.order, row.name)
            setting = Setting(sim, objective, self.regroup, ledger, asked.rules, view, judged=asked.judged)
            portfolios.append(Portfolio(setting, self.seed + number, self.progress))
            led = setting.expansion is not None and not asked.named and any(s.guided for s in picked)
            for strategy in (s for s in picked if s.blind and led):
                self.note(f"{strategy.name}: left out, since searches led by the metric's gradient find more")
            interrupted = portfolios[-1].run([s for s in picked if not (s.blind and led)])
            if interrupted:
                asking.write()
            _refuse_not_finite(ledger, objective.title)
        self.searching += time.process_time() - began
        for note in _notes(portfolios, interrupted, seconds):
            self.note(note)
        return portfolios, interrupted

    def _know(self, ledger: Ledger, view: View, order: np.ndarray, by: str) -> None:
        """Tell a search the true value of an order on the rows that it sees."""
        own, objective = self.true[order.tobytes()], view.objective
        here, apart = (self.on(own, objective, part) for part in ("searched", "confirming"))
        se = 0.0
        if self.seen is not None:
            before, after = (
                {n: w.losses[n][self.seen.split.of(n)] for n in objective.names if n in w.losses}
                for w in (self.own, own)
            )
            se = standard_error(objective, before, after) or 0.0
        row = np.array([here[name] for name in objective.names])
        ledger.know(order, float(objective.value(here)), by, row, se, float(objective.value(apart)))

    def on(self, own: Trained, objective: Objective, part: str) -> dict[str, float]:
        """True metrics on a part of the rows, name -> value; metrics that are no means over rows as they are.

        Args:
            own: the order's true metrics and losses.
            objective: what is searched for.
            part: "searched" or "confirming".
        """
        if self.seen is None:
            return {name: own.metrics[name] for name in objective.names}
        found = {}
        for name in objective.names:
            if name not in self.losses:
                found[name] = own.metrics[name]
            elif part == "confirming" and own.confirming:
                found[name] = float(own.confirming[name].mean())
            else:
                mine = self.seen.split.of(name)
                found[name] = float(own.losses[name][mine if part == "searched" else ~mine].mean())
        return found

    def confirm(self, orders: list[np.ndarray], *, quiet: bool = False) -> None:
        """Train those orders whose truth is not known yet.

        Args:
            orders: sample ids, [steps, batch] each.
            quiet: whether no progress is reported.
        """
        task = self.sim.task
        new = [order for order in orders if order.tobytes() not in self.true]
        if task is None or not new:
            return
        began = time.process_time()
        found = train_orders(self.sim, task, new, self.parts, None if quiet else self.progress, self.notes)
        self.true |= found
        self.trained += len(found)
        alone = (training_seconds(self.sim.store) or 0.0) * len(found)  # counted as runs
        self.searching += max(0.0, time.process_time() - began - alone)

    def tell(self) -> None:
        """Let the run know what was trained since the last time."""
        if self.sim.task is not None and self.trained > self._told:
            began = time.process_time()
            tell_runs(self.sim, self.sim.task)
            self._told = self.trained
            self.searching += time.process_time() - began

    def row(self, portfolio: Portfolio, found: Found) -> Row:
        """An order's scores on all parts of the rows, predicted and true.

        Args:
            portfolio: that found it.
            found: the order.
        """
        ledger, objective = portfolio.setting.ledger, self.asked.objective
        entry, own = ledger.entry(found.order), self.true.get(found.order.tobytes())
        apart, apart_error = (found.value, found.error) if entry is None else (entry.apart, entry.apart_error)
        told = {
            "searched": (objective.sign * found.value, found.error),
            "confirming": (objective.sign * apart, apart_error),
        }
        gains = part_gains(objective, self.seen, told, own, self.own)
        value, error = self._of_all(told)
        return Row(
            name=found.strategy.name,
            source=found.strategy.source,
            predicted=value,
            error=error,
            confirmed=None if own is None else float(objective.told(own.metrics)),
            order=found.order,
            metrics={} if entry is None else dict(zip(objective.names, entry.metrics.tolist(), strict=True)),
            true={} if own is None else self.with_parts(own),
            parts=gains,
            regroups=ledger.steps_of(found.order) is None,
        )

    def known_row(self, portfolio: Portfolio, strategy: Strategy, order: np.ndarray) -> Row:
        """Of an order that was trained and that no strategy asked for."""
        setting = portfolio.setting
        self._know(setting.ledger, setting.view, order, strategy.name)
        entry = setting.ledger.entry(order)
        assert entry is not None
        return self.row(portfolio, Found(strategy, order, entry.value, entry.error, entry.spread))

    def _of_all(self, told: Mapping[str, tuple[Any, Any]]) -> tuple[Any, Any]:
        """Value and error on all rows of the metric, from those on its parts."""
        if self.seen is None or self.seen.split.confirming:
            return told["searched"]
        sizes = {
            "searched": max(self.seen.searched.rows.values()),
            "confirming": max(self.seen.confirming.rows.values()),
        }
        return (sum(sizes[p] * told[p][0] for p in sizes) / sum(sizes.values()),
                sum(sizes[p] * told[p][1] for p in sizes) / sum(sizes.values()))  # fmt: skip

    def with_parts(self, own: Trained) -> dict[str, float]:
        """True metrics, and those of the objective on either part of the rows."""
        gains = part_gains(self.asked.objective, self.parts, dict.fromkeys(PARTS, (math.nan, math.nan)), own, self.own)
        title = self.asked.objective.title
        return dict(own.metrics) | {f"{title}:{g.part}": g.confirmed for g in gains if g.confirmed is not None}

    def own_row(self) -> Row:
        """The reference, with its true values on all parts of the rows."""
        sim, objective = self.sim, self.asked.objective
        value = float(objective.told(sim.reference))
        told = {"searched": (0.0, 0.0), "confirming": (0.0, 0.0)}
        if self.seen is not None:
            told = {part: (float(objective.told(self.on(self.own, objective, part))), 0.0) for part in told}
        gains = part_gains(objective, self.seen, told, self.own, self.own)
        true = self.with_parts(self.own)
        return Row(OWN, "as recorded", value, 0.0, value, sim.order, dict(sim.reference), true, gains)

    def best(self, rows: list[Row]) -> Row:
        """Of those trained the best, each charged `PENALTY` standard errors over all rows of its difference to the
        reference, and those first that are better than it on the confirming rows, too; the reference where that is no
        better on all rows; the best predicted where none was trained."""
        sim, asked = self.sim, self.asked
        objective, order = asked.objective, sim.order
        own = self.own_row()
        other = [row for row in rows if not np.array_equal(row.order, order)]
        trained = [row for row in other if row.confirmed is not None and math.isfinite(row.confirmed)]
        choice = trained or other
        fits = asked.rules is None or bool(asked.rules.holds(order[None])[0])
        if not fits:
            self.note("the recorded order does not keep to the constraints")
            assert asked.rules is not None
            if not choice:
                start = asked.rules.start
                return Row("constraints", "the recorded order, changed to keep to them", math.inf, 0.0, None, start)
        best = min(choice, key=self._charged, default=own)
        if fits and rank(best, objective.sign) > rank(own, objective.sign):
            best = own
        if np.array_equal(best.order, order):
            self.note("no better order than the recorded one was found")
            return own
        prediction = foretell(sim, [best.order], allow_other_samples=True, keep=False)  # before it was trained
        value, error = float(objective.told(prediction.predicted)[0]), float(objective.error(prediction.error)[0])
        return replace(best, predicted=value, error=error) if math.isfinite(value) else best

    def _charged(self, row: Row) -> tuple[bool, float]:
        """Whether an order is no better than the reference on the confirming rows, and its true value on all rows with
        `PENALTY` standard errors; its rank where it was not trained."""
        trained, objective = self.true.get(row.order.tobytes()), self.asked.objective
        width = None if trained is None else standard_error(objective, self.own.losses, trained.losses)
        worse = bool(row.parts) and row.parts[0].confirmed is not None and row.parts[0].gain <= 0
        return worse, rank(row, objective.sign) + PENALTY * (width or 0.0)

    def forget(self) -> None:
        """Drop what was kept of searches that have ended."""
        for asking in self.asking:
            asking.forget()


def fitted(sim: Simulator, objective: Objective) -> None:
    """Fit calibrations before the search: they are not charged to the first strategy, and what is added to the run
    meanwhile does not mix with what was read of it.

    Args:
        sim: the run, opened.
        objective: what is searched for.
    """
    for name in objective.names:
        sim.calibration[name]
    _ = sim.run_orders, sim.run_truth


def _notes(portfolios: list[Portfolio], interrupted: bool, seconds: float | None) -> list[str]:
    notes = []
    setting = portfolios[0].setting
    missing = [name for name in setting.objective.names if name not in setting.sim.plan.metrics]
    if missing:
        which, led = ", ".join(map(repr, missing)), "left out" if setting.expansion is None else "led by the others'"
        notes.append(f"metric {which} has no stored expansion: strategies led by its gradient were {led}")
    notes += dict.fromkeys(note for p in portfolios for note in p.setting.notes)
    if interrupted:
        notes.append("interrupted: the best found up to then, not confirmed")
    if seconds is not None and any(p.late for p in portfolios):
        notes.append(f"the search ended after {seconds:.3g} s, and may differ another time; seconds= allows more")
    return notes


def _refuse_not_finite(ledger: Ledger, metric: str) -> None:
    if ledger.scored and not ledger.finite:
        raise OrderscopeError(
            f"no finite score of metric {metric!r} among {ledger.scored} orders",
            "estimates that are finite",
            "look at `orderscope validate`; a lower learning rate or more anchors may help",
        )
