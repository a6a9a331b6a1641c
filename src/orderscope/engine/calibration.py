"""Recalibration and error bars from probes predicted without their own anchors.

How large the error of an estimate is depends on how large an effect it claims and on how far its states lay outside
the anchors. Both are known for every query. Orders that end in like places are wrong in like ways, in proportion to
their effect, so a query is shifted by what kernel ridge regression on the direction of the final displacement makes of
the probes' residuals r,

    shift(q) = gain * s(q) * sum_p k_qp [(K + lambda 1)^-1 (r / s)]_p,    s = (|value - reference| + sigma / 3) * far,

k_qp the cosine between the displacements of q and p, sigma the spread of the true values, far the length of what the
anchors do not span over its mean on the probes, lambda the one that predicts each probe best from the others, gain the
share of their squared residuals that this explains: nothing is shifted where it explains none. What is left grows with
the effect up to sigma only, and its mean size on the probes makes the error:

    error = quantile * sqrt((residual * u)^2 + noise^2),    u = (min(|value - reference|, sigma) + 3/4 sigma) * far.

The mean size, not its root mean square, which one probe can rule: the one whose own anchors alone lie where it leads. A
query lacks no probe's anchors and errs less than probes left out, so the residual is `LEFT_OUT` of that size. The noise
is half of what the two halves of the sampled curvature differ in. One such difference says little about how large they
are, so its square is averaged with that of the probes, in units u.
Source of the leave-one-out residuals: Craven and Wahba, "Smoothing noisy data with spline functions", 1979.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from orderscope.engine.replay import jackknife

COVERAGE = 0.9
JACKKNIFES = 1.5  # a group's curvature is not quite a batch's own, which acts like more noise of the sample
SHIFTED, BOUND = 1 / 3, 3 / 4  # effects, in sigma, that shifts and errors take no effect at all for
LEFT_OUT = 0.85  # of the errors of probes left out are to be expected of queries
TINY = 1e-12
ROUNDING = 4  # machine epsilons of a value: each of the two that are compared is a mean of many rounded losses
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class Bearing:
    """Where replays led, as far as their errors depend on it.

    Args:
        outside: how far their states lay outside what the anchors span, see `Replayed`, [n].
        alike: cosines between their final displacements from the reference and those of the probes, [n, probes].
    """

    outside: np.ndarray
    alike: np.ndarray

    def __getitem__(self, rows: slice) -> Bearing:
        return Bearing(self.outside[rows], self.alike[rows])


def directions(theta: Tensor, center: Tensor) -> Tensor:
    """Displacements from `center` [m] as unit vectors, [n, m]; zero where there is none."""
    d = theta - center
    return d / d.norm(dim=1, keepdim=True).clamp_min(torch.finfo(d.dtype).tiny)


def bearing(theta: Tensor, outside: Tensor, center: Tensor, probes: Tensor) -> Bearing:
    """The bearing of final weights [n, m]; `probes` are the probes' `directions`, [probes, m]."""
    return Bearing(outside.numpy(), (directions(theta, center) @ probes.T).double().numpy())


