"""Recalibration and error bars from probes predicted without their own anchors.

How large the error of an estimate is depends on how large an effect it claims and on how far its states lay outside
the anchors. Both are known for every query, so residuals are taken in units of

    s = (|value - reference| + sigma / 2) * outside / typical,

sigma the spread of the true values, `outside` the length of what the anchors do not span and `typical` its mean over
the probes.
"""

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
        sigma: standard deviation of the true values of reference and probes.
        shift: added to values, per unit s.
        residual: root mean square of what is left on the probes, per unit s.
        quantile: multiplier for a 90 % interval with as few probes as there were.
        typical, farthest: mean and largest `outside` of the probes.
        skilled: whether the residuals on the probes are smaller than those of a constant.
        noise: mean sampling noise of the probes, for a replay by one member alone.
        predicted, error, true: values of the probes left out, as they would have been told, and the truth.
    """

    reference: float
    sigma: float
    shift: float
    residual: float
    quantile: float
    typical: float
    farthest: float
    skilled: bool
    noise: float
    predicted: np.ndarray
    error: np.ndarray
    true: np.ndarray

    def apply(self, raw: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Members' values [3, n] (or [1, n]) and `outside` [n] -> value [n], error [n]."""
        plain = jackknife(raw)
        unit = _unit(plain, self.reference, self.sigma, outside, self.typical)
        noise = sampling_noise(raw) if len(raw) == 3 else self.noise
        return plain + self.shift * unit, self.quantile * np.sqrt((self.residual * unit) ** 2 + noise**2)


def fit_calibration(raw: np.ndarray, true: np.ndarray, reference: float, outside: np.ndarray) -> Calibration:
    """Fit on the probes.

    The mean residual is taken over as a shift only as far as it stands out of its own standard error (the positive-part
    James-Stein factor): with residuals of either sign nothing is shifted.

    Args:
        raw: members' values of the probes, each predicted without its own anchors, [3, probes].
        true: their true values, [probes].
        reference: the reference order's value.
        outside: how far outside each probe's states lay, [probes].
    """
    count = len(true)
    if count < 2:
        nothing = np.full(count, np.nan)
        return Calibration(reference, 0.0, 0.0, np.inf, 1.0, 0.0, 0.0, False, 0.0, nothing, nothing, true)
    plain = jackknife(raw)
    sigma = float(np.append(true, reference).std(ddof=1))
    typical = float(outside.mean())
    unit = _unit(plain, reference, sigma, outside, typical)
    scaled = (true - plain) / unit
    mean, variance = scaled.mean(), scaled.var(ddof=1)
    shift = float(mean * max(0.0, 1 - variance / (count * mean**2))) if mean else 0.0
    residual = float(np.sqrt(np.mean((scaled - shift) ** 2)))
    quantile = float(stats.t.ppf(0.5 + COVERAGE / 2, count))
    told = plain + shift * unit
    noise = sampling_noise(raw)
    constant = np.abs(true - np.median(np.append(true, reference)))
    return Calibration(
        reference=reference,
        sigma=sigma,
        shift=shift,
        residual=residual,
        quantile=quantile,
        typical=typical,
        farthest=float(outside.max()),
        skilled=bool(np.abs(true - told).mean() < constant.mean()),
        noise=float(noise.mean()),
        predicted=told,
        error=quantile * np.sqrt((residual * unit) ** 2 + noise**2),
        true=true,
    )


def sampling_noise(raw: np.ndarray) -> np.ndarray:
    """Standard error of the value from the halves of the sampled curvature, [3, n] -> [n].

    The halves differ by independent noise; their mean, which the whole is close to, has half that difference.
    """
    return np.abs(raw[1] - raw[2]) / 2


def _unit(value: np.ndarray, reference: float, sigma: float, outside: np.ndarray, typical: float) -> np.ndarray:
    share = outside / typical if typical else np.ones_like(outside)
    return np.maximum((np.abs(value - reference) + sigma / 2) * share, 1e-12)
