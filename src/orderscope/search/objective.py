"""The objective of a search: one metric, or a weighted sum of several."""

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
    """sum_i weights_i * metric_i, which is minimised.

    A single metric that is maximised is reported with its own sign, so `reported` is `sign` times the objective.

    Args:
        weights: metric -> weight, negative for a metric that is maximised.
    """

    weights: Mapping[str, float]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics."""
        return tuple(self.weights)

    @property
    def alone(self) -> str | None:
        """The name of the metric if there is only one, else None."""
        return self.names[0] if len(self.weights) == 1 else None

    @property
    def sign(self) -> float:
        """-1 for a single metric that is maximised, else 1."""
        return -1.0 if self.alone and self.weights[self.alone] < 0 else 1.0

    def reported(self, values: Mapping[str, np.ndarray] | Mapping[str, float]) -> np.ndarray:
        """The objective with the sign that is shown to the user.

        Args:
            values: metric -> value, numbers or arrays [n].
        """
        return self.sign * self.value(values)

    @property
    def title(self) -> str:
        """The objective in words: `eval`, or `eval + 0.5 code`."""
        if self.alone:
            return self.alone
        parts = [
            f"{'-' if w < 0 else '+'} {'' if abs(w) == 1 else f'{abs(w):.3g} '}{n}" for n, w in self.weights.items()
        ]
        return " ".join(parts).removeprefix("+ ")

    def value(self, values: Mapping[str, np.ndarray] | Mapping[str, float]) -> np.ndarray:
        """The objective, to be minimised.

        Args:
            values: metric -> value, numbers or arrays [n].
        """
        return np.asarray(sum(weight * np.asarray(values[name]) for name, weight in self.weights.items()))

    def error(self, errors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Half-width of the objective's interval. The half-widths of the metrics are added, since the correlation of
        their errors is not known.

        Args:
            errors: metric -> half-width, [n].
        """
        return np.asarray(sum(abs(weight) * np.asarray(errors[name]) for name, weight in self.weights.items()))

    def expansion(self, held_out: HeldOut | None) -> Expansion | None:
        """Second-order expansion of the reported objective: the sum over the metrics that are held-out losses; None if
        none is.

        In a sum the curvature of a maximised metric is left out: the operator is a sum of squares and cannot hold a
        negative term.

        Args:
            held_out: the model of the held-out losses, or None.
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
        """A function from weights [m] to value and gradient [m] of the reported objective, counting only the metrics
        that are held-out losses.

        Args:
            held_out: the model of the held-out losses.
        """
        known = self._known(held_out)

        def at(theta: Tensor) -> tuple[float, Tensor]:
            assert held_out is not None
            terms = [(weight, *held_out.slope(theta, name)) for name, weight in known.items()]
            total = sum(weight * value for weight, value, _ in terms)
            return float(total), torch.stack([weight * gradient for weight, _, gradient in terms]).sum(0)

        return at

    def _known(self, held_out: HeldOut | None) -> dict[str, float]:
        names = () if held_out is None else held_out.names
        return {name: self.sign * weight for name, weight in self.weights.items() if name in names}


def front(points: np.ndarray) -> np.ndarray:
    """Which points are on the Pareto front, bool [n]: no other point is at most as large in every coordinate and
    smaller in one.

    Args:
        points: [n, metrics].

    Example:
        >>> front(np.array([[0, 2], [1, 1], [2, 2]])).tolist()
        [True, True, False]
    """
    no_worse = np.all(points[None] <= points[:, None], axis=2)
    better = np.any(points[None] < points[:, None], axis=2)
    return np.logical_not(np.any(np.logical_and(no_worse, better), axis=1))
