"""The two scores of a search: estimated objective, its error, and the metrics it is made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from orderscope.engine import Batches, Window, replay, units_of
from orderscope.engine.replay import FEW_HOMES
from orderscope.engine.window import compress
from orderscope.search.ledger import Score
from orderscope.search.objective import Objective
from orderscope.simulator import Simulator
from orderscope.threads import one_thread

ROWS_BYTES = 1 << 28
ENERGY = 0.9


def leading(window: Window) -> Window:
    """The window with `ENERGY` of its curvature, halves together: half the time, nearly the same values. For replays of
    the whole alone."""
    factors = tuple((compress(torch.cat(halves), ENERGY), halves[1][:0]) for halves in window.factors)
    return replace(window, factors=factors)


def quick_score(sim: Simulator, objective: Objective) -> Score | None:
    """`Simulator.scores`; None where it does not know one of the metrics."""
    if not set(objective.names) <= set(sim.plan.metrics):
        return None

    def score(orders: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _summed(objective, *sim.scores(orders, objective.names))

    return score


def precise_score(sim: Simulator, window: Window, objective: Objective) -> Score:
    """On all coordinates, and by the real model where it can be run, but in a single replay with the leading curvature:
    `Simulator.predict` takes five times as long. The expansion that the quick score is made of is too hopeful far from
    the reference.

    Args:
        window: as `leading` makes it.
    """
    batches, there = Batches(sim.order), sim.on_device(window)

    def score(orders: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        with one_thread():
            replayed = replay(there, units_of(window, batches, orders), members=1, homes=FEW_HOMES).cpu()
            raw = sim.metric_model(replayed.theta[0], objective.names)
            at = sim.bearing(replayed)
        found = {name: sim.calibration[name].apply(raw[name][None], at) for name in objective.names}
        return _summed(objective, {n: v for n, (v, _) in found.items()}, {n: e for n, (_, e) in found.items()})

    return score


def _summed(
    objective: Objective, values: dict[str, np.ndarray], errors: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return objective.value(values), objective.error(errors), np.stack([values[n] for n in objective.names], axis=1)


def regrouped_at_once(window: Window, coords: int | None = None) -> int:
    """How many regrouped orders to score in one call, so that their gradients at the anchors fit in memory.

    Args:
        coords: coordinates they are scored on, all of the window's by default.
    """
    coords = window.coords if coords is None else min(coords, window.coords)
    return max(1, ROWS_BYTES // (4 * window.steps * window.anchors.count * coords))
