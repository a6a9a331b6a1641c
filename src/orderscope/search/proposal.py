"""Look for a better order with a portfolio of strategies, and confirm the best by training them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from orderscope.costs import recording_seconds
from orderscope.errors import OrderscopeError
from orderscope.retrain import retrain
from orderscope.search.costs import expected_best, spent_runs
from orderscope.search.ledger import Ledger
from orderscope.search.portfolio import Found, Portfolio, Progress
from orderscope.search.scoring import leading, precise_score, quick_score, regrouped_at_once
from orderscope.search.setting import Setting
from orderscope.search.strategy import Scores, Strategy, chosen
from orderscope.simulator import Simulator
from orderscope.task import Task

LEAST_SECONDS = 6.0
PATIENCE = 2.0
OWN, BY, FEW = "reference", "random", 8
QUICK_FROM = 64  # a smaller budget is scored precisely throughout


@dataclass(frozen=True)
class Row:
    """The best order of one strategy.

    Args:
        name, source: the strategy's.
        predicted, error: estimated metric and half-width of its 90 % interval, by the search's own scores: precise for
            orders that came near confirmation, quick for others.
        confirmed: true metric from retraining, or None.
        order: int64 [steps, batch].
    """

    name: str
    source: str
    predicted: float
    error: float
    confirmed: float | None
    order: np.ndarray


@dataclass(frozen=True)
class Proposal:
    """The best order found.

    Args:
        order: int64 [steps, batch]; the reference itself where nothing better was found.
        predicted, error: estimated metric and half-width of its 90 % interval, by `Simulator.predict`.
        confirmed: true metric from retraining, or None where it was not retrained.
        metric, maximize: what was improved, and which way.
        table: the best order of every strategy, best first.
        reference: the metric of the recorded order.
        random: predicted mean and standard deviation under random permutations of the recorded steps.
        gain_sigma: how far the proposal is better than that mean, in those standard deviations; by the true value
            where it was confirmed.
        scored: orders that were scored.
        cost: all that was spent, in runs: recording, sketching, searching, confirming.
        best_of_n: metric to be expected of the best of as many random orders, all truly trained.
        undetectable: whether the predicted gain over the reference is inside its error.
        notes: what a reader should know.
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
    notes: list[str] = field(default_factory=list)


