"""The two scores of a search: estimated metric and error, turned so that lower is better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from orderscope.engine import Batches, Window, replay, units_of
from orderscope.engine.window import compress
from orderscope.search.ledger import Score
from orderscope.simulator import Simulator
from orderscope.threads import one_thread

ROWS_BYTES = 1 << 28
ENERGY = 0.9


def leading(window: Window) -> Window:
    """The window with `ENERGY` of its curvature: half the time, nearly the same values."""
    factors = tuple((compress(first, ENERGY), compress(second, ENERGY)) for first, second in window.factors)
    return replace(window, factors=factors)


def quick_score(sim: Simulator, metric: str, sign: float) -> Score | None:
    """`Simulator.score`; None for metrics it does not know."""
    if metric not in sim.plan.metrics:
        return None

    def score(orders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value, error = sim.score(orders, metric)
        return sign * value, error

    return score


def precise_score(sim: Simulator, window: Window, metric: str, sign: float) -> Score:
    """On all coordinates, and by the real model where it can be run, but in a single replay with the leading curvature:
    `Simulator.predict` takes five times as long. The expansion that the quick score is made of is too hopeful far from
    the reference.

    Args:
        window: as `leading` makes it.
    """
    batches = Batches(sim.order)

    def score(orders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with one_thread():
            replayed = replay(window, units_of(window, batches, orders), members=1)
            raw = sim.metric_model(replayed.theta[0], (metric,))[metric]
        value, error = sim.calibration[metric].apply(raw[None], sim.bearing(replayed))
        return sign * value, error

    return score


def regrouped_at_once(sim: Simulator) -> int:
    """How many regrouped orders to score in one call, so that their gradients at the anchors fit in memory."""
    window = sim.window
    return max(1, ROWS_BYTES // (4 * window.steps * window.anchors.count * window.coords))
