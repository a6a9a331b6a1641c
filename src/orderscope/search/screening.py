"""The candidates of a search, scored once more by the proxy before some of them are trained.

The carried replay finds candidates at little cost, but over long runs, and where the sampled curvature says little, it
ranks them badly, and a search finds what it overrates most. If it errs much on the recorded runs, each left out, or the
run is long, and the proxy errs less on them, see `proxy_errs_less`, the most promising candidates are trained on a few
samples of each batch, and those are confirmed that are best by both estimates, each weighted by its precision,

    value = (v / e^2 + v' / e'^2) / (1 / e^2 + 1 / e'^2),    error = (1 / e^2 + 1 / e'^2)^(-1/2),

v, e of the carried replay and v', e' of the proxy, on the searched rows only, so the confirming rows stay unseen. They
are ranked by the bound of `Scores`, with the proxy's standard error over the rows.

Source of the weights: W. G. Cochran, "The combination of estimates from different experiments", Biometrics 10, 1954.
"""

from __future__ import annotations

import numpy as np

from orderscope.baselines.proxy import EFFORT
from orderscope.search.confirm import Trained
from orderscope.search.ledger import Entry
from orderscope.search.portfolio import Portfolio
from orderscope.search.strategy import Scores
from orderscope.search.work import Work
from orderscope.simulation.effort import ProxyEstimator, proxy_errs_less, why_inaccurate

POOL = 24  # candidates that are scored
EACH = 3  # of one strategy
AT_ONCE = 8  # orders between two calls of `progress`
TINY = 1e-12


def screened(work: Work, portfolio: Portfolio) -> dict[bytes, float]:
    """Bounds of the best candidates by both estimates, lower is better: bytes of the order -> bound. Empty if the
    carried replay is accurate or errs less than the proxy, or the task is not there.

    Args:
        work: the run and the state of its rows and trainings.
        portfolio: the finished search.
    """
    sim, names = work.sim, work.request.objective.names
    if sim.task is None or not sim.runs or why_inaccurate(sim, names) is None:
        return {}
    with work.timed():
        proxy = ProxyEstimator(sim, None)
        if not proxy_errs_less(sim, proxy, names, sim.calibration):
            return {}
        pool = _pool(portfolio, work.true)
        bounds = combined(_carried(pool), _scores(work, proxy, [entry.order for entry in pool])).bound
    work.note(
        f"{len(pool)} candidates were trained on {EFFORT:g} of each batch to choose those to confirm: on the recorded "
        "runs that errs less than the prediction"
    )
    return {entry.order.tobytes(): float(bound) for entry, bound in zip(pool, bounds, strict=True)}


def combined(one: Scores, other: Scores) -> Scores:
    """The mean of two estimates of the same orders, weighted by precision, with the other's standard error over rows.

    Args:
        one: scores of n orders. An infinite error has no weight.
        other: scores of the same orders.
    """
    errors = np.maximum([one.error, other.error], TINY)
    precision = np.maximum(errors**-2.0, TINY**2)
    values = np.where(np.isfinite([one.value, other.value]), [one.value, other.value], np.inf)
    value = (precision * values).sum(0) / precision.sum(0)
    return Scores(value, precision.sum(0) ** -0.5, other.spread)


def _pool(portfolio: Portfolio, known: dict[bytes, Trained]) -> list[Entry]:
    """The best orders that were not trained yet: of every strategy the best one, then the next ones by rank."""
    ranked = portfolio.setting.ledger.ranked()
    entries = {entry.order.tobytes(): entry for entry in ranked}
    best = [(f.strategy.name, f.order.tobytes()) for f in sorted(portfolio.best.values(), key=lambda f: f.bound)]
    chosen: dict[bytes, Entry] = {}
    count: dict[str, int] = {}
    for name, key in [*best, *((entry.by, entry.order.tobytes()) for entry in ranked)]:
        if key in known or key in chosen or count.get(name, 0) >= EACH or len(chosen) >= POOL:
            continue
        chosen[key], count[name] = entries[key], count.get(name, 0) + 1
    return list(chosen.values())


def _carried(pool: list[Entry]) -> Scores:
    """Scores of the candidates by the carried replay."""
    return Scores(*(np.array([getattr(entry, key) for entry in pool]) for key in ("value", "error", "spread")))


def _scores(work: Work, proxy: ProxyEstimator, orders: list[np.ndarray]) -> Scores:
    """Scores of orders [steps, batch] each, by their proxies."""
    objective = work.request.objective
    every = [work.sim.order, *orders]
    trained: list[Trained] = []
    scored: list[tuple[dict[str, float], dict[str, np.ndarray]]] = []
    for first in range(0, len(every), AT_ONCE):
        found, estimates, errors = proxy.evaluations(np.stack(every[first : first + AT_ONCE]), objective.names)
        for i, each in enumerate(found):
            losses = {name: rows.double().numpy() for name, rows in each.losses.items()}
            trained.append(Trained(each.metrics, losses))
            estimate = {name: float(estimates[name][i]) for name in objective.names}
            searched = _searched(work, proxy, estimate, trained[-1], trained[0])
            scored.append((searched, {name: errors[name][i] for name in objective.names}))
        if work.progress is not None:
            work.progress("train candidates on few samples", min(first + AT_ONCE, len(every)), len(every))
    return Scores(
        np.array([float(objective.value(value)) for value, _ in scored[1:]]),
        np.array([float(objective.error(error)) for _, error in scored[1:]]),
        np.array([work.spread_of(each, trained[0], objective) for each in trained[1:]]),
    )


def _searched(
    work: Work, proxy: ProxyEstimator, estimate: dict[str, float], trained: Trained, reference: Trained
) -> dict[str, float]:
    """The estimate of an order on the searched rows: that on all rows, moved by how the true reference differs there,
    and by how much more the order's proxy does than the reference's.

    Args:
        work: the state of the search.
        proxy: the proxy, for its scale.
        estimate: metric -> estimate on all rows.
        trained: the proxy of the order.
        reference: the proxy of the reference.
    """

    def beyond(result: Trained) -> dict[str, float]:
        part = work.on(result, work.request.objective, "searched")
        return {name: value - result.metrics[name] for name, value in part.items()}

    true, order, start = beyond(work.reference), beyond(trained), beyond(reference)
    return {
        name: value + true[name] + proxy.scale(name) * (order[name] - start[name]) for name, value in estimate.items()
    }
