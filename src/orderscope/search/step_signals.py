"""Numbers by which recorded steps are sorted, one for each step of the reference order, float64 [steps]."""

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
    """First-order change of the metric by a step on each batch, -a . D g_u per unit of learning rate, [steps]: a is the
    metric's gradient at the end, D the frozen preconditioner, and g_u the batch's mean gradient over the anchors. The
    lower, the better the batch.

    Source: Pruthi et al., "Estimating training data influence by tracing gradient descent", 2020.

    Args:
        window: the run, ready to be replayed.
        expansion: expansion of the metric around the end of the reference run.
    """
    mean, scale = _mean_gradients(window)
    return -(mean @ (scale * expansion.gradient)).double().numpy()


def impulse_order(window: Window, expansion: Expansion) -> np.ndarray:
    """The order of steps that minimises the metric to first order in the learning rate, int64 [steps].

    With the preconditioner D frozen and without curvature, a batch at position k changes the metric by -w_k a . D g_u,
    where a is the metric's gradient and w_k the optimizer's impulse weight of the position. The best order matches the
    largest a . D g_u with the largest w_k: a sort.

    Args:
        window: the run, ready to be replayed.
        expansion: expansion of the metric around the end of the reference run.
    """
    _, scale = _mean_gradients(window)
    responses = impulses(window.dynamics, scale.expand(window.steps, -1), expansion.gradient).gradients
    weights = -(responses @ (scale * expansion.gradient)).double().numpy()
    order = np.empty(window.steps, dtype=np.int64)
    order[np.argsort(-weights, kind="stable")] = np.argsort(influences(window, expansion), kind="stable")
    return order


def brackets(window: Window, expansion: Expansion) -> np.ndarray:
    """Change of the metric by training on u right before v, minus that of v right before u, float64 [steps, steps].

    Two steps in sequence differ from the same two reversed by the Lie bracket of their flows; with curvature C and
    preconditioner D, in units of the squared learning rate, a . D (C_v D g_u - C_u D g_v). Negative: u first.

    Source: the Lie-bracket tournament of data sources, arXiv 2606.24993.

    Args:
        window: the run, ready to be replayed.
        expansion: expansion of the metric around the end of the reference run.
    """
    mean, scale = _mean_gradients(window)
    moved = mean * scale
    pushed = scale * expansion.gradient
    bent = torch.stack([pushed @ curvature for curvature in window.curvatures])  # [groups, m]
    response = (window.fractions.to(moved.dtype) @ bent @ moved.T).double().numpy()  # [v, u]: a D C_v D g_u
    return response.T - response


def borda(duels: np.ndarray) -> np.ndarray:
    """For each item the number of items that it should come before, [n].

    Args:
        duels: antisymmetric comparisons, [n, n]; negative where the row should come before the column.

    Example:
        >>> borda(np.array([[0, -1, -1], [1, 0, 2], [1, -2, 0]]))
        array([2, 0, 1])
    """
    return (duels < 0).sum(1)


def _mean_gradients(window: Window) -> tuple[Tensor, Tensor]:
    """Batch gradients averaged over the shared anchors, [steps, m], and the preconditioner computed from them, [m]."""
    mean = window.table[:, : window.anchors.shared].to(window.dtype).mean(1)
    scaled = bool(window.dynamics.kind.seconds)
    return mean, 1 / (mean.pow(2).mean(0).sqrt() + 1e-8) if scaled else torch.ones_like(window.final)
