"""What a simulator answers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """What n orders would have led to.

    Args:
        metrics: name -> estimated value, float64 [n].
        error: name -> half-width of a 90 % interval around it, [n].
        trusted: whether the order lies where the estimate was found to hold, has the recorded samples but for a tenth,
            and its interval says more than a guess would, or it was truly trained, bool [n].
        reference: name -> the recorded value of the reference order.
        sigma_order: name -> standard deviation of the true values of reference and probes: how much order matters here.
        skilled: name -> whether the estimate is better than a constant on the probes.
        outside: how far each order's states lay outside the anchors' span, [n]; not a number for other estimators.
        estimator: which one answered.
        cost: gradient evaluations spent on this answer beside the recording, in runs.
        known: whether the order was truly trained, so that its values are the true ones, bool [n].
        reasons: name -> for each order what speaks against its estimate, in words; see `why_untrusted`.
    """

    metrics: dict[str, np.ndarray]
    error: dict[str, np.ndarray]
    trusted: np.ndarray
    reference: dict[str, float]
    sigma_order: dict[str, float]
    skilled: dict[str, bool]
    outside: np.ndarray
    estimator: str
    cost: float = 0.0
    known: np.ndarray | bool = False
    reasons: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)

    def detectable(self, metric: str) -> np.ndarray:
        """Whether the difference to the reference is larger than its error, bool [n]; see the function `detectable`."""
        difference = self.metrics[metric] - self.reference[metric]
        return np.asarray(detectable(difference, self.error[metric], self.skilled[metric]))

    def trusted_in(self, metric: str) -> np.ndarray:
        """Whether an order's estimate in this metric is to be trusted, bool [n]: the order is (see `trusted`), and
        estimates of the metric are better than a constant; or the value is known."""
        return (self.trusted & self.skilled[metric]) | self.known

    def why_untrusted(self, metric: str) -> list[tuple[str, ...]]:
        """For each order, why its estimate in this metric is not to be trusted; nothing where it is."""
        trusted, none = self.trusted_in(metric), [()] * len(self.trusted)
        return [() if good else told for good, told in zip(trusted, self.reasons.get(metric, none), strict=True)]


def detectable(difference: np.ndarray | float, error: np.ndarray | float, skilled: bool) -> np.ndarray | bool:
    """Whether an effect is larger than its error. A predicted one does not count where estimates are no better than a
    constant; a known one, of error 0, always counts.

    Args:
        difference: of the metric to the reference order's.
        error: half-width of its 90 % interval; 0 where the value is known, not predicted.
        skilled: whether estimates of the metric are better than a constant.
    """
    return ((error == 0) | skilled) & (np.abs(difference) > error)


@dataclass(frozen=True)
class Trajectory:
    """Estimated metrics along an order.

    Args:
        steps: positions, [k].
        metrics: name -> [k].
        reference: name -> the recorded run's own values there, [k].
    """

    steps: np.ndarray
    metrics: dict[str, np.ndarray]
    reference: dict[str, np.ndarray] = field(default_factory=dict)
