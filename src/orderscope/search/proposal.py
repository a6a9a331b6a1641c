"""Propose a better order: whether order matters enough, the search, and the result compared with random orders."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from orderscope.errors import OrderscopeError
from orderscope.search.confirm import PartGain
from orderscope.search.constraints import Constraint
from orderscope.search.equal_cost import expected_best
from orderscope.search.forms import scheduled, sorted_alike
from orderscope.search.parts import SEARCHED, checked_confirming
from orderscope.search.portfolio import Progress
from orderscope.search.request import Metric, checked_request
from orderscope.search.result import Proposal, why_undetectable
from orderscope.search.rounds import Limits, refine, run_rounds
from orderscope.search.rows import REFERENCE_ROW, Row, rank
from orderscope.search.strategies.schedules import GroupSchedule
from orderscope.search.strategy import STRATEGIES
from orderscope.search.work import Work, fit_calibrations
from orderscope.simulation.simulator import Simulator
from orderscope.simulation.verdict import Verdict
from orderscope.text import number


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

    The verdict comes first: if the noise of the held-out rows explains the apparent effect of order, no search is made
    unless `anyway`. The search sees one part of the held-out rows. Candidates are ranked by a cautious bound on their
    value on other rows, value + `CAUTION` * error + `PENALTY` * standard error over the rows. The best of different
    kinds are trained, and their gain is measured on the rows that the search did not see. If it is positive, the best
    order is refined on all rows with the other half of the budget and one of the trainings, since twice the rows
    generalise better. The best trained order is proposed: possibly the nearest schedule of groups, or the reference if
    nothing better was found.

    The result is reproducible with the same seed, unless `seconds` ended the search. An interrupted search resumes with
    the scores that were stored.

    Args:
        sim: the simulator of the run, opened with its task if the best orders are to be trained.
        metric: the name of a metric to minimise; weights, {"eval": 1, "code": 0.5}, for a weighted sum; or several
            names, ["eval", "code"], for a Pareto front.
        budget: most orders to score in all; none is scored twice. The searches of a Pareto front share it.
        verify: number of the best orders to retrain; 0 without `sim.task`.
        strategies: names of the strategies; all by default.
        maximize: True to maximise the metric; for several metrics, the names of those to maximise.
        constraints: constraints that every order must meet: `After`, `Before`, `Share` and `Fixed` of
            `orderscope.search`, or their texts, see `parse_constraint`.
        regroup: whether samples may leave their recorded batches. By default they may if gradients of single samples
            were recorded, and such an order is proposed only if it is significantly better on the confirming rows than
            orders of whole batches. True omits that test.
        allow_other_samples: strategies may repeat samples and leave others out.
        rounds: most rounds of searching and confirming. Confirmed orders are recorded in the run; the next round is
            calibrated on them and starts from the best. There is no further round after one that gained less than
            training random orders at the same cost is expected to gain. `verify` counts for each round, `budget` for
            all rounds together.
        seconds: most wall seconds of searching; by default only the budget limits it.
        seed: seed of all random numbers.
        anyway: search even if the verdict is that order does not matter enough.
        searched: share of the held-out rows that the first search sees, above 0 and up to 1; the others confirm.
        confirming: a separate data set to confirm on, or metric -> data set; the search then sees all rows of the
            metric.
        progress: called as `progress(stage, done, total)`.

    Returns:
        The proposal. After a keyboard interrupt, the best found up to then.

    Raises:
        OrderscopeError: for an unknown metric or strategy, a budget below 1, constraints that cannot be met, or if no
            order has a finite score.
    """
    numbers = {"budget": (budget, 1), "verify": (verify, 0), "rounds": (rounds, 1)}
    request = checked_request(sim, metric, maximize, strategies, constraints, regroup, numbers, seconds)
    if not 0 < searched <= 1:
        raise OrderscopeError(f"searched={searched!r}", "a share above 0 and up to 1", "change searched=")
    if confirming is not None:
        if sim.task is None:
            raise OrderscopeError("confirming= without the task", "the recorded task", "open the run with its task")
        confirming = checked_confirming(sim.task, request.objective.names, confirming)
    fit_calibrations(sim, request.objective)
    work = Work(sim, request, searched, confirming, seed, progress)
    effect = work.effect()
    if effect.nothing and not anyway:
        return _nothing(work, effect)
    deadline = math.inf if seconds is None else time.perf_counter() + seconds
    limits = Limits(budget, verify, rounds, seconds, deadline, allow_other_samples)
    state = run_rounds(work, limits)
    best = state.best
    parts = best.parts
    if work.refines(verify) and not state.interrupted and parts and parts[0].gain > 0:
        best = refine(work, limits, state)
    portfolio = state.portfolios[0]
    simple = scheduled(work, portfolio.setting, best, verify > 0 and not state.interrupted)
    if simple is not None and simple.confirmed is not None and simple.kept > 1:  # a schedule overfits the rows least
        row = work.known_row(portfolio, STRATEGIES[GroupSchedule.name], simple.order)
        state.rows.insert(0, row)
        best = work.best([row, best])
        if best.order is simple.order:
            simple = replace(simple, kept=1.0)
    left = not state.interrupted and work.trained < verify * rounds
    sort = sorted_alike(work, portfolio.setting, best, left)
    work.add_trained()
    if best.name != REFERENCE_ROW and best.regroups:
        work.note("the proposed order regroups samples into new batches; regroup=False keeps those recorded")
    if known := _better_known(work, best):
        work.note(known)
    if not state.interrupted:
        work.forget()
    by_rank = sorted(state.rows, key=lambda row: (row.confirmed is None, rank(row, request.objective.sign)))
    refined = not best.parts and bool(parts)  # the refined order was searched on all rows, so none can confirm it
    return replace(
        _proposal(work, effect, best, parts if refined else best.parts),
        table=[_as_foretold(row, best) for row in by_rank],
        scored=state.scored,
        front=[_as_trained(work, point) for point in state.points],
        refined=refined,
        simple=simple,
        sort=sort,
    )


