"""Metrics at estimated final weights by the task's model: those without an expansion, and precise held-out losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from orderscope.sketching.gradients import set_parameters
from orderscope.task import Task
from orderscope_kernels.shapes import Float


@runtime_checkable
class MetricModel(Protocol):
    """Weights [rows, m] -> name -> values [rows]."""

    def __call__(
        self, theta: Float[Tensor, "rows coords"], names: tuple[str, ...]
    ) -> dict[str, Float[np.ndarray, " rows"]]:
        """Metrics at some weights.

        Args:
            theta: weights on the carried coordinates, [rows, m].
            names: of the metrics.

        Returns:
            Name -> float64 [rows].
        """
        ...


def evaluated(task: Task, each: Callable[[], None] | None = None) -> MetricModel:
    """Metrics of the task's model at the estimated weights, all of which must be carried (m = P).

    Args:
        task: has the model and the metrics.
        each: called after every evaluation of the model.
    """
    model = task.build_model()

    def values(theta: Tensor, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        rows: list[dict[str, float]] = []
        for row in theta:
            set_parameters(model, task.layout, row)
            rows.append(task.evaluate(model, names))
            if each is not None:
                each()
        return {name: np.array([r[name] for r in rows], dtype=np.float64) for name in names}

    return values
