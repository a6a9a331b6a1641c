"""Numbers by which recorded steps are sorted, one a step of the reference order, float64 [steps]."""

from __future__ import annotations

import numpy as np
import torch

from orderscope.engine import Window
from orderscope.engine.impulse import impulses
from orderscope.engine.metrics import Expansion
from orderscope.record import load_run
from orderscope.simulator import Simulator
from orderscope.sketch import REFERENCE


def start_losses(sim: Simulator) -> np.ndarray:
    """Mean loss of each batch on the starting weights; without the task, as recorded just before its own step."""
    if sim.task is None:
        return load_run(sim.store, REFERENCE).loss.double().mean(1).numpy()
    model = sim.task.build_model()
    with torch.no_grad():
        return np.array([float(sim.task.loss(model, sim.task.batch(ids)).double().mean()) for ids in sim.order])


def gradient_norms(window: Window) -> np.ndarray:
    """Norm of each batch's gradient at the first anchor."""
    return (window.table[:, 0].norm(dim=1).double() * window.dynamics.weight**0.5).numpy()


def impulse_order(window: Window, expansion: Expansion) -> np.ndarray:
    """The steps in impulse-weight order, int64 [steps].

    With the preconditioner D frozen and curvature left out, a batch at position k changes the metric by -w_k a . D g_u,
    a the metric's gradient. So the largest a . D g_u goes where w_k is largest: a sort.
    """
    mean = window.table[:, : len(window.anchors.shared)].mean(1)
    adam = window.dynamics.optimizer != "SGD"
    scale = 1 / (mean.pow(2).mean(0).sqrt() + 1e-8) if adam else torch.ones_like(window.final)
    found = impulses(window.dynamics, scale.expand(window.steps, -1), expansion.gradient).gradients
    pushed = scale * expansion.gradient
    weights = -(found @ pushed).double().numpy()
    effects = (mean @ pushed).double().numpy()
    order = np.empty(window.steps, dtype=np.int64)
    order[np.argsort(-weights, kind="stable")] = np.argsort(-effects, kind="stable")
    return order
