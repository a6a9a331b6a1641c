"""Look for a better order with a portfolio of strategies, and confirm the best by training them."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from orderscope.engine.loading import table_number
from orderscope.errors import OrderscopeError
from orderscope.search.confirm import PartGain, Trained, part_gains, recorded, standard_error, train_orders
from orderscope.search.constraints import Constraint
from orderscope.search.equal_cost import expected_best, spent_runs
from orderscope.search.ledger import WHOLE, Ledger
from orderscope.search.objective import Objective, front
from orderscope.search.parts import SEARCHED, Parts, Slopes, checked_confirming, parts_of, split_rows
from orderscope.search.portfolio import Found, Portfolio, Progress
from orderscope.search.readable import Schedule, nearest_schedule
from orderscope.search.remembered import Remembered, question_text
from orderscope.search.request import Metric, Question, question
from orderscope.search.scores import View
from orderscope.search.setting import Setting
from orderscope.search.strategy import PENALTY, STRATEGIES, Scores
from orderscope.simulation.foretold import foretell
from orderscope.simulation.simulator import Simulator
from orderscope.simulation.verdict import Verdict, verdict

OWN, FEW, SHUFFLED = "reference", 8, 24
CLEAR_GAIN = 1.645  # standard errors: a gain beyond them is one in 19 of 20 draws of rows


@dataclass(frozen=True)
class Row:
    """The best order of one strategy, or a point of a front.

    Args:
        name, source: the strategy's.
        predicted, error: estimated metric on all held-out rows and half-width of its 90 % interval, by the search's own
            scores.
        confirmed: true metric from retraining, on all rows, or None.
        order: int64 [steps, batch].
        metrics: estimated values by metric, on the searched rows.
        true: true values by metric, where it was retrained.
        parts: gain over the reference on the confirming rows, which the search never saw, and on the searched ones.
        regroups: whether samples leave their recorded batches.
    """

    name: str
    source: str
    predicted: float
    error: float
    confirmed: float | None
    order: np.ndarray
    metrics: dict[str, float] = field(default_factory=dict)
    true: dict[str, float] = field(default_factory=dict)
    parts: list[PartGain] = field(default_factory=list)
    regroups: bool = False


@dataclass(frozen=True)
class Simple:
    """The proposed order in a few words: the nearest schedule of groups.

    Args:
        schedule: shares of groups over time.
        order: it played on the recorded samples, int64 [steps, batch].
        predicted: metric on all rows.
        kept: its gain over the reference, by that of the proposal; both as trained where both were, else as predicted.
            Not a number where the proposal gains nothing.
        confirmed: true metric from retraining, or None.
    """

    schedule: Schedule
    order: np.ndarray
    predicted: float
    kept: float
    confirmed: float | None = None


@dataclass(frozen=True)
class Proposal:
    """The best order found.

    Args:
        order: int64 [steps, batch]; the reference itself where nothing better was found.
        predicted, error: estimated metric and half-width of its 90 % interval, by `Simulator.predict`.
        confirmed: true metric from retraining, or None where it was not retrained.
        metric, maximize: what was improved, and which way; of several metrics their weighted sum, as `eval + 0.5 code`.
        table: the best order of every strategy, best first.
        reference: the metric of the recorded order.
        random: predicted mean and standard deviation under random permutations of the recorded steps.
        gain_sigma: how far the proposal is better than that mean, in those standard deviations; by the true value
            where it was confirmed.
        scored: orders that were scored.
        cost: all that was spent, in runs: recording, sketching, searching, confirming.
        best_of_n: metric to be expected of the best of as many random orders, all truly trained.
        undetectable: whether there is nothing to tell from chance. Where it was confirmed, whether the true value is no
            better than the reference's and `best_of_n`, but for rounding, or the gain on the confirming rows is below
            `CLEAR_GAIN` of its standard errors; else whether the predicted gain over the reference is inside its error,
            or estimates are no better than a constant.
        true: true values of all metrics, where it was confirmed; `NAME:confirming` and `NAME:searched` are those of the
            objective on either part of the rows.
        front: where several metrics were asked for, the orders that no other is better than in all of them, by the
            first metric.
        notes: what a reader should know.
        verdict: what there was to find, in words, and the numbers they rest on.
        parts: what it gains over the reference on the confirming rows, then on the searched ones.
        simple: the nearest schedule of groups and what of the gain it keeps; None where there are no groups, or nothing
            was found.
        searched: whether a search was made; it is not where the verdict says that there is nothing to look for.
    """

    order: np.ndarray
    predicted: float
    error: float
    confirmed: float | None
    metric: str
    maximize: bool
    table: list[Row]
    reference: float
    random: dict[str, float]
    gain_sigma: float
    scored: int
    cost: float
    best_of_n: float
    undetectable: bool
    true: dict[str, float] = field(default_factory=dict)
    front: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verdict: str = ""
    effect: Verdict | None = None
    parts: list[PartGain] = field(default_factory=list)
    simple: Simple | None = None
    searched: bool = True


def propose(
    sim: Simulator,
    metric: Metric = "eval",
    *,
    budget: int = 2000,
    verify: int = 3,
    strategies: Sequence[str] | None = None,
    maximize: bool | Collection[str] = False,
    constraints: Iterable[Constraint | str] = (),
    regroup: bool | None = None,
    allow_other_samples: bool = False,
    rounds: int = 1,
    seconds: float | None = None,
    seed: int = 0,
    anyway: bool = False,
    searched: float = SEARCHED,
    confirming: Any = None,
    progress: Progress | None = None,
) -> Proposal:
    """Search for an order of the recorded samples with a better final metric.

    First comes the verdict: where the noise of the held-out rows accounts for what order seems to do, nothing is looked
    for, unless `anyway`. The search sees one part of the held-out rows. Candidates are ranked by what their value may
    well be at worst on other rows, value + `CAUTION` * error + `PENALTY` * standard error over the rows. The best of
    different kinds are trained truly, and the best of those is proposed: if that is the reference, it is said. What
    they gain is told on the rows that the search never saw, too. With the same seed it is the same again, unless
    `seconds` cut it short. A search that was interrupted goes on where it was.

    Args:
        sim: the run, opened; with its task where the best are to be trained.
        metric: a name, of which less is better; weights, {"eval": 1, "code": 0.5}, for a sum of several; or several
            names, ["eval", "code"], for a Pareto front.
        budget: how many orders may be scored in all; none is scored twice. A front's searches share it.
        verify: how many of the best are retrained; none without `sim.task`.
        strategies: names, all by default.
        maximize: more of the metric is better; of several metrics, the names of those.
        constraints: what orders must keep to, all of it: `After`, `Before`, `Share` and `Fixed` of `orderscope.search`,
            or their texts, see `parse_constraint`.
        regroup: whether samples may leave their recorded batches. By default where single samples' gradients were kept.
            Batches of recorded samples only leave a far smaller choice.
        allow_other_samples: strategies may repeat samples and leave others out.
        rounds: how often to search and confirm, at most. What is confirmed is recorded in the run; the next round is
            calibrated on it and starts from the best of it, and none follows one that gained less than training as many
            random orders as it cost would be expected to. `verify` is of each round, the budget of all.
        seconds: stop searching after this time; by default only the budget ends it.
        seed: of everything random.
        anyway: search also where the verdict says that there is nothing to look for.
        searched: share of the held-out rows that the search sees; the others confirm. 1 for all of them.
        confirming: another data set to confirm on, or metric -> data set; the search then sees all of the metric's own.
        progress: called as `progress(stage, done, total)`.

    Returns:
        The proposal. After a keyboard interrupt, that of what was found up to then.

    Raises:
        OrderscopeError: for an unknown metric or strategy, a budget below 1, constraints that cannot be met, or where
            no order's score is finite.
    """
    numbers = {"budget": (budget, 1), "verify": (verify, 0), "rounds": (rounds, 1)}
    asked = question(sim, metric, maximize, strategies, constraints, regroup, numbers, seconds)
    objective = asked.objective
    if not 0 < searched <= 1:
        raise OrderscopeError(f"searched={searched!r}", "a share above 0 and up to 1", "change searched=")
    if confirming is not None:
        if sim.task is None:
            raise OrderscopeError("confirming= without the task", "the recorded task", "open the run with its task")
        confirming = checked_confirming(sim.task, objective.names, confirming)
    _fitted(sim, objective)
    work = _Work(sim, asked, searched, confirming, seed, progress)
    effect = work.effect()
    if effect.nothing and not anyway:
        return _nothing(work, effect)
    deadline = math.inf if seconds is None else time.perf_counter() + seconds
    rows: list[Row] = []
    portfolios: list[Portfolio] = []
    points: list[Row] = []
    interrupted = False
    for number in range(rounds):
        if number:
            work.reopen()  # calibrated on what was confirmed
        before = work.cost
        left = (budget - sum(p.setting.ledger.scored for p in portfolios)) // (rounds - number)
        found, interrupted = work.search(rows, left, deadline, allow_other_samples, number, seconds)
        if not found:
            break
        portfolios += found
        candidates, others = _candidates(found[0], max(1, verify), work.true)
        points = _front(portfolios, asked) if len(asked.objectives) > 1 else []
        wanted = [f.order for f in candidates[:verify]]
        wanted += [points[int(k)].order for k in np.linspace(0, len(points) - 1, min(verify, len(points))).round()]
        if not interrupted and sim.task is not None:
            work.confirm(wanted)
        elif verify and not interrupted:
            work.note("not confirmed: retraining needs the task")
        best_before = _least(rows, objective, work.own)
        rows = _joined(rows, [work.row(found[0], f) for f in candidates + others])
        if (
            interrupted
            or len(work.true) < 2
            or not _worth_more(
                best_before - _least(rows, objective, work.own),
                work.random["std"],
                before,
                work.cost,
            )
        ):
            break
    first = portfolios[0]
    own = sim.order.tobytes()
    trained = [row for row in rows if row.order.tobytes() in work.true and row.order.tobytes() != own]
    best = work.best(trained or rows[: max(1, verify)])
    simple = work.simple(first, best, verify > 0 and not interrupted)
    if best.name != OWN and best.regroups:
        work.note("the proposed order regroups samples into new batches; regroup=False keeps those recorded")
    cost, random = work.cost, work.random
    sign, reference = objective.sign, float(objective.told(sim.reference))
    best_of_n = random["mean"] - sign * random["std"] * expected_best(cost)
    value = best.predicted if best.confirmed is None else best.confirmed
    calibrations = {name: sim.calibration[name] for name in objective.names}
    skilled = all(c.skilled for c in calibrations.values())
    rounding = float(objective.error({name: np.array(c.rounding) for name, c in calibrations.items()}))
    gain, ahead = sign * (reference - value), sign * (best_of_n - value)
    if best.confirmed is None:
        told = skilled and gain > best.error
    else:
        told = min(gain, ahead) > rounding and all(
            p.standard_error is None or p.gain > CLEAR_GAIN * p.standard_error for p in best.parts[:1]
        )
    if not interrupted:
        work.forget()
    return Proposal(
        order=best.order,
        predicted=best.predicted,
        error=best.error,
        confirmed=best.confirmed,
        metric=objective.title,
        maximize=sign < 0,
        table=sorted(rows, key=lambda row: (row.confirmed is None, _rank(row, sign))),
        reference=reference,
        random=random,
        gain_sigma=sign * (random["mean"] - value) / random["std"] if random["std"] > 0 else 0.0,
        scored=sum(p.setting.ledger.scored for p in portfolios),
        cost=cost,
        best_of_n=best_of_n,
        undetectable=not told,
        true=best.true,
        front=[replace(point, true=dict(work.true[point.order.tobytes()].metrics))
               if point.order.tobytes() in work.true else point for point in points],
        notes=work.notes,
        verdict=effect.words,
        effect=effect,
        parts=best.parts,
        simple=simple,
    )  # fmt: skip


def _fitted(sim: Simulator, objective: Objective) -> None:
    """Fit calibrations before the search: they are not charged to the first strategy, and what is added to the run
    meanwhile does not mix with what was read of it."""
    for name in objective.names:
        sim.calibration[name]
    _ = sim.run_orders, sim.run_truth


def _nothing(work: _Work, effect: Verdict) -> Proposal:
    """The reference, and why nothing was looked for."""
    sim, objective, random, cost = work.sim, work.asked.objective, work.random, work.cost
    mean, std = random["mean"], random["std"]
    value = float(objective.told(sim.reference))
    own = Row(OWN, "as recorded", value, 0.0, value, sim.order, dict(sim.reference), dict(sim.reference))
    return Proposal(
        order=sim.order, predicted=value, error=0.0, confirmed=value, metric=objective.title,
        maximize=objective.sign < 0, table=[own], reference=value,
        random=random,
        gain_sigma=objective.sign * (mean - value) / std if std > 0 else 0.0, scored=0, cost=cost,
        best_of_n=mean - objective.sign * std * expected_best(cost), undetectable=True, true=dict(sim.reference),
        notes=[*work.notes, "nothing was searched; anyway=True (--anyway) searches all the same"], verdict=effect.words,
        effect=effect, searched=False,
    )  # fmt: skip


class _Work:
    """What a proposal is made with: the simulator, the two parts of the rows, and what was trained so far."""

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
        self.searching, self.trained = 0.0, 0
        self.asking: list[Remembered] = []
        self.split = self.parts = None
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

    def _parted(self) -> None:
        if self.split is not None and self.sim.task is not None and self.sim.held_out is not None:
            self.parts: Parts | None = parts_of(self.sim, self.sim.task, self.losses, self.split, self._slopes)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    @property
    def cost(self) -> float:
        """All that was spent up to now, in runs."""
        return spent_runs(self.sim, self.searching, self.trained)

    def reopen(self) -> None:
        """Open the run anew, with what was added to it."""
        began = time.process_time()
        self.sim = Simulator(self.sim.path, self.sim.task, device=self.sim.device)
        _fitted(self.sim, self.asked.objective)
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
            seconds: most wall seconds; None for no limit.
        """
        began = time.process_time()
        sim, asked = self.sim, self.asked
        confirmed = [
            row for row in before if row.confirmed is not None and row.name != OWN and math.isfinite(row.confirmed)
        ]
        led = [s for s in asked.strategies if s.guided] if confirmed else []
        portfolios: list[Portfolio] = []
        interrupted = False
        for k, objective in enumerate(asked.objectives):
            share = (budget - sum(p.setting.ledger.scored for p in portfolios)) // (len(asked.objectives) - k)
            if interrupted or share < 1:
                break
            view = View(sim, objective, self.parts)
            text = question_text(
                table_number(sim.store), dict(objective.weights), len(self.own.metrics), self._share, PENALTY
            )
            asking = Remembered(view, sim.path, text)
            self.asking.append(asking)
            if asking.resumed:
                self.note(f"resumed: {asking.resumed} orders had been scored before an interruption")
            ledger = Ledger(sim.order, asking, share, deadline, any_samples=any_samples)
            if asked.rules is None or asked.rules.holds(sim.order[None])[0]:
                self._know(ledger, view, sim.order, OWN)
            for row in confirmed:
                self._know(ledger, view, row.order, row.name)
            setting = Setting(sim, objective, asked.regroup, ledger, asked.rules, view)
            portfolios.append(Portfolio(setting, self.seed + number, self.progress))
            interrupted = portfolios[-1].run(led or asked.strategies)
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
        if self.parts is not None:
            before, after = (
                {n: w.losses[n][self.parts.split.of(n)] for n in objective.names if n in w.losses}
                for w in (self.own, own)
            )
            se = standard_error(objective, before, after) or 0.0
        row = np.array([here[name] for name in objective.names])
        ledger.know(order, float(objective.value(here)), by, row, se, float(objective.value(apart)))

    def on(self, own: Trained, objective: Objective, part: str) -> dict[str, float]:
        """True metrics on a part of the rows, name -> value; those without rows as they are."""
        if self.parts is None:
            return {name: own.metrics[name] for name in objective.names}
        found = {}
        for name in objective.names:
            if name not in self.losses:
                found[name] = own.metrics[name]
            elif part == "confirming" and own.confirming:
                found[name] = float(own.confirming[name].mean())
            else:
                mine = self.parts.split.of(name)
                found[name] = float(own.losses[name][mine if part == "searched" else ~mine].mean())
        return found

    def confirm(self, orders: list[np.ndarray], *, quiet: bool = False) -> None:
        """Train orders that are not known yet."""
        task = self.sim.task
        new = [order for order in orders if order.tobytes() not in self.true]
        if task is None or not new:
            return
        found = train_orders(self.sim, task, new, self.parts, None if quiet else self.progress, self.notes)
        self.true |= found
        self.trained += len(found)

    def row(self, portfolio: Portfolio, found: Found) -> Row:
        ledger, objective = portfolio.setting.ledger, self.asked.objective
        entry, own = ledger.entry(found.order), self.true.get(found.order.tobytes())
        apart, apart_error = (found.value, found.error) if entry is None else (entry.apart, entry.apart_error)
        told = {
            "searched": (objective.sign * found.value, found.error),
            "confirming": (objective.sign * apart, apart_error),
        }
        gains = part_gains(objective, self.parts, told, own, self.own)
        value, error = self._of_all(told)
        return Row(
            name=found.strategy.name,
            source=found.strategy.source,
            predicted=value,
            error=error,
            confirmed=None if own is None else float(objective.told(own.metrics)),
            order=found.order,
            metrics={} if entry is None else dict(zip(objective.names, entry.metrics.tolist(), strict=True)),
            true={} if own is None else self.with_parts(own, gains),
            parts=gains,
            regroups=ledger.steps_of(found.order) is None,
        )

    def _of_all(self, told: Mapping[str, tuple[Any, Any]]) -> tuple[Any, Any]:
        """Value and error on all rows of the metric, from those on its parts."""
        if self.parts is None or self.parts.split.confirming:
            return told["searched"]
        sizes = {
            "searched": max(self.parts.searched.rows.values()),
            "confirming": max(self.parts.confirming.rows.values()),
        }
        return (sum(sizes[p] * told[p][0] for p in sizes) / sum(sizes.values()),
                sum(sizes[p] * told[p][1] for p in sizes) / sum(sizes.values()))  # fmt: skip

    def with_parts(self, own: Trained, gains: list[PartGain]) -> dict[str, float]:
        title = self.asked.objective.title
        return dict(own.metrics) | {f"{title}:{g.part}": g.confirmed for g in gains if g.confirmed is not None}

    def best(self, rows: list[Row]) -> Row:
        """Of those trained the best, each charged `PENALTY` standard errors over all rows of its difference to the
        reference, and those first that are better than it on the confirming rows, too; the reference where that is no
        better on all rows; the best predicted where none was trained."""
        sim, asked = self.sim, self.asked
        objective, order = asked.objective, sim.order
        value = float(objective.told(sim.reference))
        told = {"searched": (0.0, 0.0), "confirming": (0.0, 0.0)}
        if self.parts is not None:
            told = {part: (float(objective.told(self.on(self.own, objective, part))), 0.0) for part in told}
        gains = part_gains(objective, self.parts, told, self.own, self.own)
        own = Row(
            OWN, "as recorded", value, 0.0, value, order, dict(sim.reference), self.with_parts(self.own, gains), gains
        )
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
        if fits and _rank(best, objective.sign) > _rank(own, objective.sign):
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
        return worse, _rank(row, objective.sign) + PENALTY * (width or 0.0)

    def simple(self, portfolio: Portfolio, best: Row, train: bool) -> Simple | None:
        """The schedule of groups nearest to the best order, and what it keeps of its gain."""
        sim, objective = self.sim, self.asked.objective
        codes, names = sim.window.group_codes, sim.description["group_names"]
        schedule = nearest_schedule(best.order, codes, names)
        if best.name == OWN or schedule is None:
            return None
        steps = portfolio.setting.steps_of(best.order) is not None
        own = np.searchsorted(np.unique(codes[sim.order]), codes)
        pure = bool(((sim.window.fractions > 0).sum(1) == 1).all())
        regroup = not pure and not steps
        if not regroup and not pure:
            return None  # batches that mix groups and stay whole have no shares to schedule
        order = schedule.order(sim.order, own if regroup else own[sim.order[:, 0]], regroup=regroup)
        if self.asked.rules is not None:
            order = self.asked.rules.repaired(order[None])[0]
        told = sim.predict(order, metrics=list(objective.names), allow_other_samples=True)
        value, reference = float(objective.told(told.metrics)[0]), float(objective.told(sim.reference))
        if train:
            self.confirm([order], quiet=True)
        trained = self.true.get(order.tobytes())
        true = None if trained is None else float(objective.told(trained.metrics))
        mine, its = (value, best.predicted) if true is None or best.confirmed is None else (true, best.confirmed)
        gain = objective.sign * (reference - its)
        kept = objective.sign * (reference - mine) / gain if gain > 0 else math.nan
        return Simple(schedule, order, value, kept, true)

    def forget(self) -> None:
        """Drop what was kept of searches that have ended."""
        for asking in self.asking:
            asking.forget()


