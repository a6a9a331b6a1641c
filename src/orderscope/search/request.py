"""The request of a search: the arguments of `propose`, checked."""

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
class Request:
    """A request for a search, or for several that make up a Pareto front.

    Args:
        objectives: one for each search; of several, the first weighs all metrics equally in units of `sigma_order`.
        strategies: the strategies to run.
        rules: constraints on orders, or None.
        regroup: whether samples may leave their recorded batches.
        judged: whether regrouped orders are proposed only if significantly better than whole batches, because
            regrouping was not requested explicitly.
        named: whether the user named the strategies.
    """

    objectives: list[Objective]
    strategies: list[Strategy]
    rules: Rules | None
    regroup: bool
    judged: bool = False
    named: bool = False

    @property
    def objective(self) -> Objective:
        """The first objective."""
        return self.objectives[0]


def checked_request(
    sim: Simulator,
    metric: Metric,
    maximize: bool | Collection[str],
    strategies: Sequence[str] | None,
    constraints: Iterable[Constraint | str],
    regroup: bool | None,
    numbers: Mapping[str, tuple[float, int]],
    seconds: float | None,
) -> Request:
    """Check the arguments of `propose`.

    Args:
        sim: the simulator of the run.
        metric: a name, weights by name, or several names.
        maximize: True to maximise; for several metrics, the names of those to maximise.
        strategies: names of the strategies; None for all.
        constraints: constraints on orders, or their texts.
        regroup: whether samples may leave their recorded batches; None if the recorded gradients decide.
        numbers: option -> (value, smallest allowed value).
        seconds: most wall seconds of the search; None for no limit.

    Raises:
        OrderscopeError: for an unknown metric or strategy, a number out of range, or constraints that cannot be met.
    """
    for name, (value, least) in numbers.items():
        check_whole(least, **{name: value})
    if seconds is not None and not seconds > 0:
        raise OrderscopeError(f"seconds={seconds!r}", "a number above 0", "change seconds=, or leave it out")
    if regroup and not sim.window.sample_anchors:
        raise OrderscopeError(
            "regroup=True for a run without single samples' gradients",
            "a run recorded with sample_anchors=2 or more",
            "record again, or keep the batches together with regroup=False",
        )
    if strategies is not None and not len(strategies):
        raise OrderscopeError("no strategies", "at least one", "name some, or leave out strategies=")
    judged = regroup is None
    regroup = bool(sim.window.sample_anchors) if regroup is None else regroup
    read, names = read_constraints(constraints), sim.description["group_names"]
    rules = Rules(read, sim.order, sim.window.group_codes, names, regroup) if read else None
    picked = chosen(None if strategies is None else list(strategies))
    return Request(_objectives(sim, metric, maximize), picked, rules, regroup, judged, strategies is not None)


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
