"""Look for a better order with a portfolio of strategies, and confirm the best by training them."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from orderscope.engine.calibration import COVERAGE
from orderscope.engine.student_t import two_sided
from orderscope.errors import OrderscopeError
from orderscope.search.confirm import PartGain, Trained
from orderscope.search.constraints import Constraint
from orderscope.search.equal_cost import expected_best
from orderscope.search.evidence import settled
from orderscope.search.forms import scheduled, sorted_alike
from orderscope.search.objective import Objective, front
from orderscope.search.parts import SEARCHED, checked_confirming
from orderscope.search.portfolio import Found, Portfolio, Progress
from orderscope.search.request import Metric, Question, question
from orderscope.search.rows import OWN, Row, Simple, Sorted, rank
from orderscope.search.strategies.schedules import GroupSchedule
from orderscope.search.strategy import STRATEGIES
from orderscope.search.work import Work, fitted
from orderscope.simulation.simulator import Simulator
from orderscope.simulation.verdict import Verdict

CLEAR_GAIN = 1.645  # standard errors: a gain beyond them is one in 19 of 20 draws of rows


class Elsewhere(NamedTuple):
    """Gain on other rows, and half-width of its 90 % interval by Student's t."""

    gain: float
    error: float


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
        parts: what it gains over the reference on the confirming rows, then on the searched ones. Of a refined one what
            the order gains that it was made from, and that was searched on the searched rows only.
        simple: the nearest schedule of groups and what of the gain it keeps; None where there are no groups, or nothing
            was found.
        sort: the nearest sort by a recorded signal, and what it keeps; None where the order is close to none.
        searched: whether a search was made; it is not where the verdict says that there is nothing to look for.
        refined: whether it was found on one part of the rows and then improved on all of them.
        why: what makes it undetectable, in words; empty where it is not.
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
    sort: Sorted | None = None
    searched: bool = True
    refined: bool = False
    why: str = ""

    @property
    def elsewhere(self) -> Elsewhere | None:
        """What it may be expected to gain over the reference on other rows of the same source; None where it was not
        trained, or no rows were set aside.

        It is the true gain on the rows that the search never saw. An order chosen on some rows gains less on others, so
        neither `predicted` nor `confirmed` says it. Of a refined order it is the gain of the one it was made from. The
        interval held the gain on fresh rows of 25 of 28 proposals, made on eight windows and mostly refined.
        """
        part = next((part for part in self.parts if part.part == "confirming"), None)
        if part is None or part.confirmed is None or part.standard_error is None:
            return None
        return Elsewhere(part.gain, two_sided(max(1, part.rows - 1), COVERAGE) * part.standard_error)


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
    different kinds are trained truly; what they gain on the rows that the search never saw tells what searching is
    worth. If that is more than nothing, the best is then improved on all rows, with the other half of the budget and
    one of the trainings: twice the rows say better what is good for others. The best of all that was trained is
    proposed, the nearest schedule of groups if it turns out better than what it was read off; if that is the reference,
    it is said. With the same seed it is the same again, unless `seconds` cut it
    short. A search that was interrupted goes on where it was.

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
        regroup: whether samples may leave their recorded batches. By default where single samples' gradients were kept,
            and such an order is clearly better than those of whole batches on the rows set aside; True does without
            that proof.
        allow_other_samples: strategies may repeat samples and leave others out.
        rounds: how often to search and confirm, at most. What is confirmed is recorded in the run; the next round is
            calibrated on it and starts from the best of it, and none follows one that gained less than training as many
            random orders as it cost would be expected to. `verify` is of each round, the budget of all.
        seconds: stop searching after this time; by default only the budget ends it.
        seed: of everything random.
        anyway: search also where the verdict says that there is nothing to look for.
        searched: share of the held-out rows that the first search sees; the others confirm. 1 for all of them.
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
    fitted(sim, objective)
    work = Work(sim, asked, searched, confirming, seed, progress)
    effect = work.effect()
    if effect.nothing and not anyway:
        return _nothing(work, effect)
    deadline = math.inf if seconds is None else time.perf_counter() + seconds
    rows: list[Row] = []
    allowed: list[Row] = []  # to be proposed
    portfolios: list[Portfolio] = []
    points: list[Row] = []
    interrupted = False
    refine = work.refines(verify)
    first_budget, first_verify = (math.ceil(budget / 2), verify - 1) if refine else (budget, verify)
    for number in range(rounds):
        if number:
            work.reopen()  # calibrated on what was confirmed
        before = work.cost
        left = (first_budget - sum(p.setting.ledger.scored for p in portfolios)) // (rounds - number)
        found, interrupted = work.search(allowed, left, deadline, allow_other_samples, number, seconds)
        if not found:
            break
        portfolios += found
        judged = asked.judged and work.parts is not None
        candidates, others = _candidates(found[0], max(1, first_verify), work.true, judged)
        points = _front(portfolios, asked) if len(asked.objectives) > 1 else []
        wanted = [f.order for f in candidates[:first_verify]]
        wanted += [points[int(k)].order for k in np.linspace(0, len(points) - 1, min(verify, len(points))).round()]
        if not interrupted and sim.task is not None:
            work.confirm(wanted)
        elif verify and not interrupted:
            work.note("not confirmed: retraining needs the task")
        best_before = _least(rows, objective, work.own)
        rows = _joined(rows, [work.row(found[0], f) for f in candidates + others])
        allowed = settled(work, rows)
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
    check = best = _best(work, allowed, verify)
    if refine and not interrupted and best.parts and best.parts[0].gain > 0:
        work.whole = True
        work.reopen()
        left = budget - sum(p.setting.ledger.scored for p in portfolios)
        found, interrupted = work.search(allowed, left, deadline, allow_other_samples, rounds, seconds)
        portfolios += found
        if found and not interrupted:
            candidates, _ = _candidates(found[0], 1, work.true, False)
            work.confirm([f.order for f in candidates])
            improved = [work.row(found[0], f) for f in candidates]
            rows, allowed = _joined(improved, rows), _joined(improved, allowed)
            best = _best(work, allowed, verify)
    train = verify > 0 and not interrupted
    left = train and work.trained < verify * rounds
    simple = scheduled(work, first.setting, best, train)
    if simple is not None and simple.confirmed is not None and simple.kept > 1:  # few numbers learn little of the rows
        row = work.known_row(first, STRATEGIES[GroupSchedule.name], simple.order)
        rows = [row, *rows]
        best = work.best([row, best])
        if best.order is simple.order:
            simple = replace(simple, kept=1.0)
    sort = sorted_alike(work, first.setting, best, left)
    work.tell()
    if best.name != OWN and best.regroups:
        work.note("the proposed order regroups samples into new batches; regroup=False keeps those recorded")
    cost, random = work.cost, work.random
    sign, reference = objective.sign, float(objective.told(sim.reference))
    best_of_n = random["mean"] - sign * random["std"] * expected_best(cost)
    value = best.predicted if best.confirmed is None else best.confirmed
    calibrations = {name: sim.calibration[name] for name in objective.names}
    skilled = all(c.skilled for c in calibrations.values())
    rounding = float(objective.error({name: np.array(c.rounding) for name, c in calibrations.items()}))
    refined = not best.parts and bool(check.parts)
    parts = check.parts if refined else best.parts
    gain, ahead = sign * (reference - value), sign * (best_of_n - value)
    why = ""
    if best.confirmed is None:
        if not skilled:
            why = "estimates are no better than a constant"
        elif not gain > best.error:
            why = "the predicted gain is inside its error"
    elif not gain > rounding:
        why = "it is no better than the recorded order"
    elif any(p.standard_error is not None and p.gain <= CLEAR_GAIN * p.standard_error for p in parts[:1]):
        why = f"on rows that the search never saw the gain is below {CLEAR_GAIN:.1f} of its standard errors"
    elif not ahead > rounding:
        why = "the best of as many random orders is expected to be as good"
    if not interrupted:
        work.forget()
    return Proposal(
        order=best.order,
        predicted=best.predicted,
        error=best.error,
        confirmed=best.confirmed,
        metric=objective.title,
        maximize=sign < 0,
        table=sorted(rows, key=lambda row: (row.confirmed is None, rank(row, sign))),
        reference=reference,
        random=random,
        gain_sigma=sign * (random["mean"] - value) / random["std"] if random["std"] > 0 else 0.0,
        scored=sum(p.setting.ledger.scored for p in portfolios),
        cost=cost,
        best_of_n=best_of_n,
        undetectable=bool(why),
        why=why,
        true=best.true,
        front=[replace(point, true=dict(work.true[point.order.tobytes()].metrics))
               if point.order.tobytes() in work.true else point for point in points],
        notes=work.notes,
        verdict=effect.words,
        effect=effect,
        parts=parts,
        refined=refined,
        simple=simple,
        sort=sort,
    )  # fmt: skip


