"""How well predictions agree with the truth: what `validate`, the page and the benchmarks print."""

from __future__ import annotations

import math

import numpy as np


def agreement(predicted: np.ndarray, error: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Measures of agreement between n predictions and the true values.

    Orders whose predicted or true value is not finite (an order may diverge) are left out of all of them.

    Args:
        predicted: of each order, [n], in units of the metric.
        error: half-widths of the 90 % intervals around them, [n]; not finite where there is no interval.
        true: values after truly training the orders, [n].

    Returns:
        By name; a measure is not a number where there are too few values, or all are the same.

        - spearman, pearson: rank and linear correlation of predicted and true values; of two values or more.
        - mae: mean absolute error, in units of the metric; of one value or more.
        - mae_ratio: `mae` over that of guessing the median of the true values.
        - coverage: share of the true values inside their interval, of those that have one.
        - sign: of all pairs of orders, how often the better one is named; of two values or more.
        - sigma_order: standard deviation of the true values, in units of the metric; of two values or more.
    """
    from scipy.stats import rankdata  # takes half as long to import as torch, and a query does without it

    sound = np.isfinite(predicted) & np.isfinite(true)
    p, e, t = predicted[sound], error[sound], true[sound]
    off, with_interval = np.abs(p - t), np.isfinite(e)
    constant = np.abs(t - np.median(t)).mean() if len(t) else 0.0
    i, j = np.tril_indices(len(t), -1)
    return {
        "spearman": correlation(rankdata(p), rankdata(t)),
        "pearson": correlation(p, t),
        "mae": float(off.mean()) if len(t) else math.nan,
        "mae_ratio": float(off.mean() / constant) if constant > 0 else math.nan,
        "coverage": float((off <= e)[with_interval].mean()) if with_interval.any() else math.nan,
        "sign": float(np.mean((p[i] > p[j]) == (t[i] > t[j]))) if len(i) else math.nan,
        "sigma_order": float(t.std(ddof=1)) if len(t) > 1 else math.nan,
    }


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Linear correlation of a [n] and b [n]; not a number for fewer than two values, or where all are the same."""
    if len(a) < 2 or not (np.std(a) > 0 and np.std(b) > 0):
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])
