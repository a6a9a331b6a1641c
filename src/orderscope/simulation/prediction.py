"""The results of a simulator."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """Predicted final metrics of n orders.

    Args:
        metrics: name -> estimated value, float64 [n].
        error: name -> half-width of its 90 % interval, [n].
        trusted: whether the estimate is trusted, in one metric at least, bool [n]: the order lies where the probes
            showed that predictions hold, it has at least 90 % of the recorded samples, and its interval is narrower
            than that of a constant guess; or the order was truly trained. See `trusted_in`.
        reference: name -> recorded value of the reference order.
        sigma_order: name -> standard deviation of the true values of reference and probes: how much order matters here.
        skilled: name -> whether estimates are better than a constant on the probes.
        outside: distance of each order's states from the anchors' span, see `orderscope.engine.replay.Replayed`, [n];
            NaN for estimators without anchors.
        estimator: name of the estimator that was used.
        cost: gradient evaluations spent on this prediction in addition to the recording, in runs.
        known: whether the order was truly trained, so that its values are the true ones, bool [n].
        reasons: name -> for each order the reasons against its estimate, in words; see `why_untrusted`.
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
        """Whether an order's estimate of this metric is trusted, bool [n]: nothing speaks against it, or the value is
        known."""
        if metric in self.reasons:
            return np.array([not why for why in self.reasons[metric]], dtype=bool)
        return (self.trusted & self.skilled[metric]) | self.known

    def why_untrusted(self, metric: str) -> list[tuple[str, ...]]:
        """For each order the reasons why its estimate of this metric is not trusted; empty if it is."""
        return self.reasons.get(metric, [()] * len(self.trusted))


def detectable(difference: np.ndarray | float, error: np.ndarray | float, skilled: bool) -> np.ndarray | bool:
    """Whether an effect is larger than its error. A predicted effect does not count if estimates are no better than a
    constant; a true one, whose error is 0, always counts.

    Args:
        difference: difference of the metric to that of the reference order.
        error: half-width of its 90 % interval; 0 where the value is known, not predicted.
        skilled: whether estimates of the metric are better than a constant.
    """
    return ((error == 0) | skilled) & (np.abs(difference) > error)


@dataclass(frozen=True)
class Trajectory:
    """Estimated metrics along an order.

    Args:
        steps: number of steps taken, [k].
        metrics: name -> estimated value after these steps, [k].
        reference: name -> recorded value of the reference run there, [k].
    """

    steps: np.ndarray
    metrics: dict[str, np.ndarray]
    reference: dict[str, np.ndarray] = field(default_factory=dict)