def _proposal(work: Work, effect: Verdict, best: Row, parts: list[PartGain]) -> Proposal:
    """The proposal of one order, compared with the reference and with random orders."""
    sim, objective, random, cost = work.sim, work.request.objective, work.random, work.cost
    sign, reference = objective.sign, float(objective.reported(sim.reference))
    mean, std = random["mean"], random["std"]
    best_of_n = mean - sign * std * expected_best(cost)
    value = best.predicted if best.confirmed is None else best.confirmed
    calibrations = {name: sim.calibration[name] for name in objective.names}
    rounding = float(objective.error({name: np.array(c.rounding) for name, c in calibrations.items()}))
    gain, ahead = sign * (reference - value), sign * (best_of_n - value)
    skilled = all(c.skilled for c in calibrations.values())
    why = why_undetectable(best, parts, gain, ahead, rounding, skilled=skilled)
    return Proposal(
        order=best.order,
        predicted=best.predicted,
        error=best.error,
        confirmed=best.confirmed,
        metric=objective.title,
        maximize=sign < 0,
        table=[best],
        reference=reference,
        random=random,
        gain_sigma=sign * (mean - value) / std if std > 0 else 0.0,
        scored=0,
        cost=cost,
        best_of_n=best_of_n,
        undetectable=bool(why),
        why=why,
        true=best.true,
        notes=work.notes,
        verdict=effect.words,
        effect=effect,
        parts=parts,
    )


def _nothing(work: Work, effect: Verdict) -> Proposal:
    """The reference as the proposal of a search that was not made, with the verdict."""
    sim, value = work.sim, float(work.request.objective.reported(work.sim.reference))
    reference = Row(
        REFERENCE_ROW, "as recorded", value, 0.0, value, sim.order, dict(sim.reference), dict(sim.reference)
    )
    work.note("nothing was searched; anyway=True (--anyway) searches all the same")
    return replace(_proposal(work, effect, reference, []), why="", searched=False)


def _as_foretold(row: Row, best: Row) -> Row:
    """A row of the table; the proposal's own has the prediction that was made without its true run, which a search that
    meets a trained order knows."""
    if best.name == REFERENCE_ROW or not np.array_equal(row.order, best.order):
        return row
    return replace(row, predicted=best.predicted, error=best.error)


def _better_known(work: Work, best: Row) -> str:
    """A note on the best of the earlier true runs, if it is better than the proposal; empty otherwise. It is not
    proposed, since no search found it and its gain on the confirming rows is not known."""
    sim, objective, rules = work.sim, work.request.objective, work.request.rules
    value = best.predicted if best.confirmed is None else best.confirmed
    if not sim.runs or not math.isfinite(value):
        return ""
    true = np.asarray(objective.reported(sim.run_truth), dtype=np.float64)
    fits = np.ones(len(true), dtype=bool) if rules is None else rules.holds(sim.run_orders)
    new = np.array([order.tobytes() not in work.true for order in sim.run_orders])
    ahead = np.where(new & fits & np.isfinite(true), objective.sign * (value - true), -np.inf)
    i = int(ahead.argmax())
    if not ahead[i] > 0:
        return ""
    return (
        f"an order that was trained before is better than the proposed one: {objective.title} "
        f"{number(float(true[i]), 5)} in run {sim.runs[i]}; Simulator.run_orders[{i}] has it"
    )


def _as_trained(work: Work, point: Row) -> Row:
    """A point of the Pareto front, with its true metrics if it was trained."""
    trained = work.true.get(point.order.tobytes())
    return point if trained is None else replace(point, true=dict(trained.metrics))
