"""Leave-one-out predictions of the true runs, on which errors are calibrated.

Errors of a replay add up over its steps, most in directions of little curvature. Over hundreds of
steps the remainder r that the last states of other runs leave of its weights may then be more error than prediction. So
weights are drawn towards what those states span,

    theta' = sum_k w_k theta_k + s r,    s in [0, 1],

where the runs are predicted better with shares that were chosen without them, clearly so or by a quarter, before
calibration: left-out runs lack anchors that other orders have, so that small gains are none for those. s is then the
share that predicts them best after calibration, each calibrated on the others, in units of each loss's spread;
elsewhere it is 1. Then the errors that alike runs had are subtracted, see `orderscope.engine.correction`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.batches import Batches
from orderscope.engine.calibration import Bearing, directions, fit_calibration, gains_much
from orderscope.engine.correction import Correction, fit_correction
from orderscope.engine.held_out import HeldOut
from orderscope.engine.replay import Replayed, replay
from orderscope.engine.threads import one_thread
from orderscope.engine.units import units_of
from orderscope.engine.window import Window
from orderscope_kernels.shapes import Float, Int

SHARES = np.linspace(0, 1, 11)


@dataclass(frozen=True)
class LeftOut:
    """Leave-one-out predictions of the true runs: without each run's own anchors and last state.

    Args:
        runs: their names.
        values: held-out losses of the weights `theta`, name -> [runs].
        replayed: final weights as replayed, [runs, m].
        theta: the same drawn towards the other runs' last states, see `HeldOut.drawn`, and corrected by their errors,
            [runs, m].
        outside: how far their states lay outside what the other anchors span, [runs]; see `Replayed`.
        kept: share s of the remainder that is kept.
        correction: of drawn weights by the runs' errors; None where there is none.
    """

    runs: tuple[str, ...]
    values: dict[str, np.ndarray]
    replayed: Float[Tensor, "runs coords"]
    theta: Float[Tensor, "runs coords"]
    outside: Float[np.ndarray, " runs"]
    kept: float = 1.0
    correction: Correction | None = None

    def finished(self, held_out: HeldOut, theta: Float[Tensor, "n coords"]) -> Float[Tensor, "n coords"]:
        """Final weights of orders as replayed, drawn and corrected in the same way; known states as they are.

        Args:
            held_out: what is known of held-out losses.
            theta: final weights on the carried coordinates, [n, m].
        """
        drawn = held_out.drawn(theta, self.kept)
        if self.correction is None:
            return drawn
        return torch.where(held_out.is_known(theta)[:, None], theta, self.correction(drawn))


def left_out(
    window: Window, held_out: HeldOut | None, runs: Sequence[str], orders: Int[np.ndarray, "runs steps batch"]
) -> LeftOut:
    """Predict each run without its own anchors and last state.

    Args:
        window: the run, ready to be replayed.
        held_out: what is known of held-out losses, or None.
        runs: names of true runs.
        orders: theirs, [runs, steps, batch].
    """
    if not runs:
        names = () if held_out is None else held_out.names
        nothing = torch.zeros(0, window.coords, dtype=window.dtype)
        return LeftOut((), {n: np.zeros(0) for n in names}, nothing, nothing, np.zeros(0))
    anchors = np.array(window.anchor_runs)
    allowed = torch.from_numpy(np.stack([anchors != run for run in runs]))
    with one_thread():
        found = replay(window, units_of(window, Batches(window.order), orders), allowed=allowed)
        outside = found.outside.numpy()
        if held_out is None:
            return LeftOut(tuple(runs), {}, found.theta, found.theta, outside)
        kept = share_kept(held_out, found, runs, window.final)
        theta, correction = predicted(held_out, found.theta, runs, window.final, kept)
        values = held_out(theta, held_out.names, runs)
    return LeftOut(tuple(runs), values, found.theta, theta, outside, kept, correction)


def predicted(
    held_out: HeldOut,
    replayed: Float[Tensor, "runs coords"],
    runs: Sequence[str],
    final: Float[Tensor, " coords"],
    kept: float,
) -> tuple[Float[Tensor, "runs coords"], Correction | None]:
    """Final weights of left-out runs, drawn and corrected by each other, [runs, m], and the correction.

    Args:
        held_out: what is known of held-out losses.
        replayed: final weights as replayed without the runs' own states, [runs, m].
        runs: their names; those whose last state is not known correct nothing.
        final: weights at the end of the reference run.
        kept: share of the remainder that is kept.
    """
    theta = held_out.drawn(replayed, kept, runs)
    rows = held_out.known_rows(runs)
    correction = fit_correction(theta[rows], held_out.ends([runs[row] for row in rows]), final)
    if correction is None:
        return theta, None
    corrected = correction(theta)
    corrected[rows] = correction.without_own(theta[rows])
    return corrected, correction


def share_kept(held_out: HeldOut, replayed: Replayed, runs: Sequence[str], final: Float[Tensor, " coords"]) -> float:
    """The share s of the remainder to keep, from left-out runs as they were replayed.

    Args:
        held_out: what is known of held-out losses.
        replayed: the runs.
        runs: their names; those whose last state is not known say nothing.
        final: weights at the end of the reference run.
    """
    rows = held_out.known_rows(runs)
    usual = [row for row in rows if not replayed.sorting[row]]  # beside the errors of others these say nothing
    rows = usual if len(usual) >= 3 else rows
    if len(rows) < 3:
        return 1.0
    names, theta = [runs[i] for i in rows], replayed.theta[rows]
    true = held_out.values[:, [held_out.runs.index(name) for name in names]].numpy()
    sigma = np.concatenate([held_out.values[:, :1].numpy(), true], axis=1).std(axis=1, ddof=1)
    scale = np.where(sigma > 0, sigma, np.inf)[:, None]
    raw, calibrated = (np.empty((len(SHARES), len(names))) for _ in range(2))  # mean errors over the losses
    for i, share in enumerate(SHARES.tolist()):
        drawn = held_out.drawn(theta, share, names)
        found = held_out(drawn, held_out.names, names)
        raw[i] = (np.abs(np.stack([found[name] for name in held_out.names]) - true) / scale).mean(0)
        unit = directions(drawn, final)
        alike = (unit @ unit.T).double().numpy()
        at = Bearing(
            replayed.outside[rows].numpy(), alike, replayed.regrouped[rows].numpy(), replayed.sorting[rows].numpy()
        )
        calibrated_values = [
            fit_calibration(found[name], true[k], float(held_out.values[k, 0]), at).predicted
            for k, name in enumerate(held_out.names)
        ]
        calibrated[i] = (np.abs(np.stack(calibrated_values) - true) / scale).mean(0)
    without = (raw.sum(1, keepdims=True) - raw).argmin(0)  # the best for all runs but one
    if not gains_much(raw[-1], raw[without, np.arange(len(names))]):
        return 1.0
    return float(SHARES[calibrated.sum(1).argmin()])
