"""What `propose` was asked, checked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orderscope.errors import OrderscopeError, check_whole, unknown_metric
from orderscope.search.constraints import Constraint, Rules, read_constraints
from orderscope.search.objective import Objective
from orderscope.search.strategy import Strategy, chosen
from orderscope.simulation.simulator import Simulator

Metric = str | Sequence[str] | Mapping[str, float]


@dataclass(frozen=True)
class Question:
    """A search, or several for a Pareto front.

    Args:
        objectives: one a search; of several the first weighs all metrics alike, in units of their `sigma_order`.
        strategies: what is tried.
        rules: constraints on orders, or None.
        regroup: whether samples may leave their recorded batches.
        judged: whether regrouping, not asked for, has to be clearly better than whole batches to be proposed.
        named: whether the strategies were named, and are not all.
    """

    objectives: list[Objective]
    strategies: list[Strategy]
    rules: Rules | None
    regroup: bool
    judged: bool = False
    named: bool = False

    @property
    def objective(self) -> Objective:
        return self.objectives[0]


def question(
    sim: Simulator,
    metric: Metric,
    maximize: bool | Collection[str],
    strategies: Sequence[str] | None,
    constraints: Iterable[Constraint | str],
    regroup: bool | None,
    numbers: Mapping[str, tuple[float, int]],
    seconds: float | None,
) -> Question:
    """Check what was asked.

    Args:
        sim: the run, opened.
        metric: a name, weights by name, or several names.
        maximize: whether more is better; of several metrics, the names of those.
        strategies: names; None for all.
        constraints: rules that orders must keep to, or their texts.
        regroup: whether samples may leave their recorded batches; None where the run decides.
        numbers: option -> (value, least).
        seconds: most wall seconds of the search; None for no limit.

    Raises:
        OrderscopeError: for a metric, strategy, number or constraint that is not there or cannot be.
    """
    for name, (value, least) in numbers.items():
        check_whole(least, **{name: value})
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
    judged = regroup is None
    regroup = bool(sim.window.sample_anchors) if regroup is None else regroup
    kept = read_constraints(constraints)
    rules = Rules(kept, sim.order, sim.window.group_codes, sim.description["group_names"], regroup) if kept else None
    picked = chosen(None if strategies is None else list(strategies))
    return Question(_objectives(sim, metric, maximize), picked, rules, regroup, judged, strategies is not None)


def _objectives(sim: Simulator, metric: Metric, maximize: bool | Collection[str]) -> list[Objective]:
    given = {metric: 1.0} if isinstance(metric, str) else metric
    names = list(given)
    for name in names or ["none"]:
        if name not in sim.metric_names:
            raise unknown_metric(name, sim.metric_names)
    raised = names if maximize is True else list(maximize or ())
    for name in raised:
        if name not in names:
            raise OrderscopeError(f"maximize={name!r}", "one of " + ", ".join(names), "name a metric of the search")
    sign = {name: -1.0 if name in raised else 1.0 for name in names}
    if isinstance(given, Mapping):
        weights = np.array(list(given.values()), dtype=np.float64)
        if not np.isfinite(weights).all() or not weights.any():
            raise OrderscopeError(f"weights {dict(given)}", "finite weights, not all zero", "change metric=")
        return [Objective({name: sign[name] * float(weight) for name, weight in given.items() if weight})]
    if len(set(names)) < len(names):
        raise OrderscopeError(f"metrics {names}", "each once", "name it once")
    unit = {name: sign[name] / (sim.sigma_order(name) or 1.0) for name in names}
    if len(names) == 1:
        return [Objective(sign)]
    return [Objective(unit), *(Objective({n: unit[n] * (1.0 if n == name else 0.05) for n in names}) for name in names)]
