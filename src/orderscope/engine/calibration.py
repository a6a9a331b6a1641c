"""Recalibration and error bars from runs predicted as if they had not been trained.

How large the error of an estimate is depends on how large an effect it claims and on how far its states lay outside
the anchors. Both are known for every query. Orders that end in like places are wrong in like ways, in proportion to
their effect, so a query is shifted by what kernel ridge regression on the direction of the final displacement makes of
the left-out runs' residuals r,

    shift(q) = gain * s(q) * sum_p k_qp [(K + lambda 1)^-1 (r / s)]_p,    s = (|value - reference| + sigma / 3) * far,

k_qp the cosine between the displacements of q and p, sigma the spread of the true values, far the length of what the
anchors do not span over its mean on the left-out runs, lambda the one that predicts each run best from the others, gain
the share of their squared residuals that this explains: nothing is shifted where it explains none. What is left grows
with the effect up to sigma only. An interval that held nine in ten left-out runs is the error, split conformal
prediction with residuals in units u:

    error = r_(k) * u,    k = ceil(0.9 (n + 1)),    u = (min(|value - reference|, sigma) + 3/4 sigma) * far,

r_(k) the k-th smallest of the n sizes |residual| / u. With fewer than nine runs k is n + 1, for which the largest, (n +
1) / n times it, stands in.
Source of the leave-one-out residuals: Craven and Wahba, "Smoothing noisy data with spline functions", 1979. Of the
interval: Lei et al., "Distribution-free predictive inference for regression", 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.student_t import two_sided

COVERAGE = 0.9
SHIFTED, BOUND = 1 / 3, 3 / 4  # effects, in sigma, that shifts and errors take no effect at all for
TINY = 1e-12
ROUNDING = 4  # machine epsilons of a value: each of the two that are compared is a mean of many rounded losses
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class Bearing:
    """Where replays led, as far as their errors depend on it.

    Args:
        outside: how far their states lay outside what the anchors span, see `Replayed`, [n].
        alike: cosines between their final displacements from the reference and those of the left-out runs, [n, runs].
    """

    outside: np.ndarray
    alike: np.ndarray

    def __getitem__(self, rows: slice) -> Bearing:
        return Bearing(self.outside[rows], self.alike[rows])


def directions(theta: Tensor, center: Tensor) -> Tensor:
    """Displacements from `center` [m] as unit vectors, [n, m]; zero where there is none."""
    d = theta - center
    return d / d.norm(dim=1, keepdim=True).clamp_min(torch.finfo(d.dtype).tiny)


def bearing(theta: Tensor, outside: Tensor | np.ndarray, center: Tensor, runs: Tensor) -> Bearing:
    """The bearing of final weights [n, m]; `runs` are the left-out runs' `directions`, [runs, m]."""
    return Bearing(np.asarray(outside), (directions(theta, center) @ runs.T).double().numpy())


@dataclass(frozen=True)
class Calibration:
    """Turns a raw value into a value and an error.

    Args:
        reference: recorded value of the reference order, where the raw value is exact.
        sigma: standard deviation of the true values of reference and left-out runs.
        shift: what the runs' directions add to values, per unit s, [runs].
        residual: what nine in ten of the runs are left with at most, each shifted by the others, per unit u.
        quantile: of Student's t, for a 90 % interval of who knows the true values alone.
        typical, farthest: mean and largest `outside` of the runs.
        skilled: whether the residuals on the runs are smaller than those of a constant.
        rounding: how far two values that ought to be the same may differ by arithmetic alone; no error is smaller.
        predicted, error, true: values of the runs left out, as they would have been told, and the truth.
    """

    reference: float
    sigma: float
    shift: np.ndarray
    residual: float
    quantile: float
    typical: float
    farthest: float
    skilled: bool
    rounding: float
    predicted: np.ndarray
    error: np.ndarray
    true: np.ndarray

    @property
    def guess(self) -> float:
        """Half-width of the 90 % interval of who knows no more than how much order matters."""
        return self.quantile * self.sigma

    def apply(self, raw: np.ndarray, at: Bearing) -> tuple[np.ndarray, np.ndarray]:
        """Raw values [n] and their bearing -> value [n], error [n]."""
        free, bound = _units(raw, self.reference, self.sigma, at.outside, self.typical)
        return raw + at.alike @ self.shift * free, self._error(bound)

    def _error(self, bound: np.ndarray) -> np.ndarray:
        return np.maximum(self.residual * bound, self.rounding)


