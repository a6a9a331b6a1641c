"""Which estimates are trusted: those of orders like the recorded ones, with intervals narrower than a guess."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from orderscope.engine.calibration import AT_LEAST, Calibration

# Orders are trusted up to 1.5 times as far outside the anchors' span as the farthest left-out run, and with an effect
# up to 1.5 times the largest of the true runs. Where batches mix groups, orders that sort samples by group have up to
# 23 times that effect: of 143 in four windows 29 of 55 trusted intervals held before, 14 of 20 with the rules below.
FARTHER = 1.5
# By how much of a batch one group may be more than in any recorded batch.
PURER = 0.5
# Largest share of the samples that a trusted order may replace, and for the proxy the largest share of the batches that
# it may regroup if no true run regrouped more. Left-out runs replace no samples, so they do not test such orders.
REPLACED = 0.1


def near_anchors(outside: np.ndarray, calibrations: Iterable[Calibration]) -> np.ndarray:
    """Whether orders stay within `FARTHER` times the distance of the left-out runs from the anchors' span, bool [n];
    False for all without left-out runs.

    Args:
        outside: distance of each order's states from the anchors' span, [n].
        calibrations: fitted on the left-out runs.
    """
    seen = [calibration.farthest for calibration in calibrations if calibration.farthest > 0]
    return outside <= FARTHER * max(seen) if seen else np.zeros(len(outside), dtype=bool)


def regrouped_as_recorded(regrouped: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """Whether orders regroup no larger share of their batches than some true run, or than `REPLACED`, bool [n].

    Args:
        regrouped: share of regrouped batches in each order, [n].
        recorded: the same of each true run, [runs].
    """
    return regrouped <= max(REPLACED, *recorded, 0)


def beyond_effects(values: np.ndarray, fitted: Calibration) -> np.ndarray:
    """Whether effects are larger than `FARTHER` times the largest of a true run, bool [n].

    Args:
        values: estimates of a metric, [n].
        fitted: its calibration.
    """
    largest = np.abs(fitted.true - fitted.reference).max(initial=0)
    return np.abs(values - fitted.reference) > FARTHER * largest


def largest_shares(orders: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The largest share that each group has of a batch, [n, groups].

    Args:
        orders: sample ids, [n, steps, batch].
        codes: group of every sample, as numbers from 0, [samples].
    """
    groups = range(int(codes.max(initial=0)) + 1)
    return np.stack([(codes == group)[orders].mean(2).max(1) for group in groups], axis=1)


def purer_batches(shares: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """Whether a batch of an order holds more of one group than any recorded batch, by more than `PURER` of it, bool
    [n]. The gradient of such a batch, and what follows from many of them, was seen in no run.

    Args:
        shares: `largest_shares` of the orders, [n, groups].
        recorded: those of all orders that were trained, [groups].
    """
    return np.any(shares > recorded + PURER, axis=1)


def few_replaced(orders: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Whether orders lack at most a share `REPLACED` of the recorded samples, bool [n].

    Args:
        orders: sample ids, [n, steps, batch].
        reference: the recorded order, [steps, batch].
    """
    most = int(max(orders.max(initial=0), reference.max())) + 1
    recorded = np.bincount(reference.ravel(), minlength=most)
    missing = [np.maximum(recorded - np.bincount(o.ravel(), minlength=most), 0).sum() for o in orders]
    return np.array(missing) / reference.size <= REPLACED


# Why an estimate is not trusted, as printed, with `FARTHER` and `REPLACED` in words. A reason against one metric names
# it.
TOO_FAR = "its weights go farther from the recorded states than any recorded run's, by more than half"
PURE = "a batch holds more of one group than any recorded batch, by more than half of the batch"
REGROUPED = "more than a tenth of its batches are regrouped, and more than in any recorded run"
OTHER_SAMPLES = "more than a tenth of the recorded samples are missing"
NOT_FINITE = "the estimate is not a finite number"
TOO_FEW = "fewer than two other orders were trained, so no error is known"
CONSTANT = "on the recorded runs estimates of {metric} are no better than a constant"
BEYOND = "its predicted effect on {metric} is larger than any recorded run's, by more than half"
MISSED = f"fewer than {10 * AT_LEAST:.0f} in 10 recorded runs of its kind were inside their intervals for {{metric}}"
AS_WIDE = "its interval for {metric} is wider than that of a guess from sigma_order alone (±{guess:.2g})"


@dataclass(frozen=True)
class Judged:
    """Which of n estimates are to be trusted.

    Args:
        trusted: whether the order is, in one metric at least, bool [n].
        reasons: metric -> for each order what speaks against its estimate; nothing where all is well.
    """

    trusted: np.ndarray
    reasons: dict[str, list[tuple[str, ...]]]


def judge(
    doubts: Mapping[str, np.ndarray],
    values: Mapping[str, np.ndarray],
    errors: Mapping[str, np.ndarray],
    calibration: Mapping[str, Calibration],
    regrouped: np.ndarray,
    known: np.ndarray,
    *,
    only_order: bool = True,
) -> Judged:
    """Put together what speaks against estimates. One whose order was truly trained is known, whatever it is like.

    Args:
        doubts: reason -> whether it speaks against an order, whatever the metric, bool [n].
        values: estimates by metric, [n].
        errors: half-widths of the intervals by metric, [n].
        calibration: by metric.
        regrouped: share of each order's batches that were not recorded, [n].
        known: whether the order was truly trained, bool [n].
        only_order: whether nothing but the order differs from the recorded runs, so that effects may be compared.
    """
    own = {name: _of_interval(name, error, calibration[name], regrouped) for name, error in errors.items()}
    if only_order:
        for name, value in values.items():
            if len(calibration[name].true) > 1:
                own[name][BEYOND.format(metric=name)] = beyond_effects(value, calibration[name])
    everywhere = {**doubts, NOT_FINITE: ~np.all([np.isfinite(v) for v in values.values()], axis=0)}
    doubted = np.any(list(everywhere.values()), axis=0)
    telling = np.any([~np.any(list(found.values()), axis=0) for found in own.values()], axis=0)
    reasons = {
        name: [() if known[i] else _holding({**everywhere, **found}, i) for i in range(len(known))]
        for name, found in own.items()
    }
    return Judged(known | (telling & ~doubted), reasons)


def _of_interval(name: str, error: np.ndarray, fitted: Calibration, regrouped: np.ndarray) -> dict[str, np.ndarray]:
    """Reasons against a metric's intervals, and whether each holds, bool [n]: they must say more than a guess would."""
    if len(fitted.true) < 2:
        return {TOO_FEW: np.ones(len(error), dtype=bool)}
    return {
        CONSTANT.format(metric=name): np.full(len(error), not fitted.skilled),
        MISSED.format(metric=name): ~fitted.holds(regrouped),
        AS_WIDE.format(metric=name, guess=fitted.guess): ~(error <= fitted.guess),
    }


def _holding(found: Mapping[str, np.ndarray], order: int) -> tuple[str, ...]:
    """Reasons that hold for an order. One that leaves nothing to be said of the others stands alone."""
    told = [reason for reason, holds in found.items() if holds[order]]
    return next(((reason,) for reason in (TOO_FEW, NOT_FINITE) if reason in told), tuple(told))
