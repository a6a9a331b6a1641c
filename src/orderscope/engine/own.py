"""A unit's own anchors: the states at which the recorded runs trained on it, and its gradients there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.batches import Batches
from orderscope.engine.optimizers import Dynamics, clip, start_states, step
from orderscope.training import RecordedRun
from orderscope_kernels.shapes import Bool, Float


@dataclass(frozen=True)
class OwnAnchors:
    """One column for each recorded run and each time that run trained on the same batch.

    Args:
        states, gradients: [units, columns, m].
        norms: norm of the whole gradient, before clipping, [units, columns].
        known: whether the unit has that column, bool [units, columns].
        runs: name of the run of each column.
    """

    states: Float[Tensor, "units own coords"]
    gradients: Float[Tensor, "units own coords"]
    norms: Float[Tensor, "units own"]
    known: Bool[Tensor, "units own"]
    runs: tuple[str, ...]


def own_anchors(dynamics: Dynamics, batches: Batches, runs: Sequence[RecordedRun]) -> OwnAnchors:
    """Find where each recorded batch was trained on. Nothing is computed but the optimizer's own steps: the recorded
    gradients drive it through the very states of the run.

    Args:
        dynamics: the optimizer, its hyper-parameters at every step and the start.
        batches: finds recorded batches.
        runs: recorded trainings with their gradients.
    """
    units = len(batches.order)
    trained = trained_states(dynamics, runs)
    index = batches.index(np.stack([run.order for run in runs]))[0]
    times = max(int(np.bincount(row[row < units], minlength=1).max()) for row in index)
    columns = len(runs) * times
    states = dynamics.start.theta.repeat(units, columns, 1)
    gradients, norms = torch.zeros_like(states), states.new_zeros(units, columns)
    known = torch.zeros(units, columns, dtype=torch.bool)
    for r, run in enumerate(runs):
        assert run.gradient is not None
        seen = np.zeros(units, dtype=np.int64)
        for t, unit in enumerate(index[r]):
            if unit < units:
                column = r * times + int(seen[unit])
                states[unit, column], gradients[unit, column] = trained[t, r], run.gradient[t]
                norms[unit, column] = run.grad_norm[t]
                known[unit, column] = True
                seen[unit] += 1
    return OwnAnchors(states, gradients, norms, known, tuple(run.name for run in runs for _ in range(times)))


def trained_states(dynamics: Dynamics, runs: Sequence[RecordedRun]) -> Float[Tensor, "steps runs coords"]:
    """Weights before each step of each run, [steps, runs, m], by replaying its recorded gradients.

    Args:
        dynamics: the recorded optimizer.
        runs: recorded trainings that still have the gradients of their steps.
    """
    states = start_states(dynamics, len(runs))
    before = torch.empty(dynamics.steps, *states.theta.shape, dtype=states.theta.dtype)
    active = torch.stack([run.has_grad for run in runs], dim=1) if dynamics.masked else None
    for t in range(dynamics.steps):
        before[t] = states.theta
        rows = [run.gradient[t] for run in runs if run.gradient is not None]
        norm = torch.stack([run.grad_norm[t] for run in runs]).to(before.dtype)
        gradient = clip(dynamics, torch.stack(rows), norm)
        step(dynamics, states, gradient, t, None, None if active is None else active[t])
    return before