def _least(rows: Sequence[Row], objective: Objective, own: Trained) -> float:
    """The best true objective so far, the reference's at most."""
    known = [objective.sign * row.confirmed for row in rows if row.confirmed is not None]
    return min([float(objective.value(own.metrics)), *known])


def _worth_more(gained: float, spread: float, before: float, after: float) -> bool:
    """Whether a round gained at least what training as many random orders as it cost would be expected to bring."""
    return gained > spread * (expected_best(after) - expected_best(before))


def _joined(before: list[Row], now: list[Row]) -> list[Row]:
    """Rows of this round, then what earlier ones confirmed, and their strategies that were not asked again."""
    orders, names = {row.order.tobytes() for row in now}, {row.name for row in now}
    return now + [
        r for r in before if r.order.tobytes() not in orders and (r.confirmed is not None or r.name not in names)
    ]


def _front(portfolios: list[Portfolio], asked: Question) -> list[Row]:
    """Of everything that was scored, what no other is better than in all metrics, by the first of them."""
    objective = asked.objective
    entries = {e.order.tobytes(): e for p in portfolios for e in p.setting.ledger.ranked()}
    kept = list(entries.values())
    signs = np.sign([objective.weights[name] for name in objective.names])
    values = np.stack([e.metrics for e in kept]) * signs
    rows = []
    for k in np.flatnonzero(front(values)):
        e = kept[k]
        metrics = dict(zip(objective.names, e.metrics.tolist(), strict=True))
        source = STRATEGIES[e.by].source if e.by in STRATEGIES else "as recorded"
        rows.append(Row(e.by, source, float(objective.told(metrics)), e.error, None, e.order, metrics))
    return sorted(rows, key=lambda row: row.metrics[objective.names[0]])