@dataclass(frozen=True)
class Calibration:
    """Turns the members' raw values into a value and an error.

    Args:
        reference: recorded value of the reference order, where the raw value is exact.
        sigma: standard deviation of the true values of reference and probes.
        shift: what the probes' directions add to values, per unit s, [probes].
        residual: `LEFT_OUT` of the mean size of what is left on the probes, each shifted by the others, per unit u.
        quantile: multiplier for a 90 % interval with as few probes as there were.
        typical, farthest: mean and largest `outside` of the probes.
        skilled: whether the residuals on the probes are smaller than those of a constant.
        noise: root mean square of the probes' sampling noise, per unit u.
        rounding: how far two values that ought to be the same may differ by arithmetic alone; no error is smaller.
        predicted, error, true: values of the probes left out, as they would have been told, and the truth.
    """

    reference: float
    sigma: float
    shift: np.ndarray
    residual: float
    quantile: float
    typical: float
    farthest: float
    skilled: bool
    noise: float
    rounding: float
    predicted: np.ndarray
    error: np.ndarray
    true: np.ndarray

    @property
    def guess(self) -> float:
        """Half-width of the 90 % interval of who knows no more than how much order matters."""
        return self.quantile * self.sigma

    def apply(self, raw: np.ndarray, at: Bearing) -> tuple[np.ndarray, np.ndarray]:
        """Members' values [3, n] (or [1, n]) and their bearing -> value [n], error [n]."""
        plain = debiased(raw, self.sigma)
        free, bound = _units(plain, self.reference, self.sigma, at.outside, self.typical)
        return plain + at.alike @ self.shift * free, self._error(raw, bound)

    def _error(self, raw: np.ndarray, bound: np.ndarray) -> np.ndarray:
        noise = (self.noise * bound) ** 2
        if len(raw) == 3:
            noise = (noise + sampling_noise(raw) ** 2) / 2
        return np.maximum(self.quantile * np.sqrt((self.residual * bound) ** 2 + noise), self.rounding)


def fit_calibration(
    raw: np.ndarray, true: np.ndarray, reference: float, at: Bearing, *, eps: float = 0.0
) -> Calibration:
    """Fit on the probes.

    Args:
        raw: members' values of the probes, each predicted without its own anchors, [3, probes].
        true: their true values, [probes].
        reference: the reference order's value.
        at: the probes' bearing, as predicted so.
        eps: machine epsilon of the arithmetic that values come from; 0 where they are exact.
    """
    count, rounding = len(true), ROUNDING * eps * abs(reference)
    if count < 2:
        unknown = np.full(count, np.nan)
        return Calibration(
            reference, 0.0, np.zeros(count), np.inf, 1.0, 0.0, 0.0, False, 0.0, rounding, unknown, unknown, true
        )  # fmt: skip
    sigma = float(np.append(true, reference).std(ddof=1))
    plain = debiased(raw, sigma)
    typical = float(at.outside.mean())
    free, bound = _units(plain, reference, sigma, at.outside, typical)
    shift, left = _regressed((true - plain) / free, at.alike)
    left = left * free
    constant = np.abs(true - np.median(np.append(true, reference)))
    fitted = Calibration(
        reference=reference,
        sigma=sigma,
        shift=shift,
        residual=float(LEFT_OUT * np.abs(left / bound).mean()),
        quantile=float(stats.t.ppf(0.5 + COVERAGE / 2, count)),
        typical=typical,
        farthest=float(at.outside.max()),
        skilled=bool(np.abs(left).mean() < constant.mean()),
        noise=float(np.sqrt(np.mean((sampling_noise(raw) / bound) ** 2))),
        rounding=rounding,
        predicted=true - left,
        error=np.zeros(count),
        true=true,
    )
    return replace(fitted, error=fitted._error(raw, bound))


def _regressed(residuals: np.ndarray, alike: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the probes' directions [probes], and residuals left when each probe is shifted by the others."""
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


def debiased(raw: np.ndarray, sigma: float) -> np.ndarray:
    """Members' values [3, n] (or [1, n]) -> [n]: a jackknife, its correction bounded by how much order matters."""
    return jackknife(raw, sigma or np.inf, JACKKNIFES)


def sampling_noise(raw: np.ndarray) -> np.ndarray:
    """Standard error of the value from the halves of the sampled curvature, [3, n] -> [n].

    The halves differ by independent noise; their mean, which the whole is close to, has half that difference.
    """
    return np.abs(raw[1] - raw[2]) / 2


def _units(
    value: np.ndarray, reference: float, sigma: float, outside: np.ndarray, typical: float
) -> tuple[np.ndarray, np.ndarray]:
    """The units of a shift, s, and of an error, u, [n] each."""
    far = outside / typical if typical else np.ones_like(outside)
    effect = np.abs(value - reference)
    free, bound = effect + SHIFTED * sigma, np.minimum(effect, sigma) + BOUND * sigma
    return np.maximum(free * far, TINY), np.maximum(bound * far, TINY)
