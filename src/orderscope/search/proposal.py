"""Look for a better order with a portfolio of strategies, and confirm the best by training them."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from orderscope.errors import OrderscopeError
from orderscope.recording.record import add_runs
from orderscope.search.constraints import Constraint
from orderscope.search.equal_cost import expected_best, spent_runs
from orderscope.search.ledger import Entry, Ledger
from orderscope.search.objective import Objective, front
from orderscope.search.portfolio import Found, Portfolio, Progress
from orderscope.search.request import Metric, Question, question
from orderscope.search.scores import score_of
from orderscope.search.setting import Setting
from orderscope.search.strategy import STRATEGIES, Scores
from orderscope.simulation.foretold import foretell
from orderscope.simulation.simulator import Simulator
from orderscope.task import Task
from orderscope.training.retrain import retrain

OWN, BY, FEW = "reference", "random", 8
CONFIRMED = "confirmed-"


@dataclass(frozen=True)
class Row:
    """The best order of one strategy, or a point of a front.

    Args:
        name, source: the strategy's.
        predicted, error: estimated metric and half-width of its 90 % interval, by the search's own scores.
        confirmed: true metric from retraining, or None.
        order: int64 [steps, batch].
        metrics: estimated values by metric.
        true: true values by metric, where it was retrained.
    """

    name: str
    source: str
    predicted: float
    error: float
    confirmed: float | None
    order: np.ndarray
    metrics: dict[str, float] = field(default_factory=dict)
    true: dict[str, float] = field(default_factory=dict)


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
            better than the reference's and `best_of_n`, but for rounding; else whether the predicted gain over the
            reference is inside its error, or estimates are no better than a constant.
        true: true values of all metrics, where it was confirmed.
        front: where several metrics were asked for, the orders that no other is better than in all of them, by the
            first metric.
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
    true: dict[str, float] = field(default_factory=dict)
    front: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
    progress: Progress | None = None,
) -> Proposal:
    """Search for an order of the recorded samples with a better final metric.

    Candidates are ranked by what their value may well be at worst, value + `CAUTION` * error. The best of different
    strategies are trained truly, and the best of those is proposed: if that is the reference, it is said. With the same
    seed it is the same again, unless `seconds` cut it short.

    Args:
        metric: a name, of which less is better; weights, {"eval": 1, "code": 0.5}, for a sum of several; or several
            names, ["eval", "code"], for a Pareto front.
        budget: how many orders may be scored in all; none is scored twice. A front's searches share it.
        verify: how many of the best are retrained; none without `sim.task`.
        strategies: names, all by default.
        maximize: more of the metric is better; of several metrics, the names of those.
        constraints: what orders must keep to, all of it: `After`, `Before`, `Share` and `Fixed` of
            `orderscope.search`, or their texts, see `parse_constraint`.
        regroup: whether samples may leave their recorded batches. By default where single samples' gradients were kept.
            Batches of recorded samples only leave a far smaller choice.
        allow_other_samples: strategies may repeat samples and leave others out.
        rounds: how often to search and confirm. With more than one, what is confirmed is recorded in the run; the next
            round is calibrated on it and starts from the best of it. `verify` is of each round, the budget of all.
        seconds: stop searching after this time; by default only the budget ends it.
        seed: of everything random.
        progress: called as `progress(stage, done, total)`.

    Returns:
        The proposal. After a keyboard interrupt, that of what was found up to then.

    Raises:
        OrderscopeError: for an unknown metric or strategy, a budget below 1, constraints that cannot be met, or where
            no order's score is finite.
    """
    numbers = {"budget": (budget, 1), "verify": (verify, 0), "rounds": (rounds, 1)}
    asked = question(sim, metric, maximize, strategies, constraints, regroup, numbers, seconds)
    sim.calibration  # noqa: B018  fitted once, so that it is not charged to the first strategy
    deadline = math.inf if seconds is None else time.perf_counter() + seconds
    portfolios: list[Portfolio] = []
    notes: list[str] = []
    points: list[Row] = []
    rows: list[Row] = []
    candidates: list[Found] = []
    true: dict[bytes, dict[str, float]] = {}
    objective, searching = asked.objective, 0.0
    for number in range(rounds):
        if number:
            sim = Simulator(sim.path, sim.task)  # calibrated on what was confirmed
        began = time.process_time()
        left = (budget - sum(p.setting.ledger.scored for p in portfolios)) // (rounds - number)
        found, interrupted = _searched(sim, asked, rows, left, deadline, allow_other_samples, seed + number, progress)
        searching += time.process_time() - began
        if not found:
            break
        portfolios += found
        notes += [note for note in _notes(found, interrupted, seconds) if note not in notes]
        candidates, others = _candidates(found[0], max(1, verify), true)
        points = _front(portfolios, asked) if len(asked.objectives) > 1 else []
        wanted = [f.order for f in candidates[:verify]]
        wanted += [points[int(k)].order for k in np.linspace(0, len(points) - 1, min(verify, len(points))).round()]
        if not interrupted and sim.task is not None:
            true |= _confirmed(sim, sim.task, wanted, rounds > 1, progress, notes)
        elif verify and not interrupted:
            notes.append("not confirmed: retraining needs the task")
        known = true | {sim.order.tobytes(): dict(sim.reference)}
        ledger = found[0].setting.ledger
        told = [_row(objective, f, ledger.entry(f.order), known) for f in candidates + others]
        rows = _joined(rows, told)
        if interrupted or not true:
            break
    first = portfolios[0]
    cost = spent_runs(sim, searching, len(true))
    trained = [row for row in rows if row.order.tobytes() in true]
    best = _best(sim, asked, trained or rows[: len(candidates)], notes)
    true[sim.order.tobytes()] = dict(sim.reference)
    if best.name != OWN and first.setting.ledger.steps_of(best.order) is None:
        notes.append("the proposed order regroups samples into new batches; regroup=False keeps those recorded")
    random = _random(first, sim, objective)
    sign, reference = objective.sign, float(objective.told(sim.reference))
    best_of_n = random["mean"] - sign * random["std"] * expected_best(cost)
    value = best.predicted if best.confirmed is None else best.confirmed
    gain, ahead = sign * (reference - value), sign * (best_of_n - value)
    calibrations = {name: sim.calibration[name] for name in objective.names}
    skilled = all(c.skilled for c in calibrations.values())
    rounding = float(objective.error({name: np.array(c.rounding) for name, c in calibrations.items()}))
    told = (skilled and gain > best.error) if best.confirmed is None else min(gain, ahead) > rounding
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
        front=[replace(point, true=true.get(point.order.tobytes(), {})) for point in points],
        notes=notes,
    )


def _searched(
    sim: Simulator,
    asked: Question,
    before: list[Row],
    budget: int,
    deadline: float,
    any_samples: bool,
    seed: int,
    progress: Progress | None,
) -> tuple[list[Portfolio], bool]:
    """One search an objective, and whether it was interrupted.

    Args:
        before: rows of earlier rounds. Where some are confirmed only strategies that start from the best are asked.
    """
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
        ledger = Ledger(sim.order, score_of(sim, objective), share, deadline, any_samples=any_samples)
        if asked.rules is None or asked.rules.holds(sim.order[None])[0]:
            _know(ledger, objective, sim.order, sim.reference, OWN)
        for row in confirmed:
            _know(ledger, objective, row.order, row.true, row.name)
        setting = Setting(sim, objective, asked.regroup, ledger, asked.rules)
        portfolios.append(Portfolio(setting, seed, progress))
        interrupted = portfolios[-1].run(led or asked.strategies)
        _refuse_not_finite(ledger, objective.title)
    return portfolios, interrupted


def _know(ledger: Ledger, objective: Objective, order: np.ndarray, true: dict[str, float], by: str) -> None:
    ledger.know(order, float(objective.value(true)), by, np.array([true[name] for name in objective.names]))


def _joined(before: list[Row], now: list[Row]) -> list[Row]:
    """Rows of this round, then what earlier ones confirmed, and their strategies that were not asked again."""
    orders, names = {row.order.tobytes() for row in now}, {row.name for row in now}
    return now + [
        r for r in before if r.order.tobytes() not in orders and (r.confirmed is not None or r.name not in names)
    ]


def _row(objective: Objective, found: Found, entry: Entry | None, true: dict[bytes, dict[str, float]]) -> Row:
    known = true.get(found.order.tobytes(), {})
    return Row(
        name=found.strategy.name,
        source=found.strategy.source,
        predicted=objective.sign * found.value,
        error=found.error,
        confirmed=float(objective.told(known)) if known else None,
        order=found.order,
        metrics={} if entry is None else dict(zip(objective.names, entry.metrics.tolist(), strict=True)),
        true=known,
    )


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

    First come the best order of each strategy that may be as good as the best of all, and where those are too few, what
    else was found near the best.
    """
    best = sorted(portfolio.best.values(), key=lambda f: f.bound)
    first = [f for f in best if f.value - f.error <= best[0].value]
    for entry in portfolio.setting.ledger.ranked():
        if entry.by in portfolio.best:
            strategy = portfolio.best[entry.by].strategy
            first.append(Found(strategy, entry.order, entry.value, entry.error))
    first = [f for f in first if f.order.tobytes() not in known]
    distinct = list({f.order.tobytes(): f for f in reversed(first)}.values())[::-1][:count]
    chosen = {(f.strategy.name, f.order.tobytes()) for f in distinct}
    return distinct, [f for f in best if (f.strategy.name, f.order.tobytes()) not in chosen]