def _candidates(portfolio: Portfolio, count: int, known: Collection[bytes]) -> tuple[list[Found], list[Found]]:
    """Orders to be confirmed first, at most `count`, and the best of the other strategies.

    First comes the best of each kind: whole batches, regrouped samples, and rules, which learn least of the searched
    rows. Then the best order of each strategy that may be as good as the best of all, and where those are too few, what
    else was found near the best.
    """
    ledger = portfolio.setting.ledger
    best = sorted(portfolio.best.values(), key=lambda f: f.bound)
    near = [f for f in best if f.value - f.error <= best[0].value]
    kinds: dict[str, Found] = {}
    for f in best:
        if f.order.tobytes() not in known:
            rule = not f.strategy.guided and not f.strategy.weight
            kinds.setdefault("rule" if rule else "regrouped" if ledger.steps_of(f.order) is None else "whole", f)
    first = [*kinds.values(), *near]
    for entry in ledger.ranked():
        if entry.by in portfolio.best:
            strategy = portfolio.best[entry.by].strategy
            first.append(Found(strategy, entry.order, entry.value, entry.error, entry.spread))
    first = [f for f in first if f.order.tobytes() not in known]
    unlike: dict[bytes, Found] = {}
    for f in first:
        unlike.setdefault(f.order.tobytes(), f)
    distinct = list(unlike.values())[:count]
    chosen = {(f.strategy.name, f.order.tobytes()) for f in distinct}
    return distinct, [f for f in best if (f.strategy.name, f.order.tobytes()) not in chosen]


def _rank(row: Row, sign: float) -> float:
    """What rows are sorted by: the true value, else the bound."""
    if row.confirmed is not None:
        return sign * row.confirmed
    return float(Scores(np.array(sign * row.predicted), np.array(row.error)).bound)


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
