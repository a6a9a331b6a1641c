"""Predictions on the page, with true values where they are known."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from orderscope.simulation.prediction import detectable
from orderscope.studies.agreement import agreement


@dataclass(frozen=True)
class Asked:
    """One queried order with its prediction.

    Args:
        label: the expression, or "proposal".
        order: [steps, batch].
        values, errors: metric -> number, as predicted before the order was trained.
        curves: metric -> [k], the metric at the reference's anchors.
        trusted: metric -> whether the prediction is to be trusted.
        skilled: metric -> whether estimates of it are better than a constant.
        true: metric -> value, where the order was truly trained.
    """

    label: str
    order: np.ndarray
    values: dict[str, float]
    errors: dict[str, float]
    curves: dict[str, np.ndarray]
    trusted: dict[str, bool]
    skilled: dict[str, bool]
    true: dict[str, float] = field(default_factory=dict)

    def difference(self, metric: str, reference: float) -> float:
        """Difference of the metric to that of the recorded order, true if the order was trained, else predicted.

        Args:
            metric: its name.
            reference: the metric of the recorded order.
        """
        return self.true.get(metric, self.values[metric]) - reference

    def told(self, metric: str) -> bool:
        """Whether the difference is reliable: the order was trained, or its prediction is trusted."""
        return metric in self.true or self.trusted[metric]

    def detectable(self, metric: str, reference: float) -> bool:
        """Whether the difference is known, or larger than its error; see `orderscope.simulation.prediction.detectable`.

        Args:
            metric: its name.
            reference: the metric of the recorded order.
        """
        found = detectable(self.difference(metric, reference), self.errors[metric], self.skilled[metric])
        return metric in self.true or bool(found)

    def held(self, metric: str) -> bool | None:
        """Whether the true value lies within the prediction's error; None if either is not known."""
        if metric not in self.true or not math.isfinite(self.errors[metric]):
            return None
        return abs(self.true[metric] - self.values[metric]) <= self.errors[metric]


@dataclass(frozen=True)
class Pairs:
    """Predicted and true values of one metric.

    Args:
        kind: "probes" (true runs, each predicted without its own anchors) or "unseen" (predicted before they were
            trained by `validate` or `query --train`).
        predicted, error, true: [n].
    """

    kind: str
    predicted: np.ndarray
    error: np.ndarray
    true: np.ndarray

    @property
    def agreement(self) -> dict[str, float]:
        """See `orderscope.studies.agreement`; through two points a line always goes, so correlations take three."""
        found = agreement(self.predicted, self.error, self.true)
        return found if len(self.true) > 2 else found | {"pearson": math.nan, "spearman": math.nan}
