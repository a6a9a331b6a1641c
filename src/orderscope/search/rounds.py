"""The rounds of a search: score candidates, train the best, repeat; then a final search on all held-out rows."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from orderscope.search.confirm import Trained
from orderscope.search.equal_cost import expected_best
from orderscope.search.evidence import settled
from orderscope.search.objective import Objective, front
from orderscope.search.portfolio import Found, Portfolio
from orderscope.search.request import Request
from orderscope.search.rows import Row
from orderscope.search.screening import screened
from orderscope.search.strategy import STRATEGIES
from orderscope.search.work import Work


@dataclass(frozen=True)
class Limits:
    """Limits of a search; `budget`, `verify`, `rounds` and `seconds` are those of `propose`.

    Args:
        deadline: value of `time.perf_counter` at which to stop.
        any_samples: whether samples may be repeated and left out.
    """

    budget: int
    verify: int
    rounds: int
    seconds: float | None
    deadline: float
    any_samples: bool


@dataclass
class SearchState:
    """The results of a search so far.

    Args:
        best: the order to propose.
        rows: the best order of every strategy.
        allowed: those of the rows that may be proposed.
        portfolios: one for each objective and round.
        points: with several metrics, the Pareto front of the scored orders.
        interrupted: whether the user interrupted the search.
    """

    best: Row
    rows: list[Row]
    allowed: list[Row]
    portfolios: list[Portfolio]
    points: list[Row] = field(default_factory=list)
    interrupted: bool = False

    @property
    def scored(self) -> int:
        """Number of orders scored."""
        return sum(p.setting.ledger.scored for p in self.portfolios)


def run_rounds(work: Work, limits: Limits) -> SearchState:
    """Search and train in rounds, as long as a round gains more than its cost would buy in random orders.

    Half of the budget and one training are reserved if the best order is to be refined on all rows afterwards.

    Args:
        work: the run and the state of its rows and trainings.
        limits: budget, trainings, rounds and time.
    """
    request, rounds = work.request, limits.rounds
    budget, verify = limits.budget, limits.verify
    if work.refines(verify):
        budget, verify = math.ceil(budget / 2), verify - 1
    state = SearchState(work.reference_row(), [], [], [])
    for number in range(rounds):
        if number:
            work.reopen()  # so that the calibration uses the orders confirmed before
        before = work.cost
        left = (budget - state.scored) // (rounds - number)
        found, state.interrupted = work.search(
            state.allowed, left, limits.deadline, limits.any_samples, number, limits.seconds
        )
        if not found:
            break
        state.portfolios += found
        judged = request.judged and work.parts is not None
        scores = {} if state.interrupted or not limits.verify else screened(work, found[0])
        candidates, others = _candidates(found[0], max(1, verify), work.true, judged, scores)
        state.points = _front(state.portfolios, request) if len(request.objectives) > 1 else []
        _confirm(work, [f.order for f in candidates[:verify]], state, limits.verify)
        least = _least(state.rows, request.objective, work.reference)
        state.rows = _joined(state.rows, [work.row(found[0], f) for f in candidates + others])
        state.allowed = settled(work, state.rows)
        gained = least - _least(state.rows, request.objective, work.reference)
        worth = _worth_more(gained, work.random["std"], before, work.cost)
        if state.interrupted or len(work.true) < 2 or not worth:
            break
    state.best = _best(work, state.allowed, limits.verify)
    return state


def refine(work: Work, limits: Limits, state: SearchState) -> Row:
    """Improve the best order on all rows, with the rest of the budget.

    Args:
        work: the run and the state of its rows and trainings.
        limits: budget, trainings, rounds and time.
        state: the results of the rounds; extended by those of this search.

    Returns:
        The best order of all searches.
    """
    work.whole = True
    work.reopen()
    left = limits.budget - state.scored
    found, state.interrupted = work.search(
        state.allowed, left, limits.deadline, limits.any_samples, limits.rounds, limits.seconds
    )
    state.portfolios += found
    if not found or state.interrupted:
        return state.best
    candidates, _ = _candidates(found[0], 1, work.true, False, {})
    work.confirm([f.order for f in candidates])
    improved = [work.row(found[0], f) for f in candidates]
    state.rows, state.allowed = _joined(improved, state.rows), _joined(improved, state.allowed)
    return _best(work, state.allowed, limits.verify)


def _confirm(work: Work, orders: list[np.ndarray], state: SearchState, verify: int) -> None:
    """Train these orders and up to `verify` points of the Pareto front, unless the search was interrupted."""
    points = state.points
    wanted = orders + [points[int(k)].order for k in np.linspace(0, len(points) - 1, min(verify, len(points))).round()]
    if state.interrupted:
        return
    if work.sim.task is not None:
        work.confirm(wanted)
    elif verify:
        work.note("not confirmed: retraining needs the task")


def _best(work: Work, rows: list[Row], verify: int) -> Row:
    """The best of the trained orders other than the reference; of the first `verify` if none was trained."""
    recorded = work.sim.order.tobytes()
    trained = [row for row in rows if row.order.tobytes() in work.true and row.order.tobytes() != recorded]
    return work.best(trained or rows[: max(1, verify)])


def _least(rows: Sequence[Row], objective: Objective, reference: Trained) -> float:
    """The lowest true objective so far, of the reference and the confirmed orders."""
    confirmed = [objective.sign * row.confirmed for row in rows if row.confirmed is not None]
    return min([float(objective.value(reference.metrics)), *confirmed])


def _worth_more(gained: float, spread: float, before: float, after: float) -> bool:
    """Whether a round gained more than spending its cost on training random orders is expected to gain.

    Args:
        gained: decrease of the objective in the round.
        spread: standard deviation of the objective over random orders.
        before: total cost before the round, in runs.
        after: total cost after it, in runs.
    """
    return gained > spread * (expected_best(after) - expected_best(before))


def _joined(before: list[Row], now: list[Row]) -> list[Row]:
    """Rows of this round, then rows of earlier rounds that were confirmed or whose strategy did not run again."""
    orders, names = {row.order.tobytes() for row in now}, {row.name for row in now}
    return now + [
        r for r in before if r.order.tobytes() not in orders and (r.confirmed is not None or r.name not in names)
    ]


def _front(portfolios: list[Portfolio], request: Request) -> list[Row]:
    """The Pareto front of all scored orders, sorted by the first metric."""
    objective = request.objective
    entries = list({e.order.tobytes(): e for p in portfolios for e in p.setting.ledger.ranked()}.values())
    signs = np.sign([objective.weights[name] for name in objective.names])
    values = np.stack([e.metrics for e in entries]) * signs
    rows = []
    for k in np.flatnonzero(front(values)):
        e = entries[k]
        metrics = dict(zip(objective.names, e.metrics.tolist(), strict=True))
        source = STRATEGIES[e.by].source if e.by in STRATEGIES else "as recorded"
        rows.append(Row(e.by, source, float(objective.reported(metrics)), e.error, None, e.order, metrics))
    return sorted(rows, key=lambda row: row.metrics[objective.names[0]])


def _candidates(
    portfolio: Portfolio, count: int, known: Collection[bytes], judged: bool, scores: Mapping[bytes, float]
) -> tuple[list[Found], list[Found]]:
    """The orders to confirm, at most `count`, and the best orders of the other strategies.

    First the best of each kind: whole batches, regrouped samples, and rules, which overfit the searched rows least.
    Then the best order of each strategy whose interval reaches the best score, then the next orders by rank.

    Args:
        portfolio: the finished search.
        count: most orders to confirm.
        known: bytes of the orders whose true value is known already.
        judged: whether regrouping has to be significantly better than whole batches to be proposed. A single candidate
            then keeps the batches, since a regrouped one would have nothing to be compared with.
        scores: bytes of an order -> score that orders are ranked by instead of their bounds; empty for the bounds.
    """
    ledger = portfolio.setting.ledger
    ranked = [
        Found(portfolio.best[e.by].strategy, e.order, e.value, e.error, e.spread)
        for e in ledger.ranked()
        if e.by in portfolio.best
    ]
    best = sorted(portfolio.best.values(), key=lambda f: f.bound)
    near = [f for f in best if f.value - f.error <= best[0].value]
    if scores:
        ranked = sorted(ranked, key=lambda f: scores.get(f.order.tobytes(), math.inf))
        near = [f for f in ranked if f.order.tobytes() in scores]
    kinds: dict[str, Found] = {}
    for f in near if scores else best:
        if f.order.tobytes() not in known:
            rule = not f.strategy.guided and not f.strategy.weight
            kinds.setdefault("regrouped" if ledger.steps_of(f.order) is None else "rule" if rule else "whole", f)
    first = [*kinds.values(), *near]
    if judged and count == 1:
        first.sort(key=lambda f: ledger.steps_of(f.order) is None)
    first = [f for f in [*first, *ranked] if f.order.tobytes() not in known]
    unique: dict[bytes, Found] = {}
    for f in first:
        unique.setdefault(f.order.tobytes(), f)
    distinct = list(unique.values())[:count]
    chosen = {(f.strategy.name, f.order.tobytes()) for f in distinct}
    return distinct, [f for f in best if (f.strategy.name, f.order.tobytes()) not in chosen]
