"""The true runs, each predicted as if it had not been trained: what errors are calibrated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.batches import Batches
from orderscope.engine.held_out import HeldOut
from orderscope.engine.replay import replay
from orderscope.engine.threads import one_thread
from orderscope.engine.units import units_of
from orderscope.engine.window import Window
from orderscope_kernels.shapes import Float, Int


@dataclass(frozen=True)
class LeftOut:
    """Predictions without the runs' own anchors and last states.

    Args:
        runs: their names.
        values: held-out losses, name -> [runs].
        theta: final weights, [runs, m].
        outside: how far their states lay outside what the other anchors span, [runs]; see `Replayed`.
    """

    runs: tuple[str, ...]
    values: dict[str, np.ndarray]
    theta: Float[Tensor, "runs coords"]
    outside: Float[np.ndarray, " runs"]


def left_out(
    window: Window, held_out: HeldOut | None, runs: Sequence[str], orders: Int[np.ndarray, "runs steps batch"]
) -> LeftOut:
    """Predict runs without what they left behind.

    Args:
        window: the run, ready to be replayed.
        held_out: what is known of held-out losses, or None.
        runs: names of true runs.
        orders: theirs, [runs, steps, batch].
    """
    if not runs:
        names = () if held_out is None else held_out.names
        nothing = torch.zeros(0, window.coords, dtype=window.dtype)
        return LeftOut((), {n: np.zeros(0) for n in names}, nothing, np.zeros(0))
    anchors = np.array(window.anchor_runs)
    allowed = torch.from_numpy(np.stack([anchors != run for run in runs]))
    with one_thread():
        found = replay(window, units_of(window, Batches(window.order), orders), allowed=allowed)
        values = {} if held_out is None else held_out(found.theta, held_out.names, runs)
    return LeftOut(tuple(runs), values, found.theta, found.outside.numpy())
