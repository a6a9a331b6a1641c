"""Metrics of estimated final weights: by the real model where all weights are carried, by an expansion otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from orderscope.errors import OrderscopeError
from orderscope.names import PLAN
from orderscope.sketch import from_bfloat16
from orderscope.sketch.gradients import set_parameters
from orderscope.store import RunStore
from orderscope.task import Task


class MetricModel(Protocol):
    """Weights [rows, m] -> name -> values [rows]."""

    def __call__(self, theta: Tensor, names: tuple[str, ...]) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Expansion:
    """Second-order expansion of a held-out loss around the end of the reference run,

        L(theta) ~ L + g . d + 1/2 |A d|^2,    d = theta - theta_ref,

    with the set's own pseudo-gradients A; inner products are Horvitz-Thompson estimates.

    Args:
        center: theta_ref, [m].
        value: L.
        gradient: g times P / m, [m].
        factor: A times P / m / sqrt(rows), [rows, m]: the products A d are sums over coordinates too.
    """

    center: Tensor
    value: float
    gradient: Tensor
    factor: Tensor

    def __call__(self, theta: Tensor) -> Tensor:
        """[..., m] -> [...] float64."""
        d = theta - self.center
        return self.value + (d @ self.gradient).double() + 0.5 * (d @ self.factor.T).double().pow(2).sum(-1)


def load_expansions(
    store: RunStore, center: Tensor, values: Mapping[str, float], weight: float
) -> dict[str, Expansion]:
    """Every stored expansion by metric name."""
    found = {}
    for name in store.attrs(PLAN)["metrics"]:
        shard = f"sketch/metric/{name}"
        rows = from_bfloat16(store.map(shard, "rows")).to(center.dtype)
        gradient = torch.from_numpy(np.array(store.map(shard, "gradient")))
        factor = rows * (weight / len(rows) ** 0.5)
        found[name] = Expansion(center, values[name], gradient * weight, factor)
    return found


def expanded(expansions: Mapping[str, Callable[[Tensor], Tensor]]) -> MetricModel:
    """Metrics by their expansions: microseconds a row."""

    def values(theta: Tensor, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        for name in names:
            if name not in expansions:
                raise OrderscopeError(
                    f"metric {name!r}",
                    "a metric with a stored expansion: " + (", ".join(expansions) or "none"),
                    "give the Simulator the task, and carry all coordinates (coords=) for metrics that are no losses",
                )
        return {name: expansions[name](theta).cpu().numpy() for name in names}

    return values


def evaluated(task: Task) -> MetricModel:
    """Metrics of the real model at the estimated weights; needs all of them, m = P."""
    model = task.build_model()

    def values(theta: Tensor, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        rows: list[dict[str, float]] = []
        for row in theta:
            set_parameters(model, task.layout, row)
            rows.append(task.evaluate(model, names))
        return {name: np.array([r[name] for r in rows], dtype=np.float64) for name in names}

    return values


def member_values(
    model: MetricModel, expansions: Mapping[str, Expansion], theta: Tensor, names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Metrics of a replay's members, name -> [members, n].

    The real model is run at the whole curvature's weights and at the middle c of the halves'. They differ from it by
    the noise of the curvature's sample, and what that does to a loss L its expansion E tells:

        L(half) ~ L(c) + E(half) - E(c).

    Metrics without an expansion take the model for every member.

    Args:
        model: of all weights.
        theta: [members, n, m]: the whole, or the whole and two halves.
    """
    near = tuple(name for name in names if name in expansions)
    plain = tuple(name for name in names if name not in expansions)
    values: dict[str, np.ndarray] = {}
    if near:
        members, count, _ = theta.shape
        middle = theta[1:].mean(0, keepdim=True)
        found = model(torch.cat([theta[:1], middle]).flatten(0, 1) if members > 1 else theta[0], near)
        for name in near:
            whole, centre = found[name][None, :count], found[name][count:]
            halves = [centre + (expansions[name](h) - expansions[name](middle[0])).numpy() for h in theta[1:]]
            values[name] = np.concatenate([whole, *(h[None] for h in halves)])
    if plain:
        every = model(theta.flatten(0, 1), plain)
        values |= {name: found.reshape(theta.shape[:2]) for name, found in every.items()}
    return values
