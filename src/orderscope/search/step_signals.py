"""Numbers by which recorded steps are sorted, one a step of the reference order, float64 [steps]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from orderscope.baselines.impulse import impulses
from orderscope.engine import Expansion, Window


def gradient_norms(window: Window) -> np.ndarray:
    """Norm of each batch's gradient at the first anchor."""
    return (window.table[:, 0].double().norm(dim=1) * window.dynamics.weight**0.5).numpy()


def influences(window: Window, expansion: Expansion) -> np.ndarray:
    """How much a step along a batch raises the metric, a . D g_u: a the metric's gradient at the end, D the frozen
    preconditioner and g_u the batch's mean gradient over the anchors. The less, the better the batch.

    Source: Pruthi et al., "Estimating training data influence by tracing gradient descent", 2020.

    Args:
        window: the run, ready to be replayed.
        expansion: of the metric around the end of the reference run.
    """
    mean, scale = _mean_gradients(window)
    return -(mean @ (scale * expansion.gradient)).double().numpy()


def impulse_order(window: Window, expansion: Expansion) -> np.ndarray:
    """The steps in impulse-weight order, int64 [steps].

    With the preconditioner D frozen and curvature left out, a batch at position k changes the metric by -w_k a . D g_u,
    a the metric's gradient. So the largest a . D g_u goes where w_k is largest: a sort.

    Args:
        window: the run, ready to be replayed.
        expansion: of the metric around the end of the reference run.
    """
    _, scale = _mean_gradients(window)
    found = impulses(window.dynamics, scale.expand(window.steps, -1), expansion.gradient).gradients
    weights = -(found @ (scale * expansion.gradient)).double().numpy()
    order = np.empty(window.steps, dtype=np.int64)
    order[np.argsort(-weights, kind="stable")] = np.argsort(influences(window, expansion), kind="stable")
    return order


def brackets(window: Window, expansion: Expansion) -> np.ndarray:
    """What training on u right before v does to the metric, less that the other way round, float64 [steps, steps].

    Two steps in sequence differ from the same two reversed by the Lie bracket of their flows; with curvature C and
    preconditioner D, in units of the squared learning rate, a . D (C_v D g_u - C_u D g_v). Negative: u first.

    Source: the Lie-bracket tournament of data sources, arXiv 2606.24993.

    Args:
        window: the run, ready to be replayed.
        expansion: of the metric around the end of the reference run.
    """
    mean, scale = _mean_gradients(window)
    moved = mean * scale
    pushed = scale * expansion.gradient
    bent = torch.stack([pushed @ curvature for curvature in window.curvatures])  # [groups, m]
    response = (window.fractions.to(moved.dtype) @ bent @ moved.T).double().numpy()  # [v, u]: a D C_v D g_u
    return response.T - response


def borda(duels: np.ndarray) -> np.ndarray:
    """How many others each one should come before, from antisymmetric duels [n, n] in which negative wins, [n].

    Example:
        >>> borda(np.array([[0, -1, -1], [1, 0, 2], [1, -2, 0]]))
        array([2, 0, 1])
    """
    return (duels < 0).sum(1)


def _mean_gradients(window: Window) -> tuple[Tensor, Tensor]:
    """Batch gradients averaged over the shared anchors, [steps, m], and the preconditioner they make, [m]."""
    mean = window.table[:, : window.anchors.shared].to(window.dtype).mean(1)
    scaled = bool(window.dynamics.kind.seconds)
    return mean, 1 / (mean.pow(2).mean(0).sqrt() + 1e-8) if scaled else torch.ones_like(window.final)
