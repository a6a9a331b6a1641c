"""What a search is after: one metric, or a weighted sum of several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.metrics import Expansion
from orderscope.search.adjoint import Slope, metric_slope
from orderscope.task import Task


@dataclass(frozen=True)
class Objective:
    """sum_i weights_i * metric_i; less of it is better.

    A single metric of which more is better is told as it is, so `told` is `sign` times the objective.

    Args:
        weights: metric -> weight, negative where more of the metric is better.
    """

    weights: Mapping[str, float]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.weights)

    @property
    def alone(self) -> str | None:
        """The metric, where it is a single one."""
        return self.names[0] if len(self.weights) == 1 else None

    @property
    def sign(self) -> float:
        """-1 for a single metric of which more is better, else 1."""
        return -1.0 if self.alone and self.weights[self.alone] < 0 else 1.0

    def told(self, values: Mapping[str, np.ndarray] | Mapping[str, float]) -> np.ndarray:
        """What a reader is shown of values by metric, numbers or [n]."""
        return self.sign * self.value(values)

    @property
    def title(self) -> str:
        """`eval`, or `eval + 0.5 code`."""
        if self.alone:
            return self.alone
        parts = [
            f"{'-' if w < 0 else '+'} {'' if abs(w) == 1 else f'{abs(w):.3g} '}{n}" for n, w in self.weights.items()
        ]
        return " ".join(parts).removeprefix("+ ")

    def value(self, values: Mapping[str, np.ndarray] | Mapping[str, float]) -> np.ndarray:
        """Of values by metric, numbers or [n]."""
        return np.asarray(sum(weight * np.asarray(values[name]) for name, weight in self.weights.items()))

    def error(self, errors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Half-width from those of the metrics, by the triangle inequality: how they go together is not known."""
        return np.asarray(sum(abs(weight) * np.asarray(errors[name]) for name, weight in self.weights.items()))

    def expansion(self, stored: Mapping[str, Expansion]) -> Expansion | None:
        """That of what is told: the sum over the metrics that have one; None where none has.

        In a sum the curvature of a metric to be raised is left out: it bends the wrong way for a sum of squares.
        """
        known = {name: self.sign * weight for name, weight in self.weights.items() if name in stored}
        if not known:
            return None
        first = stored[next(iter(known))]
        factors = [weight**0.5 * stored[name].factor for name, weight in known.items() if weight > 0]
        return Expansion(
            center=first.center,
            value=float(sum(weight * stored[name].value for name, weight in known.items())),
            gradient=torch.stack([weight * stored[name].gradient for name, weight in known.items()]).sum(0),
            factor=torch.cat(factors) if factors else first.factor[:0],
        )

    def slope(self, task: Task, known: Mapping[str, Expansion]) -> Slope:
        """Value and gradient of what is told at weights [P], by the real model; of metrics with an expansion only."""
        told = {name: self.sign * weight for name, weight in self.weights.items() if name in known}
        parts = [(weight, metric_slope(task, name)) for name, weight in told.items()]

        def at(theta: Tensor) -> tuple[float, Tensor]:
            found = [(weight, *slope(theta)) for weight, slope in parts]
            total = sum(weight * value for weight, value, _ in found)
            return float(total), torch.stack([weight * gradient for weight, _, gradient in found]).sum(0)

        return at


def front(points: np.ndarray) -> np.ndarray:
    """Which points no other is as good as in everything and better in something, bool [n]; less is better.

    Args:
        points: [n, metrics].

    Example:
        >>> front(np.array([[0, 2], [1, 1], [2, 2]])).tolist()
        [True, True, False]
    """
    no_worse = np.all(points[None] <= points[:, None], axis=2)
    better = np.any(points[None] < points[:, None], axis=2)
    return np.logical_not(np.any(np.logical_and(no_worse, better), axis=1))
