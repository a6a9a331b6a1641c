"""First-order impulse weights: what a gradient at position k does to a metric, by one adjoint sweep.

Freeze Adam's preconditioner, D = 1 / (sqrt(v_hat) + eps), at the reference run's. Then the optimizer is linear in the
gradients it is fed, and a metric with gradient a at the end changes by a sum over positions, sum_k c_k . g_{o(k)}. With
one D for all positions and decoupled decay this is -sum_k w_k a . D g_{o(k)} with the impulse weights

    w_k = (1 - beta1) sum_{s >= k} lr_s beta1^(s-k) / (1 - beta1^(s+1)) prod_{r > s} (1 - lr_r wd).

Here D is that of the recorded anchor nearest in time, and g that of the reference anchor nearest to position k. The
sweep covers SGD (momentum, dampening, Nesterov, coupled decay; D = 1) as well. What it leaves out is curvature: the
gradient of a batch is taken to be the same whatever was trained on before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.optimizers import Dynamics, clip
from orderscope.engine.units import Units, regrouped_gradients
from orderscope.engine.window import Window
from orderscope.sketching import SketchPlan
from orderscope.store import RunStore
from orderscope.store.names import REFERENCE
from orderscope.task.hyper import group_rates
from orderscope.training import load_run
from orderscope.training.segments import read_state


@dataclass(frozen=True)
class Impulses:
    """A linear functional of the gradients an optimizer is fed, f = offset + sum_k gradients[k] . g_k.

    Args:
        gradients: c_k, [steps, m].
        offset: what start weights and moments contribute.
    """

    gradients: Tensor
    offset: float


def impulses(dynamics: Dynamics, preconditioner: Tensor, final: Tensor, lr: np.ndarray | None = None) -> Impulses:
    """Sweep backwards through the optimizer with its preconditioner frozen.

    Args:
        dynamics: the recorded optimizer: kind, hyper-parameters, start.
        preconditioner: D at each step, [steps, m].
        final: gradient of the metric in the final weights, [m].
        lr: learning rates instead of the recorded ones, [steps, groups].
    """
    gradients = torch.empty_like(preconditioner)
    offset = 0.0
    kind = dynamics.kind
    momentum = dynamics.start.moments.get(kind.moment)
    for part in dynamics.slices:
        on = part.coords
        weights, moment = final[on].clone(), torch.zeros_like(final[on])
        for s in range(dynamics.steps - 1, -1, -1):
            h = dynamics.options(s, part.group)
            h["lr"] = h["lr"] if lr is None else float(lr[s, part.group])
            sign = -1.0 if h.get("maximize") else 1.0
            first = s == 0 and not part.present
            gradient, weights, moment = kind.back(
                h, weights, moment, preconditioner[s, on], count=part.count + s + 1, first=first
            )
            gradients[s, on] = sign * gradient
        offset += float((weights * dynamics.start.theta[on]).sum())
        offset += 0.0 if momentum is None else float((moment * momentum[on]).sum())
    return Impulses(gradients, offset)


def impulse_weights(lr: np.ndarray, *, beta1: float, weight_decay: float = 0.0, count: float = 0.0) -> np.ndarray:
    """w_k of Adam with decoupled decay, [steps]: the closed form in the head of this module.

    Args:
        lr: learning rates, [steps].
        beta1: of Adam, in [0, 1).
        weight_decay: of AdamW, >= 0.
        count: optimizer steps taken before the window.

    Example:
        >>> impulse_weights(np.array([0.1, 0.1]), beta1=0.0)
        array([0.1, 0.1])
    """
    lr = np.asarray(lr, dtype=np.float64)
    steps = np.arange(len(lr))
    kept = np.append(np.cumprod((1 - lr * weight_decay)[::-1])[::-1][1:], 1.0)
    seen = lr / (1 - beta1 ** (steps + count + 1)) * kept
    return (1 - beta1) * np.array([(seen[k:] * beta1 ** (steps[k:] - k)).sum() for k in steps])


def impulse_values(store: RunStore, window: Window, units: Units, final: Tensor, lr: np.ndarray | None) -> np.ndarray:
    """Predicted change of a metric against the reference run, float64 [orders].

    Args:
        store: the run on disk, for the second moments at its anchors.
        window: the same run, ready to be replayed.
        units: what the orders train on, see `units_of`.
        final: gradient of the metric at the end of the reference run times P / m, [m].
        lr: learning rates instead of the recorded ones, as `orderscope.task.hyper.group_rates` reads them.
    """
    orders, steps = units.index.shape
    dynamics, plan = window.dynamics, SketchPlan.read(store)
    at = np.array([a.step for a in plan.anchors])
    preconditioner = _preconditioner(store, window, steps)
    nearest = [int(np.abs(at - t).argmin()) for t in range(steps)]
    sampled = list(window.sample_anchors)
    near_sampled = [sampled[int(np.abs(at[sampled] - t).argmin())] for t in range(steps)] if sampled else nearest

    regrouped = {a: regrouped_gradients(window, units.new, a) for a in set(near_sampled)} if len(units.new) else {}

    def scores(c: Impulses) -> np.ndarray:
        """c_t . g_u at every position and unit, [steps, units + regrouped]."""
        table = np.zeros((steps, window.units + len(units.new)))
        for t in range(steps):
            rows = window.table[:, nearest[t]].to(window.dtype)
            if len(units.new):
                rows = torch.cat([rows, regrouped[near_sampled[t]]])
            table[t] = (clip(dynamics, rows) @ c.gradients[t]).double().numpy()
        return table

    own = impulses(dynamics, preconditioner, final)
    recorded = scores(own)
    reference = recorded[np.arange(steps), np.arange(steps)]
    if lr is None:
        return (recorded[np.arange(steps), units.index] - reference).sum(1)
    values, given = np.empty(orders), group_rates(lr, dynamics.hyper["lr"], orders)
    for rates in np.unique(given, axis=0):
        same = (given == rates).all((1, 2))
        other = impulses(dynamics, preconditioner, final, rates)
        table = scores(other)[np.arange(steps), units.index[same]]
        values[same] = (table - reference).sum(1) + other.offset - own.offset
    return values


def _preconditioner(store: RunStore, window: Window, steps: int) -> Tensor:
    """D at each step, from the second moment of the reference anchor nearest to the step's end, [steps, m]; zero where
    no gradient was seen yet."""
    dynamics, kind = window.dynamics, window.dynamics.kind
    if kind.preconditioner is None:
        return torch.ones(steps, window.coords, dtype=dynamics.start.theta.dtype)
    coordinates = SketchPlan.read(store).coordinates
    at, rows = [], []
    for k, step in enumerate(load_run(store, REFERENCE).boundaries.tolist()):
        moments = read_state(store, REFERENCE, k).moments
        whole = kind.second(moments)
        if whole is None:
            continue
        second = coordinates.take(whole)
        row = torch.zeros_like(second)
        for part in dynamics.slices:
            v, h = second[part.coords], dynamics.options(max(0, step - 1), part.group)
            scale = kind.preconditioner(h, v, max(1.0, part.count + step))
            row[part.coords] = torch.where(v > 0, scale, torch.zeros_like(v))
        at.append(step)
        rows.append(row)
    return torch.stack([rows[int(np.abs(np.array(at) - t - 1).argmin())] for t in range(steps)])
