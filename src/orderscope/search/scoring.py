"""The two scores of a search: estimated metric and error, turned so that lower is better."""

from __future__ import annotations

import numpy as np

from orderscope.engine import Batches, replay, units_of
from orderscope.search.ledger import Score
from orderscope.simulator import Simulator
from orderscope.threads import one_thread

ROWS_BYTES = 1 << 28


def quick_score(sim: Simulator, metric: str, sign: float) -> Score:
    """`Simulator.score`; the precise one for metrics it does not know."""
    if metric not in sim.plan.metrics:
        return precise_score(sim, metric, sign)

    def score(orders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value, error = sim.score(orders, metric)
        return sign * value, error

    return score


def precise_score(sim: Simulator, metric: str, sign: float) -> Score:
    """On all coordinates, and by the real model where it can be run, but in a single replay: `Simulator.predict` takes
    three times as long. The expansion that the quick score is made of is too hopeful far from the reference."""
    batches = Batches(sim.order)

    def score(orders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with one_thread():
            replayed = replay(sim.window, units_of(sim.window, batches, orders), members=1)
            raw = sim.metric_model(replayed.theta[0], (metric,))[metric]
        value, error = sim.calibration[metric].apply(raw[None], replayed.outside.numpy())
        return sign * value, error

    return score


def regrouped_at_once(sim: Simulator) -> int:
    """How many regrouped orders to score in one call, so that their gradients at the anchors fit in memory."""
    window = sim.window
    return max(1, ROWS_BYTES // (4 * window.steps * window.anchors.count * window.coords))
