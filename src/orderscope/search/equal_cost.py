"""What was spent, in runs, and what luck would have bought for it."""

from __future__ import annotations

from scipy.special import ndtri

from orderscope.recording.costs import recording_seconds, training_seconds
from orderscope.simulation.simulator import Simulator


def spent_runs(sim: Simulator, search: float, confirmed: int) -> float:
    """Everything a proposal cost: CPU seconds of recording and searching, in runs, and the runs that confirmed. Where
    the journal tells no times: gradient evaluations of recording and sketching, search left out.

    Args:
        sim: the run, opened.
        search: CPU seconds of the search.
        confirmed: how many orders were trained to confirm them.
    """
    run = training_seconds(sim.store)
    if run is None:
        return 1 + len(sim.probes) + sum(sim.plan.cost().values()) + confirmed
    return (recording_seconds(sim.store) + search) / run + confirmed


def expected_best(count: float) -> float:
    """How far the best of `count` normal draws lies from the mean, in standard deviations; Blom's approximation.

    Source: Blom, "Statistical estimates and transformed beta-variables", 1958.

    Example:
        >>> round(expected_best(100), 2)
        2.5
    """
    return float(ndtri((max(1.0, count) - 0.375) / (max(1.0, count) + 0.25)))
