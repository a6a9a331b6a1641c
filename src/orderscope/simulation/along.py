"""Metrics along an order, at the weights after some of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from orderscope.store.names import REFERENCE
from orderscope.training import load_run

if TYPE_CHECKING:
    from orderscope.simulation.simulator import Simulator


def along(sim: Simulator, rows: Tensor, steps: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Metrics along an order. Held-out losses are expanded around the reference run's state after the same number of
    steps.

    Args:
        sim: the simulator of the run.
        rows: weights on the carried coordinates, [k, m].
        steps: number of steps taken before each, [k]; the steps after which states of the reference run were stored.
        names: names of metrics.

    Returns:
        Name -> [k], before calibration.
    """
    values = sim.metric_model(rows, names)
    shard = f"sketch/known/{REFERENCE}"
    if sim.held_out is None or shard not in sim.store:
        return values
    run, take = load_run(sim.store, REFERENCE, gradients=False), sim.plan.coordinates.indices
    theta = run.theta(take)
    for name in names:
        if name not in sim.losses:
            continue
        expansion = sim.held_out.expansion(name)
        slopes = torch.from_numpy(sim.store.map(shard, f"slope:{name}"))
        slopes = (slopes.view(torch.bfloat16) if slopes.dtype == torch.uint16 else slopes).to(rows.dtype)
        for k in range(len(steps) - 1):
            slope = slopes[k] if take is None else slopes[k][take]
            gradient = slope * sim.held_out.weight
            there = replace(expansion, center=theta[k], value=run.metrics[k][name], gradient=gradient)
            values[name][k] = float(there(rows[k]))
    return values
