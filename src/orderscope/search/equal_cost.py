"""The cost of a proposal in runs, and the best result that training random orders at the same cost would give."""

from __future__ import annotations

from scipy.special import ndtri

from orderscope.recording.costs import recording_seconds, training_seconds
from orderscope.simulation.simulator import Simulator


def spent_runs(sim: Simulator, search: float, confirmed: int) -> float:
    """Total cost of a proposal in runs: CPU seconds of recording and searching over those of one training, plus the
    confirming trainings. If the run's journal has no times, the gradient evaluations of recording and sketching are
    counted instead and the search is left out.

    Args:
        sim: the simulator of the run.
        search: CPU seconds of the search.
        confirmed: number of orders trained to confirm them.
    """
    run = training_seconds(sim.store)
    if run is None:
        return 1 + len(sim.probes) + sum(sim.plan.cost().values()) + confirmed
    return (recording_seconds(sim.store) + search) / run + confirmed


def expected_best(count: float) -> float:
    """Expected distance of the best of `count` normal draws from the mean, in standard deviations; Blom's
    approximation.

    Args:
        count: number of draws; below 1 counts as 1.

    Source: Blom, "Statistical estimates and transformed beta-variables", 1958.

    Example:
        >>> round(expected_best(100), 2)
        2.5
    """
    return float(ndtri((max(1.0, count) - 0.375) / (max(1.0, count) + 0.25)))
