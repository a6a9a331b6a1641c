"""Calibration and error bars from leave-one-out predictions of the true runs.

Values. Orders that end near each other have similar errors, in proportion to their effect. A query is shifted by
a kernel ridge regression of the left-out runs' residuals r on the direction of the final displacement,

    shift(q) = gain * s(q) * sum_p k_qp [(K + lambda 1)^-1 (r / s)]_p,    s = (|value - reference| + sigma / 3) * far,

k_qp the cosine between the displacements of q and p, sigma the spread of the true values, far the length of what the
anchors do not span over its mean on the left-out runs, lambda the one that predicts each run best from the others, gain
the share of their squared residuals that this explains. Nothing is shifted unless each run is told better by a
regression that was chosen without it.

Where batches mix groups, runs that sort the samples by group have many times the effect of the others, and as large
errors. So there are two fits: one on the runs that sort nothing, for orders like these; and one on all, for orders that
sort samples and for effects more than `FARTHER` times the largest of the first runs'.

Error bars come from the residuals before that, see `orderscope.engine.error_bars`: a shift that was right on the runs
narrows no interval, since a few runs say little of how much it leaves elsewhere.

Source of the leave-one-out residuals: Craven and Wahba, "Smoothing noisy data with spline functions", 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.error_bars import AT_LEAST, COVERAGE, TINY, Covariates, ErrorBars, fit_error_bars
from orderscope.engine.student_t import two_sided
from orderscope_kernels.shapes import Bool, Float

SHIFTED = 1 / 3  # effect, in sigma, that shifts take no effect at all for
MUCH = 1 / 4  # of the mean error, a gain that need not be clear: 1/2 over 512 steps, where one run of eight may lose
ROUNDING = 4  # machine epsilons of a value: each of the two that are compared is a mean of many rounded losses
FARTHER = 1.5  # times the largest effect, or distance, of the runs: as far as their errors tell of an order's
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class Bearing:
    """The properties of replays that their errors depend on.

    Args:
        outside: distance of their states from the anchors' span, see `Replayed`, [n].
        alike: cosines between their final displacements from the reference and those of the left-out runs, [n, runs].
        regrouped: share of their steps that trained batches which were not recorded, [n].
        sorting: whether they sort samples by group more than the reference order does, see
            `orderscope.engine.units.sorts_more`, bool [n].
    """

    outside: Float[np.ndarray, " n"]
    alike: Float[np.ndarray, "n runs"]
    regrouped: Float[np.ndarray, " n"]
    sorting: Bool[np.ndarray, " n"]

    def __getitem__(self, rows: slice | Bool[np.ndarray, " n"]) -> Bearing:
        return Bearing(self.outside[rows], self.alike[rows], self.regrouped[rows], self.sorting[rows])


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
        bars: half-widths of intervals; None where no error is known.
        quantile: quantile of Student's t, for a 90 % interval around a constant guess.
        typical, farthest: mean and largest `outside` of the runs.
        left: mean size of the residuals on the runs over that of a constant's; 1 and more is no prediction.
        held: share of the runs that lie within their own errors: of recorded batches, and of regrouped samples. Not a
            number where no run is of that kind.
        rounding: how far two values that ought to be the same may differ by arithmetic alone; no error is smaller.
        predicted, error, true: leave-one-out predictions of the runs, their errors, and the true values.
        largest: largest effect of the runs.
        usual: which runs it is fitted on, bool [runs]; None for all.
        beyond: the fit on all runs, for orders that sort samples and for larger effects; None where that is this one.
            `predicted`, `error`, `true` and `farthest` are of all runs in either.
    """

    reference: float
    sigma: float
    shift: np.ndarray
    bars: ErrorBars | None
    quantile: float
    typical: float
    farthest: float
    left: float
    held: tuple[float, float]
    rounding: float
    predicted: np.ndarray
    error: np.ndarray
    true: np.ndarray
    largest: float
    usual: np.ndarray | None = None
    beyond: Calibration | None = None

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
        unit = _unit(raw, self.reference, self.sigma, _far(at, self.typical))
        among = pushed if pushed is None or self.usual is None else pushed[:, self.usual]
        value, error = raw + at.alike @ self.shift * unit, self._error(raw, at, among)
        rows = self.outlying(raw, at.sorting)
        if self.beyond is not None and rows.any():
            value[rows], error[rows] = self.beyond.apply(raw[rows], at[rows], None if pushed is None else pushed[rows])
        return value, error

    def outlying(self, values: Float[np.ndarray, " n"], sorting: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Which values are told by the fit on all runs, where there is another, bool [n].

        Args:
            values: of the metric, [n].
            sorting: whether their orders sort samples, bool [n].
        """
        if self.beyond is None:
            return np.zeros(len(values), dtype=bool)
        return sorting | (np.abs(values - self.reference) > FARTHER * self.largest)

    def holds(self, regrouped: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Whether intervals held on the left-out runs of an order's kind, as far as there are any, bool [n].

        Args:
            regrouped: share of steps that trained batches which were not recorded, [n].
        """
        failed = np.array(self.held) < AT_LEAST
        return ~failed[np.asarray(regrouped > 0, dtype=np.int64)]

    def _error(self, raw: np.ndarray, at: Bearing, pushed: np.ndarray | None) -> np.ndarray:
        if self.bars is None:
            return np.full(len(raw), np.inf)
        return np.maximum(self.bars(_covariates(raw, self.reference, at, self.typical, pushed)), self.rounding)


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
    usual = ~at.sorting
    if usual.all() or usual.sum() < 2:
        return _fitted(raw, true, reference, at, pushed, eps)
    beyond = _fitted(raw, true, reference, at, pushed, eps)
    among = None if pushed is None else pushed[np.ix_(usual, usual)]
    narrow = Bearing(at.outside[usual], at.alike[np.ix_(usual, usual)], at.regrouped[usual], at.sorting[usual])
    fitted = _fitted(raw[usual], true[usual], reference, narrow, among, eps)
    shift, predicted, error = np.zeros(len(true)), beyond.predicted.copy(), beyond.error.copy()
    shift[usual], predicted[usual], error[usual] = fitted.shift, fitted.predicted, fitted.error
    return replace(fitted, shift=shift, predicted=predicted, error=error, true=true, farthest=beyond.farthest,
                   usual=usual, beyond=beyond)  # fmt: skip


def _fitted(
    raw: np.ndarray, true: np.ndarray, reference: float, at: Bearing, pushed: np.ndarray | None, eps: float
) -> Calibration:
    """The fit on all of these runs; arguments as `fit_calibration`'s."""
    count, rounding = len(true), ROUNDING * eps * abs(reference)
    largest = float(np.abs(true - reference).max(initial=0))
    unknown, none = np.full(count, np.nan), (float("nan"), float("nan"))
    if count < 2:
        return Calibration(
            reference, 0.0, np.zeros(count), None, 1.0, 0.0, 0.0, np.inf, none, rounding, unknown, unknown, true,
            largest,
        )  # fmt: skip
    sigma = float(np.append(true, reference).std(ddof=1))
    typical = float(at.outside.mean())
    unit = _unit(raw, reference, sigma, _far(at, typical))
    shift, left = _regressed((true - raw) / unit, at.alike)
    left = left * unit
    constant = np.abs(true - np.median(np.append(true, reference)))
    others = None if pushed is None else np.where(np.eye(count, dtype=bool), np.nan, pushed)
    bars = fit_error_bars(true - raw, _covariates(raw, reference, at, typical, others), sigma)
    fitted = Calibration(
        reference=reference,
        sigma=sigma,
        shift=shift,
        bars=bars,
        quantile=two_sided(count, COVERAGE),
        typical=typical,
        farthest=float(at.outside.max()),
        left=float(np.abs(left).mean() / max(constant.mean(), TINY)),
        held=none,
        rounding=rounding,
        predicted=true - left,
        error=unknown,
        true=true,
        largest=largest,
    )
    error = fitted._error(raw, at, others)
    inside, new = np.abs(left) <= error, at.regrouped >= 0.5
    held = tuple(float(inside[kind].mean()) if kind.any() else float("nan") for kind in (~new, new))
    return replace(fitted, error=error, held=(held[0], held[1]))


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


def _far(at: Bearing, typical: float) -> np.ndarray:
    return at.outside / typical if typical else np.ones_like(at.outside)


def _unit(value: np.ndarray, reference: float, sigma: float, far: np.ndarray) -> np.ndarray:
    """The unit of a shift, s, [n]."""
    return np.maximum((np.abs(value - reference) + SHIFTED * sigma) * far, TINY)


def _covariates(
    value: np.ndarray, reference: float, at: Bearing, typical: float, pushed: np.ndarray | None
) -> Covariates:
    """What error bars depend on. Runs whose error of the weights is not known say nothing of `push`."""
    push = np.full(len(value), np.nan)
    if pushed is not None:
        finite = np.isfinite(pushed)
        known = finite.sum(1)
        square = np.square(np.where(finite, pushed, 0)).sum(1)
        push[known > 0] = np.sqrt(square[known > 0] / known[known > 0])
    return Covariates(np.abs(value - reference), _far(at, typical), push, at.regrouped)
