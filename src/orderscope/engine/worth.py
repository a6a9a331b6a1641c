"""How much each part of a recording reduces the error, measured on the true runs before the budget buys more of it.

The true runs are predicted, each without its own anchors and last state, with all there is; then without half of the
other runs, and with half of the curvature's rows. The growth of the error measures the value of the missing part. All
that before the runs correct each other, see `orderscope.engine.correction`.
Shared anchors cannot be judged so, see `orderscope.recording.budget.falling`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from orderscope.engine.batches import Batches
from orderscope.engine.left_out import share_kept
from orderscope.engine.raw import halved, raw_held_out, raw_window
from orderscope.engine.replay import Replayed, replay
from orderscope.engine.threads import one_thread
from orderscope.engine.units import units_of
from orderscope.store import RunStore
from orderscope.store.names import REFERENCE
from orderscope.training import load_run, true_runs

# Coordinates that worth is measured on. On text_24 of benchmarks/windows.py (34,528 weights) that takes 0.15 s of CPU
# instead of 0.6 s on all, and finds growths of the same size.
COORDS = 4096
PROBES, CURVATURE = "probes", "curvature"


@dataclass(frozen=True)
class Worth:
    """Mean absolute errors of the left-out runs' held-out losses, in units of sigma_order.

    Args:
        error: with all there is.
        growth: by how much more without half of the other probes, and without half of the curvature.
        runs: how many runs were predicted.
        left: how many of the other probes were left out of how many, the mean over the runs.
    """

    error: float
    growth: dict[str, float]
    runs: int
    left: float


def worth(store: RunStore, coords: int | None = COORDS) -> Worth | None:
    """Measure, on the shards a table is built of, what half of the probes and half of the curvature are worth.

    Args:
        store: the run on disk.
        coords: coordinates to measure on; all that are carried if None.

    Returns:
        None where there are no held-out losses or fewer than two true runs.
    """
    names = [run for run in true_runs(store) if run != REFERENCE]
    window = raw_window(store, coords)
    held_out = raw_held_out(store, window, None, coords)
    if held_out is None or len(names) < 2:
        return None
    true = [load_run(store, run, gradients=False) for run in names]
    anchors = np.array(window.anchor_runs)
    without: list[frozenset[str]] = [frozenset({run}) for run in names]
    for i, run in enumerate(names):
        others = [other for other in names if other != run]
        without.append(frozenset({run, *others[i % 2 :: 2]}))
    allowed = torch.from_numpy(np.stack([~np.isin(anchors, list(left)) for left in without]))
    orders = np.array([run.order for run in true])
    with one_thread():
        units = units_of(window, Batches(window.order), np.concatenate([orders] * 2))
        found = replay(window, units, allowed=allowed)
        units = units_of(window, Batches(window.order), orders)
        half = replay(halved(store, window, coords), units, allowed=allowed[: len(names)]).theta
        theta, left = torch.cat([found.theta, half]), [*without, *without[: len(names)]]
        whole = Replayed(
            *(x[: len(names)] for x in (found.theta, found.outside, found.regrouped, found.sorting)), snapshots={}
        )
        theta = held_out.drawn(theta, share_kept(held_out, whole, names, window.final), left)
        values = held_out(theta, held_out.names, left)
    errors = np.zeros(3)
    for name in held_out.names:
        truth = np.array([run.metrics[-1][name] for run in true])
        reference = load_run(store, REFERENCE, gradients=False).metrics[-1][name]
        sigma = np.append(truth, reference).std(ddof=1)
        if sigma > 0:
            errors += np.abs(values[name].reshape(3, -1) - truth).mean(1) / sigma
    errors /= len(held_out.names)
    growth = {part: float(e - errors[0]) for part, e in zip((PROBES, CURVATURE), errors[1:], strict=True)}
    left = float(np.mean([len(w) - 1 for w in without[len(names) :]]))
    return Worth(float(errors[0]), growth, len(names), left)
