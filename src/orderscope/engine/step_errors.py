"""Errors of predicted gradients step by step, from leave-one-out predictions of the recorded runs.

At position t a run trained on recorded batch u in state theta_t; both are known, as is its gradient g_t there. Without
the run's own anchors the gradient is predicted as

    i_t = sum_k w_k g_u(theta_k)                interpolation,
    c_t = C_u (theta_t - sum_k w_k theta_k)     curvature,

and the defect e_t = i_t + c_t - g_t is what a replay adds to its error at t. Swept backwards between the replay and the
run (`orderscope.engine.secant`) the metric's slope tells what that does in the end, l_t . e_t, and the sum over t is
the error of the metric. The slope is the mean of those where the replay ends and where the run truly ended: by the
trapezoidal rule the sum is exact where the metric is quadratic and predicted gradients are affine. Of a run that also
trained on batches that were not recorded the trajectory is not known, and other optimizers have no secants there: the
sweep is then that around the replay alone (`orderscope.engine.adjoint`), right to first order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.adjoint import Slope, sensitivity
from orderscope.engine.batches import Batches
from orderscope.engine.held_out import HeldOut
from orderscope.engine.secant import KINDS, secant_sweep
from orderscope.engine.window import Window
from orderscope_kernels.shapes import Int

AT_ONCE = 32  # steps whose gradients are in memory at once


@dataclass(frozen=True)
class StepErrors:
    """One left-out run, at the steps whose batches were recorded.

    Args:
        run: its name.
        steps: positions, int64 [n], ascending.
        gradient: |e_t| / |g_t| on the carried coordinates, float64 [n].
        interpolation: |i_t - g_t| / |g_t|, float64 [n].
        cosine: of the curvature's part with what interpolation misses, c_t and g_t - i_t, float64 [n]; not a number
            where there is no curvature's part.
        effect: l_t . e_t, error of the metric, in its unit, float64 [n].
    """

    run: str
    steps: np.ndarray
    gradient: np.ndarray
    interpolation: np.ndarray
    cosine: np.ndarray
    effect: np.ndarray


def mean_slope(held_out: HeldOut, name: str, run: str) -> Slope:
    """Value of a held-out loss at final weights, and the mean of its gradients there and where a run truly ended.

    Args:
        held_out: what is known of held-out losses.
        name: of the loss.
        run: name of a true run. Where its end is not known, the gradient is that at the weights alone.
    """
    i = held_out.names.index(name)
    ended = held_out.slopes[i, held_out.runs.index(run)] if run in held_out.runs else None

    def at(theta: Tensor) -> tuple[float, Tensor]:
        value, gradient = held_out.slope(theta, name)
        return value, gradient if ended is None else (gradient + ended.to(gradient.dtype)) / 2

    return at


def step_errors(window: Window, slope: Slope, run: str, order: Int[np.ndarray, "steps batch"]) -> StepErrors:
    """Errors of the predicted gradients of one recorded run under another order than the reference's.

    Args:
        window: the run, ready to be replayed.
        slope: value and gradient of the metric at final weights, the gradient on the carried coordinates; such as
            `mean_slope`.
        run: its name among the window's anchors.
        order: the run's, int64 [steps, batch].
    """
    left = [name == run for name in window.anchor_runs]
    allowed = ~torch.tensor(left)
    places, units, columns = _trained_on(window, left, order)
    if not places:
        return StepErrors(run, np.zeros(0, dtype=np.int64), *np.zeros((4, 0)))
    without = replace(window, known=window.known & allowed)
    if len(places) == window.steps and window.dynamics.optimizer in KINDS:
        true = torch.stack([window.gradients(unit)[column] for unit, column in zip(units, columns, strict=True)])
        adjoint = secant_sweep(without, order, true, slope)
    else:
        adjoint = sensitivity(without, None, order, slope, rank=0, places=window.steps).rows[:, 0]
    parts = []
    for at in range(0, len(places), AT_ONCE):
        some = slice(at, at + AT_ONCE)
        parts.append(_errors(window, allowed, adjoint[places[some]], units[some], columns[some]))
    return StepErrors(run, np.array(places, dtype=np.int64), *np.concatenate(parts, axis=1))


def _trained_on(window: Window, left: list[bool], order: np.ndarray) -> tuple[list[int], list[int], list[int]]:
    """Positions at which a run trained on a recorded batch, the unit there, and the anchor that it left behind.

    A run has as many columns of anchors as it may have trained on one batch; they are filled in the order of steps.
    """
    own = [k for k in range(window.anchors.shared, window.anchors.count) if left[k]]
    seen: dict[int, int] = {}
    found = []
    for t, unit in enumerate(Batches(window.order).index(order[None])[0][0].tolist()):
        times = seen.get(unit, 0)
        if unit < window.units and times < len(own) and bool(window.known[unit, own[times]]):
            found.append((t, unit, own[times]))
            seen[unit] = times + 1
    return [t for t, _, _ in found], [unit for _, unit, _ in found], [column for _, _, column in found]


def _errors(window: Window, allowed: Tensor, adjoint: Tensor, units: list[int], columns: list[int]) -> np.ndarray:
    """|e| / |g|, |i - g| / |g|, cosine and effect of some steps, [4, n]."""
    anchors, unit = window.anchors, torch.tensor(units)
    tables = torch.stack([window.gradients(u) for u in units])  # [n, anchors, m]
    rows, own = torch.arange(len(units)), torch.tensor(columns)
    theta = anchors.start + anchors.spread[anchors.entries(unit)[rows, own]].to(window.dtype)
    true = tables[rows, own]
    weights, remainder, _ = anchors.weights(theta, unit, window.known[unit] & allowed)
    missing = true - torch.einsum("nk,nkm->nm", weights.to(window.dtype), tables)
    bent = torch.zeros_like(missing)
    for share, curvature in zip(window.fractions[unit].T, window.curvatures, strict=True):
        bent += share[:, None] * (remainder @ curvature)
    norms = [x.double().norm(dim=1) for x in (true, missing, bent, missing - bent)]
    cosine = (bent.double() * missing.double()).sum(1) / (norms[1] * norms[2])
    effect = (adjoint.double() * (bent - missing).double()).sum(1)
    return torch.stack([norms[3] / norms[0], norms[1] / norms[0], cosine, effect]).numpy()
