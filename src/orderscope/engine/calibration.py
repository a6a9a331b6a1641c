"""Calibration and error bars from leave-one-out predictions of the true runs.

Values. Orders that end near each other have similar errors, in proportion to their effect. A query is shifted by
a kernel ridge regression of the left-out runs' residuals r on the direction of the final displacement,

    shift(q) = gain * s(q) * sum_p k_qp [(K + lambda 1)^-1 (r / s)]_p,    s = (|value - reference| + sigma / 3) * far,

k_qp the cosine between the displacements of q and p, sigma the spread of the true values, far the length of what the
anchors do not span over its mean on the left-out runs, lambda the one that predicts each run best from the others, gain
the share of their squared residuals that this explains. Nothing is shifted unless each run is told better by a
regression that was chosen without it.

Errors. Two estimates of the variance of a query are averaged: the residuals that are left, in units u, and what the
left-out runs' errors of the weights, e_p, would do to the metric where the query ends, g its gradient there,

    variance(q) = 1/2 u(q)^2 mean_p (r_p / u_p)^2  +  1/2 mean_p (g . e_p far_q / far_p)^2,
    u = (min(|value - reference|, sigma) + 3/4 sigma) * far,    error = k(n) * sqrt(variance).

k(n) is the larger of Student's t for an interval that holds 90 % and the factor of a tolerance interval: n residuals
tell the scale of normal ones only roughly, and with this k the interval holds 80 % in 95 of 100 recordings,

    k(n) = max( t_n(0.9), z(0.8) sqrt(n / chi2_n(0.05)) ).

Orders that regroup samples are another kind than recorded batches. Their errors are wider by a factor w, known from
left-out runs of that kind, n' of them, beside a prior,

    w^2 = (4 * 1.3^2 + sum' (r / u)^2 / mean (r / u)^2) / (4 + n'),    mean over the others,

and divided by it their residuals count for the scale too.

Source of the leave-one-out residuals: Craven and Wahba, "Smoothing noisy data with spline functions", 1979. Of
tolerance intervals: Krishnamoorthy and Mathew, "Statistical tolerance regions", 2009.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.student_t import chi_square, two_sided
from orderscope_kernels.shapes import Bool, Float

COVERAGE = 0.9
# The constants were chosen on 50 tiny tasks of benchmarks/family.py; figures are of 100, 64 of which are trusted.
# Scores are interval scores over the spread of the truth, in geometric mean. See the log.
# What intervals hold at least, and in which share of recordings. Tasks that hold fewer than 80 % of 40 orders, and the
# least of a task: 7 and 0.62 with Student's t alone, 6 and 0.65 with 0.9, 4 and 0.76 with 0.95.
AT_LEAST, SURE = 0.8, 0.95
PUSHED = 0.5  # share of the second estimate; with 0, 0.3, 0.5, 0.7 and 1 scores of 0.96, 0.89, 0.88, 0.88, 0.94
SHIFTED, BOUND = 1 / 3, 3 / 4  # effects, in sigma, that shifts and errors take no effect at all for; 3/2: no difference
REGROUPED = 1.3  # w where no run of that kind is known (1: holds 0.90, 1.3: 0.96),
PRIOR = 4  # and how many runs that counts for
MUCH = 1 / 4  # of the mean error, a gain that need not be clear: 1/2 over 512 steps, where one run of eight may lose
LEAST = 0.03  # least error, in sigma; without it a task predicted to 1 % of sigma holds 0.69
NEAR = 0.25  # least far_p where it divides, of the mean
TINY = 1e-12
ROUNDING = 4  # machine epsilons of a value: each of the two that are compared is a mean of many rounded losses
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class Bearing:
    """The properties of replays that their errors depend on.

    Args:
        outside: distance of their states from the anchors' span, see `Replayed`, [n].
        alike: cosines between their final displacements from the reference and those of the left-out runs, [n, runs].
        regrouped: share of their steps that trained batches which were not recorded, [n].
    """

    outside: Float[np.ndarray, " n"]
    alike: Float[np.ndarray, "n runs"]
    regrouped: Float[np.ndarray, " n"]

    def __getitem__(self, rows: slice) -> Bearing:
        return Bearing(self.outside[rows], self.alike[rows], self.regrouped[rows])


def directions(theta: Float[Tensor, "n coords"], center: Float[Tensor, " coords"]) -> Float[Tensor, "n coords"]:
    """Displacements as unit vectors, [n, m]; zero where there is none.

    Args:
        theta: weights, [n, m].
        center: weights that displacements are from, [m].
    """
    d = theta - center
    return d / d.norm(dim=1, keepdim=True).clamp_min(torch.finfo(d.dtype).tiny)


@dataclass(frozen=True)
class Calibration:
    """Converts raw values into calibrated values and errors.

    Args:
        reference: recorded value of the reference order, where the raw value is exact.
        sigma: standard deviation of the true values of reference and left-out runs.
        shift: what the runs' directions add to values, per unit s, [runs].
        residual: root mean square of the runs' residuals, each shifted by the others, per unit u.
        wider: how much larger the errors of regrouped orders are, per unit u.
        factor: k, from a root mean square to an interval.
        quantile: quantile of Student's t, for a 90 % interval around a constant guess.
        typical, farthest: mean and largest `outside` of the runs.
        away: `outside` of each, [runs].
        left: mean size of the residuals on the runs over that of a constant's; 1 and more is no prediction.
        held: share of the runs that lie within their own errors: of recorded batches, and of regrouped samples. Not a
            number where no run is of that kind.
        rounding: how far two values that ought to be the same may differ by arithmetic alone; no error is smaller.
        predicted, error, true: leave-one-out predictions of the runs, their errors, and the true values.
    """

    reference: float
    sigma: float
    shift: np.ndarray
    residual: float
    wider: float
    factor: float
    quantile: float
    typical: float
    farthest: float
    away: np.ndarray
    left: float
    held: tuple[float, float]
    rounding: float
    predicted: np.ndarray
    error: np.ndarray
    true: np.ndarray

    @property
    def skilled(self) -> bool:
        """Whether the residuals on the runs are smaller than those of a constant."""
        return self.left < 1

    @property
    def guess(self) -> float:
        """Half-width of the 90 % interval of a constant guess, which uses sigma alone."""
        return self.quantile * self.sigma

    def apply(
        self, raw: Float[np.ndarray, " n"], at: Bearing, pushed: Float[np.ndarray, "n runs"] | None = None
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Values and errors.

        Args:
            raw: values, [n].
            at: their bearing.
            pushed: what the left-out runs' errors of the weights do to the metric there, g . e_p, [n, runs]; not a
                number where a run says nothing. None where the metric's gradient is not known.

        Returns:
            value [n], error [n].
        """
        free, bound = _units(raw, self.reference, self.sigma, at.outside, self.typical)
        return raw + at.alike @ self.shift * free, self._error(bound, at, pushed)

    def holds(self, regrouped: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Whether intervals held on the left-out runs of an order's kind, as far as there are any, bool [n].

        Args:
            regrouped: share of steps that trained batches which were not recorded, [n].
        """
        failed = np.array(self.held) < AT_LEAST
        return ~failed[np.asarray(regrouped > 0, dtype=np.int64)]

    def _error(self, bound: np.ndarray, at: Bearing, pushed: np.ndarray | None) -> np.ndarray:
        square = (self.residual * bound) ** 2
        if pushed is not None and self.typical:
            finite, far = np.isfinite(pushed), at.outside[:, None] / np.maximum(self.away, NEAR * self.typical)
            mean = (np.where(finite, pushed, 0) * far) ** 2 @ np.ones(len(self.away)) / np.maximum(finite.sum(1), 1)
            square = np.where(finite.any(1), (1 - PUSHED) * square + PUSHED * mean, square)
        error = self.factor * np.sqrt(square * (1 + (self.wider**2 - 1) * at.regrouped))
        return np.maximum(error, max(LEAST * self.sigma, self.rounding))


def fit_calibration(
    raw: Float[np.ndarray, " runs"],
    true: Float[np.ndarray, " runs"],
    reference: float,
    at: Bearing,
    *,
    pushed: Float[np.ndarray, "runs runs"] | None = None,
    eps: float = 0.0,
) -> Calibration:
    """Fit a calibration on leave-one-out predictions of runs.

    Args:
        raw: values of the runs, each predicted without its own anchors, [runs].
        true: their true values, [runs].
        reference: the reference order's value.
        at: the runs' bearing, as predicted so.
        pushed: as `Calibration.apply` takes it, [runs, runs]; a run's own error is not used for it.
        eps: machine epsilon of the arithmetic that values come from; 0 where they are exact.
    """
    count, rounding = len(true), ROUNDING * eps * abs(reference)
    unknown, none = np.full(count, np.nan), (float("nan"), float("nan"))
    if count < 2:
        return Calibration(reference, 0.0, np.zeros(count), np.inf, 1.0, 1.0, 1.0, 0.0, 0.0, at.outside, np.inf, none,
                           rounding, unknown, unknown, true)  # fmt: skip
    sigma = float(np.append(true, reference).std(ddof=1))
    typical = float(at.outside.mean())
    free, bound = _units(raw, reference, sigma, at.outside, typical)
    shift, left = _regressed((true - raw) / free, at.alike)
    left = left * free
    constant = np.abs(true - np.median(np.append(true, reference)))
    new = at.regrouped >= 0.5
    if (~new).sum() < 2:
        new = np.zeros(count, dtype=bool)
    square = (left / bound) ** 2
    mean = max(float(square[~new].mean()), TINY)
    wider = float(np.sqrt((PRIOR * REGROUPED**2 + square[new].sum() / mean) / (PRIOR + new.sum())))
    square[new] /= wider**2 if np.isfinite(wider) else 1.0
    fitted = Calibration(
        reference=reference,
        sigma=sigma,
        shift=shift,
        residual=float(square.mean()) ** 0.5,
        wider=wider,
        factor=interval_factor(count),
        quantile=two_sided(count, COVERAGE),
        typical=typical,
        farthest=float(at.outside.max()),
        away=at.outside,
        left=float(np.abs(left).mean() / max(constant.mean(), TINY)),
        held=none,
        rounding=rounding,
        predicted=true - left,
        error=unknown,
        true=true,
    )
    others = None if pushed is None else np.where(np.eye(count, dtype=bool), np.nan, pushed)
    error = fitted._error(bound, at, others)
    inside = np.abs(left) <= error
    held = tuple(float(inside[kind].mean()) if kind.any() else float("nan") for kind in (~new, new))
    return replace(fitted, error=error, held=(held[0], held[1]))


@cache
def interval_factor(count: int) -> float:
    """k(n): from the root mean square of n normal residuals to the half-width of an interval.

    Example:
        >>> round(interval_factor(8), 3), round(interval_factor(24), 3)
        (2.193, 1.711)
    """
    chance = NormalDist().inv_cdf(0.5 + AT_LEAST / 2) * (count / chi_square(count, 1 - SURE)) ** 0.5
    return max(two_sided(count, COVERAGE), chance)


def errs_less(one: Sequence[Calibration], other: Sequence[Calibration], *, much: bool = False) -> bool:
    """Whether an estimator errs less than another on the left-out runs: significantly, or, with `much`, by a quarter
    on average. Errors are |error| / sigma, mean over the metrics.

    Args:
        one: calibrations of the estimator, one a metric.
        other: those of the one that it is compared with, in the same sequence of metrics.
        much: whether a quarter is enough.
    """
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a.sigma > 0]
    if not pairs:
        return False
    first, second = (np.mean([_sizes(pair[k]) for pair in pairs], axis=0) for k in range(2))
    return gains_much(second, first) if much else clearly_positive(second - first)


def _sizes(calibration: Calibration) -> np.ndarray:
    return np.abs(calibration.predicted - calibration.true) / calibration.sigma


def gains_much(before: Float[np.ndarray, " runs"], after: Float[np.ndarray, " runs"]) -> bool:
    """Whether sizes of errors fall: clearly, or by `MUCH` of their mean.

    Args:
        before: of two or more runs, [runs].
        after: of the same runs, [runs].
    """
    gain = before - after
    return clearly_positive(gain) or bool(gain.mean() > MUCH * before.mean())


def clearly_positive(gain: Float[np.ndarray, " runs"]) -> bool:
    """Whether the 90 % interval of the mean of gains [runs], two or more, lies above zero, by Student's t."""
    return bool(gain.mean() > two_sided(len(gain) - 1, COVERAGE) * gain.std(ddof=1) / len(gain) ** 0.5)


def _regressed(residuals: np.ndarray, alike: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the runs' directions [runs], and residuals left when each run is shifted by what the others make of
    it, ridge and gain chosen without it: zeros, and the residuals, where that is no better."""
    count = len(residuals)
    shift, left = _ridge(residuals, alike), np.empty_like(residuals)
    for run in range(count):
        others = np.delete(np.arange(count), run)
        left[run] = residuals[run] - alike[run, others] @ _ridge(residuals[others], alike[np.ix_(others, others)])
    return (shift, left) if left @ left < residuals @ residuals else (np.zeros_like(residuals), residuals)


def _ridge(residuals: np.ndarray, alike: np.ndarray) -> np.ndarray:
    """Weights [runs] of the ridge that predicts each run best from the others, times the share it explains."""
    before = float(np.mean(residuals**2))
    best, shift = before, np.zeros_like(residuals)
    for ridge in RIDGES:
        inverse = np.linalg.inv(alike + ridge * np.eye(len(residuals)))
        weights = inverse @ residuals
        error = float(np.mean((weights / inverse.diagonal()) ** 2))  # each from the others
        if error < best:
            best, shift = error, (1 - error / before) * weights
    return shift


def _units(
    value: np.ndarray, reference: float, sigma: float, outside: np.ndarray, typical: float
) -> tuple[np.ndarray, np.ndarray]:
    """The units of a shift, s, and of an error, u, [n] each."""
    far = outside / typical if typical else np.ones_like(outside)
    effect = np.abs(value - reference)
    free, bound = effect + SHIFTED * sigma, np.minimum(effect, sigma) + BOUND * sigma
    return np.maximum(free * far, TINY), np.maximum(bound * far, TINY)