def _confirmed(
    sim: Simulator,
    task: Task,
    orders: list[np.ndarray],
    keep: bool,
    progress: Progress | None,
    notes: list[str],
) -> dict[bytes, dict[str, float]]:
    """True metrics by order. With `keep` they are recorded as further runs, where the run can be written to."""
    distinct = {order.tobytes(): order for order in orders}
    true: dict[bytes, dict[str, float]] = {}
    for order in distinct.values():  # what is predicted is put down before the run knows better
        keep = foretell(sim, [order], allow_other_samples=True).kept and keep
    try:
        for done, (key, order) in enumerate(distinct.items(), start=1):
            found = _recorded(sim, task, order) if keep else None
            if found is None:
                found = retrain(task, order, allow_other_samples=True).metrics
            true[key] = {name: float(values[0]) for name, values in found.items()}
            if progress is not None:
                progress("confirm", done, len(distinct))
    except KeyboardInterrupt:
        notes.append("interrupted: not all candidates were trained")
    return true


def _recorded(sim: Simulator, task: Task, order: np.ndarray) -> dict[str, np.ndarray] | None:
    if Path(sim.path).is_dir():
        with suppress(OrderscopeError, OSError):  # being written, not to be written, or the order diverges
            return add_runs(task, sim.path, [order], CONFIRMED, jobs=1)
    return None


