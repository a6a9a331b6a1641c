"""Which estimates are trusted: those of orders like the recorded ones, with intervals narrower than a guess."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from orderscope.engine.calibration import AT_LEAST, FARTHER, Calibration
from orderscope.engine.units import sorts_more

# Largest share of the samples that a trusted order may replace, and for the proxy the largest share of the batches that
# it may regroup if no true run regrouped more. Left-out runs replace no samples, so they do not test such orders.
REPLACED = 0.1


# By how much of a batch samples may have more of their own group beside them than in the recorded order. With two
# orders recorded that sort all samples, 13 of 30 intervals of such orders hold where groups are a classifier's classes,
# and 191 of 209 of orders that sort less on nine windows.
PURER = 0.5


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


def sorted_as_recorded(own: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """Whether two or more orders that were trained sort samples by group as much as an order does, bool [n]. From one
    alone the size of such errors is not known: on three classifiers 14 of 33 trusted intervals held.

    Args:
        own: `orderscope.engine.units.own_shares` of the orders, [n, groups].
        recorded: those of the orders that were trained, the recorded one among them, [runs, groups].
    """
    as_much = [~sorts_more(own, shares) for shares in recorded]
    return np.sum(as_much, axis=0) >= 2


def beyond_effects(values: np.ndarray, fitted: Calibration) -> np.ndarray:
    """Whether effects are larger than `FARTHER` times the largest of a true run, bool [n].

    Args:
        values: estimates of a metric, [n].
        fitted: its calibration.
    """
    return np.abs(values - fitted.reference) > FARTHER * fitted.largest


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
PURE = "it sorts samples by group far more than the recorded order does"
SORTED = "fewer than two recorded orders sort samples by group as much as it does"
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
    sorting: np.ndarray,
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
        sorting: whether the order sorts samples, see `orderscope.engine.calibration.Bearing`, bool [n].
        known: whether the order was truly trained, bool [n].
        only_order: whether nothing but the order differs from the recorded runs, so that effects may be compared.
    """
    own: dict[str, dict[str, np.ndarray]] = {}
    for name, value in values.items():
        usual = calibration[name]
        rows = usual.outlying(value, sorting)
        own[name] = {}
        for fitted, those in ((usual, ~rows), (usual.beyond, rows)):
            if fitted is None:
                continue
            against = _of_interval(name, errors[name], fitted, regrouped)
            if only_order and len(fitted.true) > 1:
                against[BEYOND.format(metric=name)] = beyond_effects(value, fitted)
            for reason, holds in against.items():
                own[name][reason] = own[name].get(reason, False) | (holds & those)
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
