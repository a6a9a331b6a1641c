"""All weights from the carried ones, so that the task's model can be evaluated if only some coordinates are carried.

The other coordinates of a state are interpolated between recorded states, whose weights are known in full, as the
carried ones lie between theirs; what the recorded states do not span of a held-out loss is left to what is known of it
there, H:

    theta ~ theta_0 + sum_k c_k (theta_k - theta_0),    c by ridge regression on the carried coordinates,
    L(theta) ~ L(interpolated) + H(theta) - H(interpolated).

Most of the loss's shape is thus the model's own, and other metrics can be estimated too, less accurately.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.held_out import HeldOut
from orderscope.engine.metrics import MetricModel
from orderscope.sketching import SketchPlan
from orderscope.sketching.gradients import set_parameters
from orderscope.store import RunStore
from orderscope.store.names import REFERENCE
from orderscope.task import Task
from orderscope.training import load_run, true_runs
from orderscope_kernels.shapes import Float

RIDGE = 0.1  # of the regression on known states, in units of their mean squared distance
KNOWN_BYTES = 1 << 33  # largest memory that the known states' weights may take


def held_bytes(states: int, size: int, item: int) -> int:
    """Bytes of `states` recorded states of `size` weights, `item` bytes each; 0 if that exceeds `KNOWN_BYTES`.

    Args:
        states: number of states.
        size: number of weights of each.
        item: bytes of each weight.

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

    def interpolated(
        self, carried: Float[Tensor, " coords"], without: str | None = None
    ) -> tuple[Float[Tensor, " size"], Float[Tensor, " coords"]]:
        """The state between known ones that is nearest to carried weights [m]: all its weights [P], and the carried.

        Args:
            carried: weights on the carried coordinates, [m].
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
    """The known states: all anchors of the reference run, and the ends of the other runs.

    Args:
        store: the run on disk.
        plan: what the sketch consists of; carries some of the weights only.
    """
    indices = plan.coordinates.indices
    assert indices is not None
    states, runs = [], []
    for run in true_runs(store):
        theta = load_run(store, run, gradients=False).theta()
        kept = theta if run == REFERENCE else theta[-1:]
        states += list(kept)
        runs += [run] * len(kept)
    last = max(k for k, run in enumerate(runs) if run == REFERENCE)
    center = states.pop(last)
    return KnownStates(center, torch.stack(states).sub_(center), tuple(runs[:last] + runs[last + 1 :]), indices)


def completed(
    task: Task,
    known: KnownStates,
    held_out: HeldOut | None,
    without: Sequence[str] | None = None,
    each: Callable[[], None] | None = None,
) -> MetricModel:
    """Metrics by the task's model at interpolated weights, with held-out losses corrected by their expansion.

    Args:
        task: builds the model and evaluates it.
        known: whole weights of the recorded runs.
        held_out: the model of the held-out losses; None without such losses.
        without: for each of n orders a run whose states are not to be used.
        each: called after every evaluation of the model.
    """
    model = task.build_model()
    losses = () if held_out is None else held_out.names

    def values(theta: Tensor, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        rows: list[dict[str, float]] = []
        for i, carried in enumerate(theta):
            run = without[i] if without else None
            whole, inside = known.interpolated(carried, run)
            set_parameters(model, task.layout, whole)
            found = task.evaluate(model, names)
            of = [name for name in names if name in losses]
            if held_out is not None and of:
                both = held_out(torch.stack([carried, inside]), of, [run, run])
                found |= {name: found[name] + float(both[name][0] - both[name][1]) for name in of}
            rows.append(found)
            if each is not None:
                each()
        return {name: np.array([r[name] for r in rows], dtype=np.float64) for name in names}

    return values
