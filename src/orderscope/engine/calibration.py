"""Recalibration and error bars from probes predicted without their own anchors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from orderscope.engine.replay import jackknife

COVERAGE = 0.9


@dataclass(frozen=True)
class Calibration:
    """Turns the members' raw values into a value and an error.

    Args:
        reference: recorded value of the reference order, where the raw value is exact.
        shift: added to values, in proportion to how far outside an order lies.
        residual: root mean square of what is left on the probes, per unit of that.
        quantile: multiplier for a 90 % interval with as few probes as there were.
        typical: mean `outside` of the probes.
        farthest: largest `outside` of the probes.
        skilled: whether the residual is smaller than that of a constant.
        predicted, true: raw and true values of the probes.
    """

    reference: float
    shift: float
    residual: float
    quantile: float
    typical: float
    farthest: float
    skilled: bool
    predicted: np.ndarray
    true: np.ndarray

    def apply(self, raw: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Members' values [3, n] and `outside` [n] -> value [n], error [n]."""
        share = outside / self.typical if self.typical else np.ones_like(outside)
        value = jackknife(raw) + self.shift * share
        noise = np.abs(raw[1] - raw[2]) / 2 if len(raw) == 3 else np.zeros_like(value)
        return value, self.quantile * np.sqrt((self.residual * share) ** 2 + noise**2 / 4)


def fit_calibration(raw: np.ndarray, true: np.ndarray, reference: float, outside: np.ndarray) -> Calibration:
    """Fit on the probes.

    Args:
        raw: members' values of the probes, each predicted without its own anchors, [3, probes].
        true: their true values, [probes].
        reference: the reference order's value.
        outside: how far outside each probe's states lay, [probes].
    """
    predicted = jackknife(raw) if raw.shape[1] else np.zeros(0)
    if len(true) < 2:
        return Calibration(reference, 0.0, np.inf, 1.0, 0.0, 0.0, False, predicted, true)
    residuals = true - predicted
    typical = float(outside.mean())
    share = outside / typical if typical else np.ones_like(outside)
    shift = 0.0
    left = residuals - shift * share
    rms = float(np.sqrt(np.mean((left / np.maximum(share, 1e-12)) ** 2)))
    constant = float(np.sqrt(np.mean((true - np.median(np.append(true, reference))) ** 2)))
    quantile = float(stats.t.ppf(0.5 + COVERAGE / 2, len(true)))
    return Calibration(
        reference, shift, rms, quantile, typical, float(outside.max()), bool(rms < constant), predicted, true
    )
