"""All weights from those carried, so that the real model can be run where only some of the coordinates are.

The other coordinates of a state are interpolated between recorded states, whose weights are known in full, as the
carried ones lie between theirs; what the recorded states do not span is left to the metric's expansion E:

    theta ~ theta_0 + sum_k c_k (theta_k - theta_0),    c by ridge regression on the carried coordinates,
    L(theta) ~ L(interpolated) + E(theta) - E(interpolated).

So most of the loss's shape is the real model's, and a metric that is no loss can be asked too, if more roughly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.metrics import Expansion, MetricModel
from orderscope.names import REFERENCE
from orderscope.record import load_run, true_runs
from orderscope.sketch import SketchPlan
from orderscope.sketch.gradients import set_parameters
from orderscope.store import RunStore
from orderscope.task import Task

RIDGE = 0.1  # of the states' mean squared distance
KNOWN_BYTES = 1 << 33


def held_bytes(states: int, size: int, item: int) -> int:
    """Bytes of `states` recorded states of `size` weights, `item` bytes each; 0 where so many are not held in memory.

    Example:
        >>> held_bytes(17, 22_714_756, 4)
        1544603408
        >>> held_bytes(17, 7_000_000_000, 4)
        0
    """
    needed = states * size * item
    return needed if needed <= KNOWN_BYTES else 0


@dataclass(frozen=True)
class KnownStates:
    """States of recorded runs with all of their weights.

    Args:
        center: end of the reference run, [P].
        spread: the states' displacements from there, [states, P].
        runs: name of the run of each.
        indices: which coordinates are carried, int64 [m].
    """

    center: Tensor
    spread: Tensor
    runs: tuple[str, ...]
    indices: Tensor

    def interpolated(self, carried: Tensor, without: str | None = None) -> tuple[Tensor, Tensor]:
        """The state between known ones that is nearest to carried weights [m]: all its weights [P], and the carried.

        Args:
            without: a run whose states are not to be used.
        """
        rows = [k for k, run in enumerate(self.runs) if run != without]
        spread, center = self.spread[rows], self.center[self.indices]
        on = spread[:, self.indices]
        gram = (on @ on.T).double()
        ridge = RIDGE * gram.diagonal().mean() if rows else 0.0
        along = (on @ (carried - center)).double()
        share = torch.linalg.solve(gram + ridge * torch.eye(len(rows), dtype=torch.float64), along).to(carried.dtype)
        return self.center + share @ spread, center + share @ on


def known_states(store: RunStore, plan: SketchPlan) -> KnownStates:
    """All anchors of the reference run, and where the other runs ended."""
    indices = plan.coordinates.indices
    assert indices is not None
    states, runs = [], []
    for run in true_runs(store):
        theta = load_run(store, run).theta()
        kept = theta if run == REFERENCE else theta[-1:]
        states += list(kept)
        runs += [run] * len(kept)
    last = max(k for k, run in enumerate(runs) if run == REFERENCE)
    center = states.pop(last)
    return KnownStates(center, torch.stack(states).sub_(center), tuple(runs[:last] + runs[last + 1 :]), indices)


def completed(
    task: Task, known: KnownStates, expansions: Mapping[str, Expansion], without: Sequence[str] | None = None
) -> MetricModel:
    """Metrics by the real model at interpolated weights, corrected by their expansions where there are some.

    Args:
        without: for each of n orders a run whose states are not to be used; weights come as [.. n, m] flattened.
    """
    model = task.build_model()

    def values(theta: Tensor, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        rows: list[dict[str, float]] = []
        for i, carried in enumerate(theta):
            whole, inside = known.interpolated(carried, without[i % len(without)] if without else None)
            set_parameters(model, task.layout, whole)
            found = task.evaluate(model, names)
            for name in set(names) & set(expansions):
                found[name] += float(expansions[name](carried) - expansions[name](inside))
            rows.append(found)
        return {name: np.array([r[name] for r in rows], dtype=np.float64) for name in names}

    return values
