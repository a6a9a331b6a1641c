"""Where the predicted gradients go wrong: each recorded run step by step, without what it left behind.

At position t a run trained on recorded batch u in state theta_t, both known, as is its gradient g_t there. Without the
run's own anchors the gradient is predicted as

    i_t = sum_k w_k g_u(theta_k)          interpolation,
    c_t = C_u (theta_t - sum_k w_k theta_k)    curvature,

and the defect e_t = i_t + c_t - g_t is what a replay adds to its error at t. With the adjoint l_t of a metric
(`orderscope.engine.adjoint`) the sum of l_t . e_t is, to first order, the error of the metric.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.adjoint import Slope, sensitivity
from orderscope.engine.batches import Batches
from orderscope.engine.held_out import Expansion
from orderscope.engine.window import Window

AT_ONCE = 32  # steps


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
        effect: l_t . e_t, error of the metric to first order, in its unit, float64 [n].
    """

    run: str
    steps: np.ndarray
    gradient: np.ndarray
    interpolation: np.ndarray
    cosine: np.ndarray
    effect: np.ndarray


def step_errors(window: Window, expansion: Expansion, slope: Slope, run: str, order: np.ndarray) -> StepErrors:
    """Of one recorded run under another order than the reference's.

    Args:
        window: the run, ready to be replayed.
        expansion: of the metric, as for `orderscope.engine.adjoint.sensitivity`.
        slope: value and gradient of the metric at final weights [m].
        run: its name among the window's anchors.
        order: the run's, int64 [steps, batch].
    """
    left = tuple(name != run for name in window.anchor_runs)
    allowed = torch.tensor(left)
    columns = [k for k in range(window.anchors.shared, window.anchors.count) if not left[k]]
    units = Batches(window.order).index(order[None])[0][0]
    seen: dict[int, int] = {}
    places, found, of = [], [], []
    for t, unit in enumerate(units.tolist()):
        if unit < window.units and seen.get(unit, 0) < len(columns):
            places.append(t)
            found.append(unit)
            of.append(columns[seen.get(unit, 0)])
            seen[unit] = seen.get(unit, 0) + 1
    without = replace(window, known=window.known & allowed)
    adjoint = sensitivity(without, expansion, order, slope, rank=0, places=window.steps).rows[:, 0]
    parts = [
        _errors(window, allowed, adjoint[places[at : at + AT_ONCE]], found[at : at + AT_ONCE], of[at : at + AT_ONCE])
        for at in range(0, len(places), AT_ONCE)
    ]
    columns_of = np.concatenate(parts, axis=1) if parts else np.zeros((4, 0))
    return StepErrors(run, np.array(places, dtype=np.int64), *columns_of)


def _errors(window: Window, allowed: Tensor, adjoint: Tensor, units: list[int], columns: list[int]) -> np.ndarray:
    """|e| / |g|, |i - g| / |g|, cosine and effect of some steps, [4, n]."""
    anchors, unit = window.anchors, torch.tensor(units)
    tables = torch.stack([window.gradients(u) for u in units])  # [n, anchors, m]
    own = torch.tensor(columns)
    entries = anchors.entries(unit)[torch.arange(len(units)), own]
    theta = anchors.start + anchors.spread[entries].to(window.dtype)
    true = tables[torch.arange(len(units)), own]
    weights, remainder, _ = anchors.weights(theta, unit, window.known[unit] & allowed)
    missing = true - torch.einsum("nk,nkm->nm", weights.to(window.dtype), tables)
    bent = torch.zeros_like(missing)
    for share, curvature in zip(window.fractions[unit].T, window.curvatures, strict=True):
        bent += share[:, None] * (remainder @ curvature)
    norms = [x.double().norm(dim=1) for x in (true, missing, bent, missing - bent)]
    cosine = (bent.double() * missing.double()).sum(1) / (norms[1] * norms[2])
    effect = (adjoint.double() * (bent - missing).double()).sum(1)
    return torch.stack([norms[3] / norms[0], norms[1] / norms[0], cosine, effect]).numpy()
