"""The candidates of a search, scored once more by the proxy before some of them are trained.

The carried replay finds candidates at little cost, but over long runs, and where the sampled curvature says little, it
ranks them badly. If it errs much on the recorded runs, each left out, or the run is long, and the proxy errs less on
them, the most promising candidates are trained on a few samples of each batch, and those are confirmed that are best
then. That the proxy errs less need not be significant, since what is chosen is truly trained:

    score = objective on the searched rows + PENALTY * standard error of its difference to the reference.

Only the searched rows are looked at, so the confirming rows stay unseen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orderscope.baselines.proxy import EFFORT
from orderscope.search.confirm import Trained
from orderscope.search.portfolio import Portfolio
from orderscope.search.strategy import PENALTY
from orderscope.search.work import Work
from orderscope.simulation.effort import ProxyEstimator, why_inaccurate
from orderscope.simulation.simulator import Simulator

POOL = 24  # candidates that are scored
EACH = 3  # of one strategy
AT_ONCE = 8  # orders between two calls of `progress`


def screened(work: Work, portfolio: Portfolio) -> dict[bytes, float]:
    """Scores of the best candidates by the proxy, lower is better: bytes of the order -> score. Empty if the carried
    replay is accurate or errs less than the proxy, or the task is not there.

    Args:
        work: the run and the state of its rows and trainings.
        portfolio: the finished search.
    """
    sim, names = work.sim, work.request.objective.names
    if sim.task is None or not sim.runs or why_inaccurate(sim, names) is None:
        return {}
    with work.timed():
        proxy = ProxyEstimator(sim, None)
        if not errs_less_on_average(proxy, sim, names):
            return {}
        pool = _pool(portfolio, work.true)
        scores = _scores(work, proxy, pool)
    work.note(
        f"{len(pool)} candidates were trained on {EFFORT:g} of each batch to choose those to confirm: on the recorded "
        "runs that errs less than the prediction"
    )
    return {order.tobytes(): score for order, score in zip(pool, scores, strict=True)}


def errs_less_on_average(proxy: ProxyEstimator, sim: Simulator, names: Sequence[str]) -> bool:
    """Whether the proxy's mean error on the left-out runs is below that of the carried replay, in units of a constant
    guess's, summed over metrics.

    Args:
        proxy: trains the runs on few samples, unless it did before.
        sim: the simulator of the run.
        names: metrics; those that only the proxy predicts are left out.
    """
    both = [name for name in names if name in sim.metric_names]
    return sum(proxy.calibration(name).left - sim.calibration[name].left for name in both) < 0


def _pool(portfolio: Portfolio, known: dict[bytes, Trained]) -> list[np.ndarray]:
    """The best orders that were not trained yet: of every strategy the best one, then the next ones by rank."""
    best = sorted(portfolio.best.values(), key=lambda f: f.bound)
    ranked = [(f.strategy.name, f.order) for f in best]
    ranked += [(entry.by, entry.order) for entry in portfolio.setting.ledger.ranked()]
    chosen: dict[bytes, np.ndarray] = {}
    count: dict[str, int] = {}
    for name, order in ranked:
        key = order.tobytes()
        if key in known or key in chosen or count.get(name, 0) >= EACH or len(chosen) >= POOL:
            continue
        chosen[key], count[name] = order, count.get(name, 0) + 1
    return list(chosen.values())


def _scores(work: Work, proxy: ProxyEstimator, orders: list[np.ndarray]) -> list[float]:
    """Scores of orders [steps, batch] each, by their proxies beside the reference's."""
    objective = work.request.objective
    every = [work.sim.order, *orders]
    trained: list[Trained] = []
    for first in range(0, len(every), AT_ONCE):
        found = proxy.evaluations(np.stack(every[first : first + AT_ONCE]), objective.names)
        losses = [{name: rows.double().numpy() for name, rows in each.losses.items()} for each in found]
        trained += [Trained(each.metrics, rows) for each, rows in zip(found, losses, strict=True)]
        if work.progress is not None:
            work.progress("train candidates on few samples", min(first + AT_ONCE, len(every)), len(every))
    reference, *others = trained
    return [
        float(objective.value(work.on(each, objective, "searched")))
        + PENALTY * work.spread_of(each, reference, objective)
        for each in others
    ]
