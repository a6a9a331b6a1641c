"""What a search is after: one metric, or a weighted sum of several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orderscope.engine import Expansion, HeldOut
from orderscope.engine.adjoint import Slope
from orderscope.engine.curvature import Curvature


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

    def expansion(self, held_out: HeldOut | None) -> Expansion | None:
        """That of what is told: the sum over the metrics that are held-out losses; None where none is.

        In a sum the curvature of a metric to be raised is left out: it bends the wrong way for a sum of squares.
        """
        known = self._known(held_out)
        if held_out is None or not known:
            return None
        parts = [(weight, held_out.expansion(name)) for name, weight in known.items()]
        return Expansion(
            center=held_out.center,
            value=float(sum(weight * part.value for weight, part in parts)),
            gradient=torch.stack([weight * part.gradient for weight, part in parts]).sum(0),
            curvature=Curvature.joined(
                ((weight, part.curvature) for weight, part in parts if weight > 0), len(held_out.center)
            ),
        )

    def slope(self, held_out: HeldOut | None) -> Slope:
        """Value and gradient of what is told at weights [m], of the metrics that are held-out losses only."""
        known = self._known(held_out)

        def at(theta: Tensor) -> tuple[float, Tensor]:
            assert held_out is not None
            found = [(weight, *held_out.slope(theta, name)) for name, weight in known.items()]
            total = sum(weight * value for weight, value, _ in found)
            return float(total), torch.stack([weight * gradient for weight, _, gradient in found]).sum(0)

        return at

    def _known(self, held_out: HeldOut | None) -> dict[str, float]:
        names = () if held_out is None else held_out.names
        return {name: self.sign * weight for name, weight in self.weights.items() if name in names}


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
