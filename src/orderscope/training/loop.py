"""The training loop, the only one: retraining and recording run the same lines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from orderscope.task import Task
from orderscope.task.layout import ParameterLayout


@dataclass(frozen=True)
class Session:
    """A model in training with its optimizer and scheduler.

    Args:
        model: that is trained.
        optimizer: over its parameters.
        scheduler: of the learning rate, or None.
        layout: which entry of [P] belongs to which weight.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    layout: ParameterLayout

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The model's parameters in layout order."""
        return self.layout.of_model(self.model)


class Watcher(Protocol):
    """Sees each step from inside."""

    def gradient(self, step: int, losses: Tensor) -> None:
        """Called after backward, when `.grad` is the mean gradient, not yet clipped.

        Args:
            step: position in the order.
            losses: of the batch, [batch].
        """

    def norm(self, step: int, value: Tensor | None) -> None:
        """Called after clipping, before the optimizer moves.

        Args:
            step: position in the order.
            value: norm of the gradient before clipping; None where nothing is clipped.
        """


class Together:
    """Several watchers of one training."""

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def gradient(self, step: int, losses: Tensor) -> None:
        for watcher in self._watchers:
            watcher.gradient(step, losses)

    def norm(self, step: int, value: Tensor | None) -> None:
        for watcher in self._watchers:
            watcher.norm(step, value)


def start(task: Task) -> Session:
    """The state a window starts in: fresh model and scheduler, optimizer with the task's `optimizer_state`."""
    model = task.build_model()
    optimizer = task.build_optimizer(model)
    return Session(model, optimizer, task.build_scheduler(optimizer), task.layout)


def train(
    task: Task, session: Session, order: np.ndarray, first: int, last: int, watcher: Watcher | None = None
) -> None:
    """Steps `first` .. `last` - 1 of `order`, exactly as the plain loop does them:

    zero_grad, mean of the per-sample losses backward, clip_grad_norm_ over all parameters, optimizer, scheduler.

    Args:
        task: what is trained.
        session: model, optimizer and scheduler; changed.
        order: sample ids, [steps, batch].
        first: step to begin with.
        last: step to end before.
        watcher: sees each step from inside.
    """
    model, optimizer, scheduler = session.model, session.optimizer, session.scheduler
    for step in range(first, last):
        batch = task.batch(order[step])
        optimizer.zero_grad()
        losses = task.loss(model, batch)
        losses.mean().backward()
        if watcher is not None:
            watcher.gradient(step, losses.detach())
        norm = None
        if task.max_grad_norm:
            norm = nn.utils.clip_grad_norm_(model.parameters(), task.max_grad_norm)
        if watcher is not None:
            watcher.norm(step, norm)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
