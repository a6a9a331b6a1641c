"""Which estimates are to be trusted: orders like the recorded ones, whose intervals say more than a guess."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from orderscope.engine.calibration import Calibration

# Orders are trusted up to 1.5 times as far outside the anchors' span as the farthest left-out run.
FARTHER = 1.5
# Largest share of the samples that an order may replace, and for the proxy of the batches that it may regroup, and
# still be trusted: left-out runs have none.
REPLACED = 0.1


def near_anchors(outside: np.ndarray, calibrations: Iterable[Calibration]) -> np.ndarray:
    """Whether orders are about as near the anchors as the left-out runs, bool [n]; none is without such runs.

    Args:
        outside: how far each order's states lay outside the anchors' span, [n].
        calibrations: fitted on the left-out runs.
    """
    seen = [calibration.farthest for calibration in calibrations if calibration.farthest > 0]
    return outside <= FARTHER * max(seen) if seen else np.zeros(len(outside), dtype=bool)


def regrouped_as_recorded(regrouped: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """Whether orders regroup no larger share of their batches than true runs did, bool [n].

    Args:
        regrouped: that share of each order, [n].
        recorded: that share of each true run, [runs].
    """
    return regrouped <= max(REPLACED, *recorded, 0)


def few_replaced(orders: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Whether orders have nearly all of the recorded samples, bool [n].

    Args:
        orders: sample ids, [n, steps, batch].
        reference: the recorded order, [steps, batch].
    """
    most = int(max(orders.max(initial=0), reference.max())) + 1
    recorded = np.bincount(reference.ravel(), minlength=most)
    missing = [np.maximum(recorded - np.bincount(o.ravel(), minlength=most), 0).sum() for o in orders]
    return np.array(missing) / reference.size <= REPLACED


def telling(
    errors: Mapping[str, np.ndarray], calibration: Mapping[str, Calibration], regrouped: np.ndarray
) -> np.ndarray:
    """Whether an order's interval says more than a guess would, in one metric at least, bool [n].

    Args:
        errors: half-widths of the intervals by metric, [n].
        calibration: by metric.
        regrouped: share of each order's batches that were not recorded, [n].
    """
    found = [
        calibration[name].skilled & calibration[name].holds(regrouped) & (error <= calibration[name].guess)
        for name, error in errors.items()
    ]
    return np.any(found, axis=0)
