"""How far a run's predictions were borne out: unseen orders that were truly trained, of all its validations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from orderscope.answers.stored import validations
from orderscope.studies.validation import measured

if TYPE_CHECKING:
    from orderscope.store import RunStore


@dataclass(frozen=True)
class Fidelity:
    """Predictions beside true retraining, in one metric.

    Args:
        metric: its name.
        orders: number of unseen orders that were trained, each predicted before it was.
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
    """Over all orders validated in a run; None where fewer than two were."""
    checks = [c for c in validations(store) if metric in c.true and metric in c.predicted and metric in c.error]
    if not checks:
        return None
    predicted, error, true = (
        np.concatenate([getattr(check, part)[metric] for check in checks]) for part in ("predicted", "error", "true")
    )
    sound = np.isfinite(predicted) & np.isfinite(true)  # an order may diverge
    if sound.sum() < 2:
        return None
    found = measured({metric: predicted}, {metric: error}, {metric: true})
    return Fidelity(
        metric=metric,
        orders=int(sound.sum()),
        spearman=found["spearman"][metric],
        mae=float(np.abs(predicted - true)[sound].mean()),
        mae_ratio=found["mae_ratio"][metric],
        coverage=found["coverage"][metric],
    )
