"""The oracle: actually train with an order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orderscope.orders.checks import check_orders
from orderscope.task import Task, require_task
from orderscope.task.hyper import group_rates, scheduled
from orderscope.task.rng import seeded
from orderscope.training.loop import start, train
from orderscope.training.setup import RecordedSchedule


@dataclass(frozen=True)
class Truth:
    """What n orders really lead to.

    Args:
        metrics: name -> float64 [n]. Not finite where an order diverges.
        losses: name -> per-sample losses [n, rows] of every metric that is a data set.
        parameters: final weights in layout order, [n, P], or None if they were not asked for.
    """

    metrics: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]
    parameters: Tensor | None = None


def retrain(
    task: Task,
    orders: Any,
    *,
    keep_parameters: bool = False,
    allow_other_samples: bool = False,
    lr: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> Truth:
    """Train the task once per order, with the bits of a plain torch loop.

    Args:
        task: what is trained.
        orders: [n, steps, batch], or one order [steps, batch] (n = 1).
        keep_parameters: also return the final weights.
        allow_other_samples: accept orders that are not rearrangements of `task.order`.
        lr: learning rates instead of the task's own, as `Simulator.predict` takes them.
        progress: called as `progress(done, n)`, at the beginning and after each run.

    Raises:
        OrderscopeError: for an order or rates that do not fit the task.
    """
    require_task(task)
    checked = check_orders(orders, task.order, samples=task.samples, allow_other_samples=allow_other_samples)
    evaluations, finals = [], []
    own = {} if lr is None else own_hyper(task)
    rates = None if lr is None else group_rates(lr, own["lr"], len(checked))
    if progress is not None:
        progress(0, len(checked))
    for done, order in enumerate(checked, start=1):
        with seeded(0):
            session = start(task)
            if rates is not None:
                hyper = own | {"lr": rates[done - 1]}
                session = replace(session, scheduler=RecordedSchedule(session.optimizer, hyper))
            train(task, session, order, 0, task.steps)
            evaluations.append(task.evaluation(session.model))
        if keep_parameters:
            finals.append(task.layout.flatten(session.parameters))
        if progress is not None:
            progress(done, len(checked))
    return Truth(
        metrics={name: np.array([e.metrics[name] for e in evaluations], dtype=np.float64) for name in task.metrics},
        losses={n: torch.stack([e.losses[n] for e in evaluations]).cpu().numpy() for n in evaluations[0].losses},
        parameters=torch.stack(finals) if keep_parameters else None,
    )


def own_hyper(task: Task) -> dict[str, np.ndarray]:
    """The hyper-parameters of the task's own steps, name -> [steps, groups]."""
    with seeded(0):
        optimizer = task.build_optimizer(task.build_model())
        return scheduled(optimizer, task.build_scheduler(optimizer), task.steps)
