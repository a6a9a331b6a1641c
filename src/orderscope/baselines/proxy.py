"""The proxy: train an order on a few samples of each batch, and scale the effect to that of whole batches.

A step on a few samples of a batch is a step of training with more noise, so the order acts on it as it does on
training, at a share of the cost: the *effort*, samples used over batch size. What the noise changes in all orders alike
is mapped away by a line through the reference order,

    L(o) ~ L_ref + b (x(o) - x_ref),    b = sum_p (x_p - x_ref) (L_p - L_ref) / sum_p (x_p - x_ref)^2,

x the proxy's metric, p the true runs under other orders, whose proxies are trained too. Which samples of a batch are
used is decided by a rank drawn once for every sample, the lowest of each batch: the same ones wherever a batch stands,
and mostly the same where samples are regrouped, so that the choice acts on compared orders alike.

Small models are trained side by side, many orders in one pass, because at a few samples a step their time goes into
starting operations and not into arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.func import grad
from torch.utils._pytree import tree_map

from orderscope.engine.metrics import evaluated
from orderscope.engine.optimizers import Dynamics, clip, start_states, step
from orderscope.engine.threads import one_thread
from orderscope.errors import OrderscopeError
from orderscope.task import Task
from orderscope.task.functional import frozen_and_buffers, functional_loss
from orderscope.task.per_sample import each_sample
from orderscope.task.rng import seeded
from orderscope.training.loop import start, train
from orderscope.training.setup import RecordedSchedule

EFFORT = 1 / 8
SMALL = 1 << 20  # weights, frozen ones included, up to which orders are trained side by side
AT_ONCE = 4  # batches' worth of samples in one pass: so many times the memory of training's own


@dataclass(frozen=True)
class Proxies:
    """What training on a few samples led to.

    Args:
        values: metrics, name -> float64 [n].
        theta: final weights, [n, P].
    """

    values: dict[str, np.ndarray]
    theta: Tensor


def samples_used(effort: float | None, batch: int) -> int:
    """Samples of a batch at an effort, at least one.

    Args:
        effort: share of each batch; an eighth if None.
        batch: samples of a batch.

    Raises:
        OrderscopeError: the effort is not above 0 and at most 1.

    Example:
        >>> samples_used(0.125, 16), samples_used(0.125, 4), samples_used(None, 32)
        (2, 1, 4)
    """
    share = EFFORT if effort is None else effort
    if not 0 < share <= 1:
        raise OrderscopeError(
            f"effort={effort!r}", "a share of each batch above 0 and at most 1", "for instance effort=0.125"
        )
    return max(1, round(share * batch))


def few_of(orders: np.ndarray, count: int, ranks: np.ndarray) -> np.ndarray:
    """The samples of each batch with the lowest ranks, as they stand in it: [..., batch] -> [..., count].

    Args:
        orders: sample ids, [..., batch].
        count: samples to keep of each batch.
        ranks: of each sample, [samples]; the lowest stay.

    Example:
        >>> few_of(np.array([[0, 1, 2], [2, 3, 1]]), 2, ranks=np.array([3, 0, 2, 1]))
        array([[1, 2],
               [3, 1]])
    """
    lowest = np.sort(np.argsort(ranks[orders], axis=-1, kind="stable")[..., :count], axis=-1)
    return np.take_along_axis(orders, lowest, axis=-1)


def train_few(
    task: Task, dynamics: Dynamics, orders: np.ndarray, names: tuple[str, ...], rates: np.ndarray | None = None
) -> Proxies:
    """Train orders of fewer samples a step than the task's own.

    Args:
        task: what was recorded.
        dynamics: the recorded optimizer, on all coordinates.
        orders: sample ids, [n, steps, count].
        names: metrics to evaluate.
        rates: learning rates instead of the recorded ones, [n, steps, groups].
    """
    theta = None
    if task.mapped and not dynamics.masked and sum(p.numel() for p in task.build_model().parameters()) <= SMALL:
        rows = max(1, AT_ONCE * task.batch_size // orders.shape[2])
        parts = [slice(i, i + rows) for i in range(0, len(orders), rows)]
        try:
            with one_thread():
                each = [_side_by_side(task, dynamics, orders[p], None if rates is None else rates[p]) for p in parts]
            theta = torch.cat(each)
        except RuntimeError:  # a model that vmap cannot take with weights of its own for every order
            theta = None
    if theta is None:
        theta = torch.stack([
            _alone(task, dynamics, order, None if rates is None else rates[i]) for i, order in enumerate(orders)
        ])  # fmt: skip
    return Proxies(evaluated(task)(theta, names), theta)


def _side_by_side(task: Task, dynamics: Dynamics, orders: np.ndarray, rates: np.ndarray | None) -> Tensor:
    """Final weights [n, P], one pass a step for all orders."""
    count, layout = orders.shape[2], task.layout
    model = task.build_model()
    loss, fixed = functional_loss(task, model), frozen_and_buffers(model, layout)
    gradients = each_sample(grad(lambda theta, batch: loss(layout.unflatten(theta), fixed, batch).mean()), (0, 0))
    states = start_states(dynamics, len(orders))
    with seeded(0):
        for t in range(dynamics.steps):
            batch = task.batch(orders[:, t].reshape(-1))
            each = tree_map(lambda leaf: leaf.unflatten(0, (len(orders), count)), batch)
            gradient = clip(dynamics, gradients(states.theta, each))
            lr = None if rates is None else torch.from_numpy(np.ascontiguousarray(rates[:, t])).to(states.theta)
            step(dynamics, states, gradient, t, lr, None)
    return states.theta


def _alone(task: Task, dynamics: Dynamics, order: np.ndarray, rates: np.ndarray | None) -> Tensor:
    """Final weights [P] of one order by the plain loop."""
    with seeded(0):
        session = start(task)
        if rates is not None:
            schedule = RecordedSchedule(session.optimizer, dynamics.hyper | {"lr": rates})
            session = replace(session, scheduler=schedule)
        train(task, session, order, 0, task.steps)
    return task.layout.flatten(session.parameters).cpu()


def slope(proxy: np.ndarray, true: np.ndarray) -> float:
    """Slope of the line through the origin, by least squares; 1 where the proxy does not move.

    Args:
        proxy: differences of the proxy's metric to the reference order's, [runs].
        true: those of the true metric, [runs].

    Example:
        >>> slope(np.array([1.0, -2.0]), np.array([2.0, -4.0]))
        2.0
    """
    square = float(proxy @ proxy)
    return float(proxy @ true) / square if square > 0 else 1.0


def slopes_without_each(proxy: np.ndarray, true: np.ndarray) -> np.ndarray:
    """For each run the `slope` of the other runs, [runs].

    Args:
        proxy: differences of the proxy's metric to the reference order's, [runs].
        true: those of the true metric, [runs].

    Example:
        >>> slopes_without_each(np.array([1.0, 1.0]), np.array([2.0, 4.0]))
        array([4., 2.])
    """
    others = ~np.eye(len(proxy), dtype=bool)
    return np.array([slope(proxy[row], true[row]) for row in others])