def _nothing(work: Work, effect: Verdict) -> Proposal:
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


def _best(work: Work, rows: list[Row], verify: int) -> Row:
    own = work.sim.order.tobytes()
    trained = [row for row in rows if row.order.tobytes() in work.true and row.order.tobytes() != own]
    return work.best(trained or rows[: max(1, verify)])


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


def _candidates(
    portfolio: Portfolio, count: int, known: Collection[bytes], judged: bool
) -> tuple[list[Found], list[Found]]:
    """Orders to be confirmed first, at most `count`, and the best of the other strategies.

    First comes the best of each kind: whole batches, regrouped samples, and rules, which learn least of the searched
    rows. Then the best order of each strategy that may be as good as the best of all, and where those are too few, what
    else was found near the best.

    Args:
        portfolio: what was found.
        count: how many.
        known: orders whose truth is known.
        judged: whether regrouping has to be clearly better than whole batches to be proposed. Then a single candidate
            keeps the batches, since there is nothing to compare it with.
    """
    ledger = portfolio.setting.ledger
    best = sorted(portfolio.best.values(), key=lambda f: f.bound)
    near = [f for f in best if f.value - f.error <= best[0].value]
    kinds: dict[str, Found] = {}
    for f in best:
        if f.order.tobytes() not in known:
            rule = not f.strategy.guided and not f.strategy.weight
            kinds.setdefault("regrouped" if ledger.steps_of(f.order) is None else "rule" if rule else "whole", f)
    first = [*kinds.values(), *near]
    if judged and count == 1:
        first.sort(key=lambda f: ledger.steps_of(f.order) is None)
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
