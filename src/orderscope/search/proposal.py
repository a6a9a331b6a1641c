"""Propose a better order: what there is to find, the search, and what was found beside luck."""

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
from orderscope.search.looking import Limits, look, refine
from orderscope.search.parts import SEARCHED, checked_confirming
from orderscope.search.portfolio import Progress
from orderscope.search.request import Metric, question
from orderscope.search.result import Proposal, why_undetectable
from orderscope.search.rows import OWN, Row, rank
from orderscope.search.strategies.schedules import GroupSchedule
from orderscope.search.strategy import STRATEGIES
from orderscope.search.work import Work, fitted
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
    if not 0 < searched <= 1:
        raise OrderscopeError(f"searched={searched!r}", "a share above 0 and up to 1", "change searched=")
    if confirming is not None:
        if sim.task is None:
            raise OrderscopeError("confirming= without the task", "the recorded task", "open the run with its task")
        confirming = checked_confirming(sim.task, asked.objective.names, confirming)
    fitted(sim, asked.objective)
    work = Work(sim, asked, searched, confirming, seed, progress)
    effect = work.effect()
    if effect.nothing and not anyway:
        return _nothing(work, effect)
    deadline = math.inf if seconds is None else time.perf_counter() + seconds
    limits = Limits(budget, verify, rounds, seconds, deadline, allow_other_samples)
    looked = look(work, limits)
    best = looked.best
    parts = best.parts
    if work.refines(verify) and not looked.interrupted and parts and parts[0].gain > 0:
        best = refine(work, limits, looked)
    portfolio = looked.portfolios[0]
    simple = scheduled(work, portfolio.setting, best, verify > 0 and not looked.interrupted)
    if simple is not None and simple.confirmed is not None and simple.kept > 1:  # few numbers learn little of the rows
        row = work.known_row(portfolio, STRATEGIES[GroupSchedule.name], simple.order)
        looked.rows.insert(0, row)
        best = work.best([row, best])
        if best.order is simple.order:
            simple = replace(simple, kept=1.0)
    left = not looked.interrupted and work.trained < verify * rounds
    sort = sorted_alike(work, portfolio.setting, best, left)
    work.tell()
    if best.name != OWN and best.regroups:
        work.note("the proposed order regroups samples into new batches; regroup=False keeps those recorded")
    if known := _better_known(work, best):
        work.note(known)
    if not looked.interrupted:
        work.forget()
    in_turn = sorted(looked.rows, key=lambda row: (row.confirmed is None, rank(row, asked.objective.sign)))
    refined = not best.parts and bool(parts)  # no rows are unseen of the improved one
    return replace(
        _proposal(work, effect, best, parts if refined else best.parts),
        table=[_as_foretold(row, best) for row in in_turn],
        scored=looked.scored,
        front=[_as_trained(work, point) for point in looked.points],
        refined=refined,
        simple=simple,
        sort=sort,
    )


def _proposal(work: Work, effect: Verdict, best: Row, parts: list[PartGain]) -> Proposal:
    """The row as a proposal, beside the reference and luck."""
    sim, objective, random, cost = work.sim, work.asked.objective, work.random, work.cost
    sign, reference = objective.sign, float(objective.told(sim.reference))
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
    """The reference, and why nothing was looked for."""
    sim, value = work.sim, float(work.asked.objective.told(work.sim.reference))
    own = Row(OWN, "as recorded", value, 0.0, value, sim.order, dict(sim.reference), dict(sim.reference))
    work.note("nothing was searched; anyway=True (--anyway) searches all the same")
    return replace(_proposal(work, effect, own, []), why="", searched=False)


def _as_foretold(row: Row, best: Row) -> Row:
    """A row of the table, with the proposal's prediction where it is that order: one made without its own run, which a
    search that meets an order trained before has at hand."""
    if best.name == OWN or not np.array_equal(row.order, best.order):
        return row
    return replace(row, predicted=best.predicted, error=best.error)


def _better_known(work: Work, best: Row) -> str:
    """Which true run of before beats what is proposed, in words; empty where none does. It was not searched for, so
    nothing is known of it on rows that were set aside."""
    sim, objective, rules = work.sim, work.asked.objective, work.asked.rules
    value = best.predicted if best.confirmed is None else best.confirmed
    if not sim.runs or not math.isfinite(value):
        return ""
    told = np.asarray(objective.told(sim.run_truth), dtype=np.float64)
    fits = np.ones(len(told), dtype=bool) if rules is None else rules.holds(sim.run_orders)
    new = np.array([order.tobytes() not in work.true for order in sim.run_orders])
    ahead = np.where(new & fits & np.isfinite(told), objective.sign * (value - told), -np.inf)
    i = int(ahead.argmax())
    if not ahead[i] > 0:
        return ""
    return (
        f"an order that was trained before is better than the proposed one: {objective.title} "
        f"{number(float(told[i]), 5)} in run {sim.runs[i]}; Simulator.run_orders[{i}] has it"
    )


def _as_trained(work: Work, point: Row) -> Row:
    """A point of the front with its true metrics, where it was trained."""
    own = work.true.get(point.order.tobytes())
    return point if own is None else replace(point, true=dict(own.metrics))