def _best(sim: Simulator, asked: Question, rows: list[Row], notes: list[str]) -> Row:
    """The truly best of those trained and the reference, or the best predicted where none was."""
    objective = asked.objective
    value = float(objective.told(sim.reference))
    own = Row(OWN, "as recorded", value, 0.0, value, sim.order, dict(sim.reference), dict(sim.reference))
    trained = [row for row in rows if row.confirmed is not None and math.isfinite(row.confirmed)]
    choice = trained or rows
    if asked.rules is None or asked.rules.holds(sim.order[None])[0]:
        choice = [own, *choice]
    else:
        notes.append("the recorded order does not keep to the constraints")
        start = Row(
            "constraints", "the recorded order, changed to keep to them", math.inf, 0.0, None, asked.rules.start
        )
        choice = choice or [start]
    best = min(choice, key=lambda row: _rank(row, objective.sign))
    if np.array_equal(best.order, sim.order):
        notes.append("no better order than the recorded one was found")
        return own
    prediction = foretell(sim, [best.order], allow_other_samples=True, keep=False)  # as told before it was trained
    told = float(objective.told(prediction.predicted)[0])
    error = float(objective.error(prediction.error)[0])
    return replace(best, predicted=told, error=error) if math.isfinite(told) else best


def _rank(row: Row, sign: float) -> float:
    """What rows are sorted by: the true value, else the bound."""
    if row.confirmed is not None:
        return sign * row.confirmed
    return float(Scores(np.array(sign * row.predicted), np.array(row.error)).bound)


def _random(portfolio: Portfolio, sim: Simulator, objective: Objective) -> dict[str, float]:
    """Predicted mean and standard deviation of random orders; the true ones of reference and probes if none were."""
    values = objective.sign * np.array(portfolio.values.get(BY, []))
    if len(values) < FEW:
        values = np.append(objective.told(sim.truth) if sim.probes else [], objective.told(sim.reference))
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(values.mean()), "std": spread, "orders": float(len(values))}


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