def fit_calibration(
    raw: np.ndarray, true: np.ndarray, reference: float, at: Bearing, *, eps: float = 0.0
) -> Calibration:
    """Fit on runs that were left out.

    Args:
        raw: values of the runs, each predicted without its own anchors, [runs].
        true: their true values, [runs].
        reference: the reference order's value.
        at: the runs' bearing, as predicted so.
        eps: machine epsilon of the arithmetic that values come from; 0 where they are exact.
    """
    count, rounding = len(true), ROUNDING * eps * abs(reference)
    if count < 2:
        unknown = np.full(count, np.nan)
        return Calibration(
            reference, 0.0, np.zeros(count), np.inf, 1.0, 0.0, 0.0, False, rounding, unknown, unknown, true
        )  # fmt: skip
    sigma = float(np.append(true, reference).std(ddof=1))
    typical = float(at.outside.mean())
    free, bound = _units(raw, reference, sigma, at.outside, typical)
    shift, left = _regressed((true - raw) / free, at.alike)
    left = left * free
    constant = np.abs(true - np.median(np.append(true, reference)))
    fitted = Calibration(
        reference=reference,
        sigma=sigma,
        shift=shift,
        residual=conformal(np.abs(left / bound)),
        quantile=two_sided(count, COVERAGE),
        typical=typical,
        farthest=float(at.outside.max()),
        skilled=bool(np.abs(left).mean() < constant.mean()),
        rounding=rounding,
        predicted=true - left,
        error=np.zeros(count),
        true=true,
    )
    return replace(fitted, error=fitted._error(bound))


def conformal(sizes: np.ndarray) -> float:
    """The size that nine in ten others stay below, from sizes [n] of the same kind.

    Example:
        >>> conformal(np.arange(1.0, 11.0))
        10.0
        >>> conformal(np.array([1.0, 2.0, 3.0, 4.0]))
        5.0
    """
    count, ordered = len(sizes), np.sort(sizes)
    place = int(np.ceil(COVERAGE * (count + 1)))
    return float(ordered[place - 1]) if place <= count else float(ordered[-1] * (count + 1) / count)


def errs_less(one: Sequence[Calibration], other: Sequence[Calibration]) -> bool:
    """Whether an estimator clearly errs less than another on the left-out runs: the 90 % interval of the mean paired
    difference, by Student's t, lies on its side. Differences of |error| / sigma, mean over the metrics.

    Args:
        one, other: the two estimators' calibrations, one a metric.
    """
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a.sigma > 0]
    if not pairs:
        return False
    gain = np.mean([(np.abs(b.predicted - b.true) - np.abs(a.predicted - a.true)) / a.sigma for a, b in pairs], axis=0)
    return bool(gain.mean() > two_sided(len(gain) - 1, COVERAGE) * gain.std(ddof=1) / len(gain) ** 0.5)


def _regressed(residuals: np.ndarray, alike: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the runs' directions [runs], and residuals left when each run is shifted by the others."""
    before = float(np.mean(residuals**2))
    best, shift, left = before, np.zeros_like(residuals), residuals
    for ridge in RIDGES:
        inverse = np.linalg.inv(alike + ridge * np.eye(len(residuals)))
        weights = inverse @ residuals
        alone = weights / inverse.diagonal()  # of each, fitted on the others
        error = float(np.mean(alone**2))
        if error < best:
            gain = 1 - error / before
            best, shift, left = error, gain * weights, residuals - gain * (residuals - alone)
    return shift, left


def _units(
    value: np.ndarray, reference: float, sigma: float, outside: np.ndarray, typical: float
) -> tuple[np.ndarray, np.ndarray]:
    """The units of a shift, s, and of an error, u, [n] each."""
    far = outside / typical if typical else np.ones_like(outside)
    effect = np.abs(value - reference)
    free, bound = effect + SHIFTED * sigma, np.minimum(effect, sigma) + BOUND * sigma
    return np.maximum(free * far, TINY), np.maximum(bound * far, TINY)
