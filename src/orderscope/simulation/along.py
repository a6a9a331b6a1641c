"""Metrics on the way, at weights after some steps of an order."""

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
    """Metrics on the way: held-out losses by their gradients at the reference run's state after as many steps.

    Args:
        sim: the run, opened.
        rows: weights on the carried coordinates, [k, m].
        steps: steps taken before them, [k]; those after which the reference run's states were kept.
        names: metrics.

    Returns:
        Name -> [k], before calibration.
    """
    found = sim.metric_model(rows, names)
    shard = f"sketch/known/{REFERENCE}"
    if sim.held_out is None or shard not in sim.store:
        return found
    run, take = load_run(sim.store, REFERENCE, gradients=False), sim.plan.coordinates.indices
    theta = run.theta(take)
    for name in names:
        if name not in sim.losses:
            continue
        expansion = sim.held_out.expansion(name)
        slopes = torch.from_numpy(sim.store.map(shard, f"slope:{name}"))
        slopes = (slopes.view(torch.bfloat16) if slopes.dtype == torch.uint16 else slopes).to(rows.dtype)
        for k in range(len(steps) - 1):
            own = slopes[k] if take is None else slopes[k][take]
            there = replace(expansion, center=theta[k], value=run.metrics[k][name], gradient=own * sim.held_out.weight)
            found[name][k] = float(there(rows[k]))
    return found