def propose(
    sim: Simulator,
    metric: str = "eval",
    *,
    budget: int = 2000,
    verify: int = 3,
    strategies: Sequence[str] | None = None,
    maximize: bool = False,
    regroup: bool | None = None,
    seconds: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Proposal:
    """Search for an order of the recorded samples with a better final metric.

    Candidates are ranked by what their value may well be at worst, value + `CAUTION` * error. The best of different
    strategies are trained truly, and the best of those is proposed: if that is the reference, it is said.

    Args:
        metric: its name; less of it is better.
        budget: how many orders may be scored in all; none is scored twice.
        verify: how many of the best are retrained; none without `sim.task`.
        strategies: names, all by default.
        maximize: more of the metric is better.
        regroup: whether samples may leave their recorded batches. By default where single samples' gradients were kept.
            Batches of recorded samples only leave a far smaller choice.
        seconds: stop searching after this time; by default after twice what the recording took, but not before six
            seconds. So a search never costs more than a few times the recording.
        seed: of everything random.
        progress: called as `progress(stage, done, total)`.

    Returns:
        The proposal. After a keyboard interrupt, that of what was found up to then.

    Raises:
        OrderscopeError: for an unknown metric or strategy, a budget below 1, or where no order's score is finite.
    """
    picked = _checked(sim, metric, budget, verify, strategies, seconds, regroup)
    sign = -1.0 if maximize else 1.0
    regroup = bool(sim.window.sample_anchors) if regroup is None else regroup
    sim.calibration  # noqa: B018  fitted once, so that it is not charged to the first strategy
    began = time.perf_counter()
    limit = max(LEAST_SECONDS, PATIENCE * recording_seconds(sim.store)) if seconds is None else seconds
    window = leading(sim.window)
    precise = precise_score(sim, window, metric, sign)
    quick = quick_score(sim, metric, sign) if budget >= QUICK_FROM else None
    ledger = Ledger(sim.order, quick, precise, budget, began + limit, regrouped_at_once(sim))
    ledger.know(sim.order, sign * sim.reference[metric], "reference")
    setting = Setting(sim, window, metric, sign, regroup, ledger)
    portfolio = Portfolio(setting, seed, limit, progress)
    interrupted = portfolio.run(picked)
    _refuse_not_finite(ledger, metric)
    notes = _notes(setting, interrupted, limit if portfolio.late else None)
    searched = time.perf_counter() - began
    first, others = _candidates(portfolio, max(1, verify))
    confirmed: dict[bytes, float] = {}
    if not interrupted and sim.task is not None:
        confirmed = _confirmed(sim.task, metric, first[:verify], progress, notes)
    elif verify and not interrupted:
        notes.append("not confirmed: retraining needs the task")
    cost = spent_runs(sim, searched, len(confirmed))
    confirmed[sim.order.tobytes()] = sim.reference[metric]
    rows = [Row(f.strategy.name, f.strategy.source, sign * f.value, f.error, confirmed.get(f.order.tobytes()), f.order)
            for f in first + others]  # fmt: skip
    best = _best(sim, metric, sign, rows[: len(first)], notes)
    if best.name != OWN and ledger.steps_of(best.order) is None:
        notes.append("the proposed order regroups samples into new batches; regroup=False keeps those recorded")
    random = _random(portfolio, sim, metric, sign)
    value = best.predicted if best.confirmed is None else best.confirmed
    return Proposal(
        order=best.order,
        predicted=best.predicted,
        error=best.error,
        confirmed=best.confirmed,
        metric=metric,
        maximize=maximize,
        table=sorted(rows, key=lambda row: (row.confirmed is None, _rank(row, sign))),
        reference=sim.reference[metric],
        random=random,
        gain_sigma=sign * (random["mean"] - value) / random["std"] if random["std"] > 0 else 0.0,
        scored=ledger.scored,
        cost=cost,
        best_of_n=random["mean"] - sign * random["std"] * expected_best(cost),
        undetectable=not sign * (sim.reference[metric] - best.predicted) > best.error,
        notes=notes,
    )


def _candidates(portfolio: Portfolio, count: int) -> tuple[list[Found], list[Found]]:
    """Orders to be confirmed first, at most `count`, and the best of the other strategies.

    First come the best order of each strategy that may be as good as the best of all, and where those are too few, what
    else was found near the best. Only precisely scored orders are among them.
    """
    best = sorted(portfolio.best.values(), key=lambda f: f.bound)
    precise = [f for f in best if f.precise]
    first = [f for f in precise if f.value - f.error <= precise[0].value]
    for entry in portfolio.setting.ledger.ranked():
        if entry.by in portfolio.best:
            strategy = portfolio.best[entry.by].strategy
            first.append(Found(strategy, entry.order, entry.value, entry.error, True))
    distinct = list({f.order.tobytes(): f for f in reversed(first)}.values())[::-1][:count]
    chosen = {(f.strategy.name, f.order.tobytes()) for f in distinct}
    return distinct, [f for f in best if (f.strategy.name, f.order.tobytes()) not in chosen]


def _confirmed(
    task: Task, metric: str, found: list[Found], progress: Progress | None, notes: list[str]
) -> dict[bytes, float]:
    """True metric by order."""
    true: dict[bytes, float] = {}
    try:
        for done, f in enumerate(found, start=1):
            true[f.order.tobytes()] = float(retrain(task, f.order).metrics[metric][0])
            if progress is not None:
                progress("confirm", done, len(found))
    except KeyboardInterrupt:
        notes.append("interrupted: not all candidates were trained")
    return true


def _best(sim: Simulator, metric: str, sign: float, rows: list[Row], notes: list[str]) -> Row:
    """The truly best of those trained and the reference, or the best predicted where none was."""
    own = Row(OWN, "as recorded", sim.reference[metric], 0.0, sim.reference[metric], sim.order)
    trained = [row for row in rows if row.confirmed is not None and math.isfinite(row.confirmed)]
    best = min([own, *(trained or rows)], key=lambda row: _rank(row, sign))
    if np.array_equal(best.order, sim.order):
        notes.append("no better order than the recorded one was found")
        return own
    prediction = sim.predict(best.order, metrics=[metric])
    value, error = float(prediction.metrics[metric][0]), float(prediction.error[metric][0])
    return replace(best, predicted=value, error=error) if math.isfinite(value) else best


def _rank(row: Row, sign: float) -> float:
    """What rows are sorted by: the true value, else the bound."""
    if row.confirmed is not None:
        return sign * row.confirmed
    return float(Scores(np.array(sign * row.predicted), np.array(row.error)).bound)


def _random(portfolio: Portfolio, sim: Simulator, metric: str, sign: float) -> dict[str, float]:
    """Predicted mean and standard deviation of random orders; the true ones of reference and probes if none were."""
    values = sign * np.array(portfolio.values.get(BY, []))
    if len(values) < FEW:
        values = np.append(sim.truth[metric] if sim.probes else [], sim.reference[metric])
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(values.mean()), "std": spread, "orders": float(len(values))}


def _notes(setting: Setting, interrupted: bool, limit: float | None) -> list[str]:
    notes = []
    if setting.expansion is None:
        notes.append(f"metric {setting.metric!r} has no stored expansion: strategies led by its gradient were left out")
    if interrupted:
        notes.append("interrupted: the best found up to then, not confirmed")
    if limit is not None:
        notes.append(f"the search ended after {limit:.3g} s; seconds= allows more")
    return notes


def _refuse_not_finite(ledger: Ledger, metric: str) -> None:
    if ledger.scored and not ledger.finite:
        raise OrderscopeError(
            f"no finite score of metric {metric!r} among {ledger.scored} orders",
            "estimates that are finite",
            "look at `orderscope validate`; a lower learning rate or more anchors may help",
        )


def _checked(
    sim: Simulator,
    metric: str,
    budget: int,
    verify: int,
    strategies: Sequence[str] | None,
    seconds: float | None,
    regroup: bool | None,
) -> list[Strategy]:
    if metric not in sim.metric_names:
        raise OrderscopeError(
            f"metric {metric!r}", "one of " + (", ".join(sim.metric_names) or "none"), "name a recorded metric"
        )
    for name, value, least in (("budget", budget, 1), ("verify", verify, 0)):
        if int(value) != value or value < least:
            raise OrderscopeError(f"{name}={value!r}", f"a whole number from {least}", f"change {name}=")
    if seconds is not None and not seconds > 0:
        raise OrderscopeError(f"seconds={seconds!r}", "more than none", "change seconds=, or leave it out")
    if regroup and not sim.window.sample_anchors:
        raise OrderscopeError(
            "regroup=True for a run without single samples' gradients",
            "a run recorded with sample_anchors=2 or more",
            "record again, or keep the batches together with regroup=False",
        )
    if strategies is not None and not len(strategies):
        raise OrderscopeError("no strategies", "one at least", "name some, or leave out strategies=")
    return chosen(None if strategies is None else list(strategies))
