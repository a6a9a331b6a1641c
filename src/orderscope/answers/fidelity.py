"""How well a run's predictions agree with the truth, over the unseen orders of all its validations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from orderscope.answers.stored import validations
from orderscope.studies.agreement import agreement

if TYPE_CHECKING:
    from orderscope.store import RunStore


@dataclass(frozen=True)
class Fidelity:
    """Agreement of predictions with true retraining in one metric.

    Args:
        metric: its name.
        orders: number of unseen orders that were trained, each predicted before its training.
        spearman: rank correlation of predicted and true values.
        mae: mean absolute error, in units of the metric.
        mae_ratio: `mae` as a share of that of guessing the median of the true values.
        coverage: share of the true values inside their 90 % interval.
    """

    metric: str
    orders: int
    spearman: float
    mae: float
    mae_ratio: float
    coverage: float


def fidelity(store: RunStore, metric: str) -> Fidelity | None:
    """How well predictions of one metric agree with the truth, over all orders that were validated in a run.

    Args:
        store: the run on disk.
        metric: its name.

    Returns:
        None where fewer than two orders were validated.
    """
    checks = [c for c in validations(store) if metric in c.true and metric in c.predicted and metric in c.error]
    if not checks:
        return None
    predicted, error, true = (
        np.concatenate([getattr(check, part)[metric] for check in checks]) for part in ("predicted", "error", "true")
    )
    orders = int((np.isfinite(predicted) & np.isfinite(true)).sum())  # an order may diverge
    if orders < 2:
        return None
    found = agreement(predicted, error, true)
    return Fidelity(metric, orders, **{name: found[name] for name in ("spearman", "mae", "mae_ratio", "coverage")})
