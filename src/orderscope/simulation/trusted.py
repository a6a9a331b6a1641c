"""Which estimates are trusted: those of orders like the recorded ones, with intervals narrower than a guess."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from orderscope.engine.calibration import Calibration

# Orders are trusted up to 1.5 times as far outside the anchors' span as the farthest left-out run.
FARTHER = 1.5
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


def informative(
    errors: Mapping[str, np.ndarray], calibration: Mapping[str, Calibration], regrouped: np.ndarray
) -> np.ndarray:
    """Whether in at least one metric an order's interval is at most as wide as that of a constant guess, and intervals
    of its kind held on the left-out runs, bool [n].

    Args:
        errors: metric -> half-width of the interval, [n].
        calibration: metric -> calibration.
        regrouped: share of each order's batches that are not recorded batches, [n].
    """
    per_metric = [
        calibration[name].skilled & calibration[name].holds(regrouped) & (error <= calibration[name].guess)
        for name, error in errors.items()
    ]
    return np.any(per_metric, axis=0)
