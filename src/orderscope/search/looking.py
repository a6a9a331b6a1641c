"""Rounds of searching and training, and the search on all rows that follows."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from orderscope.search.confirm import Trained
from orderscope.search.equal_cost import expected_best
from orderscope.search.evidence import settled
from orderscope.search.objective import Objective, front
from orderscope.search.portfolio import Found, Portfolio
from orderscope.search.request import Question
from orderscope.search.rows import Row
from orderscope.search.strategy import STRATEGIES
from orderscope.search.work import Work


@dataclass(frozen=True)
class Limits:
    """How far a search may go; `budget`, `verify`, `rounds`, `seconds` as given to `propose`.

    Args:
        deadline: when to end, as `time.perf_counter` counts.
        any_samples: whether samples may be repeated and left out.
    """

    budget: int
    verify: int
    rounds: int
    seconds: float | None
    deadline: float
    any_samples: bool


@dataclass
class Looked:
    """What was found up to now.

    Args:
        best: to be proposed.
        rows: the best order of every strategy.
        allowed: of these, those that may be proposed.
        portfolios: the searches.
        points: of several metrics, the orders that no other is better than in all of them.
        interrupted: by a key.
    """

    best: Row
    rows: list[Row]
    allowed: list[Row]
    portfolios: list[Portfolio]
    points: list[Row] = field(default_factory=list)
    interrupted: bool = False

    @property
    def scored(self) -> int:
        """How many orders were scored."""
        return sum(p.setting.ledger.scored for p in self.portfolios)


def look(work: Work, limits: Limits) -> Looked:
    """Search and train, round after round, as long as a round is worth its cost.

    Half of the budget and one training are left over where the best is to be improved on all rows.

    Args:
        work: what it is made with.
        limits: how far to go.
    """
    asked, rounds = work.asked, limits.rounds
    budget, verify = limits.budget, limits.verify
    if work.refines(verify):
        budget, verify = math.ceil(budget / 2), verify - 1
    looked = Looked(work.own_row(), [], [], [])
    for number in range(rounds):
        if number:
            work.reopen()  # calibrated on what was confirmed
        before = work.cost
        left = (budget - looked.scored) // (rounds - number)
        found, looked.interrupted = work.search(
            looked.allowed, left, limits.deadline, limits.any_samples, number, limits.seconds
        )
        if not found:
            break
        looked.portfolios += found
        judged = asked.judged and work.parts is not None
        candidates, others = _candidates(found[0], max(1, verify), work.true, judged)
        looked.points = _front(looked.portfolios, asked) if len(asked.objectives) > 1 else []
        _confirm(work, [f.order for f in candidates[:verify]], looked, limits.verify)
        least = _least(looked.rows, asked.objective, work.own)
        looked.rows = _joined(looked.rows, [work.row(found[0], f) for f in candidates + others])
        looked.allowed = settled(work, looked.rows)
        gained = least - _least(looked.rows, asked.objective, work.own)
        worth = _worth_more(gained, work.random["std"], before, work.cost)
        if looked.interrupted or len(work.true) < 2 or not worth:
            break
    looked.best = _best(work, looked.allowed, limits.verify)
    return looked


def refine(work: Work, limits: Limits, looked: Looked) -> Row:
    """Improve on the best with all rows, and the rest of the budget.

    Args:
        work: what it is made with.
        limits: how far to go.
        looked: what was found; what is found now joins it.

    Returns:
        The best of all.
    """
    work.whole = True
    work.reopen()
    left = limits.budget - looked.scored
    found, looked.interrupted = work.search(
        looked.allowed, left, limits.deadline, limits.any_samples, limits.rounds, limits.seconds
    )
    looked.portfolios += found
    if not found or looked.interrupted:
        return looked.best
    candidates, _ = _candidates(found[0], 1, work.true, False)
    work.confirm([f.order for f in candidates])
    improved = [work.row(found[0], f) for f in candidates]
    looked.rows, looked.allowed = _joined(improved, looked.rows), _joined(improved, looked.allowed)
    return _best(work, looked.allowed, limits.verify)


def _confirm(work: Work, orders: list[np.ndarray], looked: Looked, verify: int) -> None:
    """Train these and as many points of the front, unless the search was interrupted."""
    points = looked.points
    wanted = orders + [points[int(k)].order for k in np.linspace(0, len(points) - 1, min(verify, len(points))).round()]
    if looked.interrupted:
        return
    if work.sim.task is not None:
        work.confirm(wanted)
    elif verify:
        work.note("not confirmed: retraining needs the task")


def _best(work: Work, rows: list[Row], verify: int) -> Row:
    """The best of those that were trained beside the reference, or of the first `verify` where none was."""
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
