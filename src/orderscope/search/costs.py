"""What was spent, in runs, and what luck would have bought for it."""

from __future__ import annotations

from scipy.stats import norm

from orderscope.simulator import Simulator
from orderscope.sketch import REFERENCE


def recording_seconds(sim: Simulator) -> float:
    """Wall time of training and sketching by the run's journal; zero where it tells nothing."""
    events = sim.store.journal()

    def total(kind: str) -> float:
        return sum(float(e.get("seconds", 0.0)) for e in events if e.get("event") == kind)

    return total("segment") + (total("sketch finished") or total("sketched"))


def run_seconds(sim: Simulator) -> float | None:
    """Wall time of training the reference order once, None where the journal does not tell."""
    segments = {
        e["index"]: float(e["train_seconds"])
        for e in sim.store.journal()
        if e.get("event") == "segment" and e.get("run") == REFERENCE and "train_seconds" in e
    }
    return sum(segments.values()) or None


def spent_runs(sim: Simulator, search: float, confirmed: int) -> float:
    """Everything a proposal cost: recording and searching by the clock, in runs of the reference, and the runs that
    confirmed. Where the journal tells no times: gradient evaluations of recording and sketching, search left out."""
    run = run_seconds(sim)
    if run is None:
        return 1 + len(sim.probes) + sum(sim.plan.cost().values()) + confirmed
    return (recording_seconds(sim) + search) / run + confirmed


def expected_best(count: float) -> float:
    """How far the best of `count` normal draws lies from the mean, in standard deviations; Blom's approximation.

    Source: Blom, "Statistical estimates and transformed beta-variables", 1958.

    Example:
        >>> round(expected_best(100), 2)
        2.5
    """
    return float(norm.ppf((max(1.0, count) - 0.375) / (max(1.0, count) + 0.25)))
