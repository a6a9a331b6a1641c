"""Gradients of single samples and of batches at a fixed point, on the coordinates carried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad

from orderscope.functional import FunctionalLoss, frozen_and_buffers, functional_loss, sample_loss
from orderscope.layout import ParameterLayout
from orderscope.per_sample import each_sample
from orderscope.record.state import TrainingState
from orderscope.sketch.coordinates import Coordinates
from orderscope.task import Task

MEMORY = 1 << 30


@dataclass(frozen=True)
class Point:
    """A model held at one state of training.

    Args:
        model: the module, its parameters and buffers set to the state.
        layout: its flat layout.
        loss: `functional_loss` of the task around it.
    """

    model: nn.Module
    layout: ParameterLayout
    loss: FunctionalLoss

    @property
    def params(self) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in zip(self.layout.names, self.layout.of_model(self.model), strict=True)}

    @property
    def rest(self) -> dict[str, Tensor]:
        return frozen_and_buffers(self.model, self.layout)


def point(task: Task, model: nn.Module, state: TrainingState) -> Point:
    """Set `model` to `state`."""
    set_parameters(model, task.layout, state.theta)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in state.buffers:
                buffer.copy_(state.buffers[name])
    return Point(model, task.layout, functional_loss(task, model))


def set_parameters(model: nn.Module, layout: ParameterLayout, theta: Tensor) -> None:
    """Write flat weights [P] into the model."""
    with torch.no_grad():
        for p, value in zip(layout.of_model(model), layout.unflatten(theta).values(), strict=True):
            p.copy_(value)


def batch_gradient(at: Point, loss: Callable[[Any, Any], Tensor], batch: Any, coordinates: Coordinates) -> Tensor:
    """Gradient of the mean loss of one batch by an ordinary backward pass, [m]: the bits of the training loop."""
    parameters = at.layout.of_model(at.model)
    grads = torch.autograd.grad(loss(at.model, batch).mean(), parameters, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)]
    return coordinates.take(at.layout.flatten(filled))


def sample_gradients(
    at: Point, batch_of: Callable[[Any], Any], ids: Any, coordinates: Coordinates, *, micro_batch: int
) -> Iterator[Tensor]:
    """Per-sample gradients by `vmap` of `grad`, a chunk [micro_batch, m] at a time; the last may be shorter.

    A chunk is overwritten by the next: fresh memory of this size costs more than the gradients of a small model.

    Args:
        batch_of: sample ids -> collated batch.
    """
    one = each_sample(grad(sample_loss(at.loss)), (None, None, 0))
    params, rest = at.params, at.rest
    whole = torch.empty(0)
    for chunk in chunks(ids, micro_batch):
        rows = one(params, rest, batch_of(chunk))
        parts = [rows[n].reshape(len(chunk), -1) for n in at.layout.names]
        if not len(whole):
            whole = parts[0].new_empty(len(chunk), at.layout.size)
        yield coordinates.take(torch.cat(parts, dim=1, out=whole[: len(chunk)]))


def micro_batch_size(size: int, memory: int = MEMORY) -> int:
    """Samples at once, so that their full gradients (and as much again while they are gathered) fit `memory` bytes."""
    return int(min(128, max(1, memory // (size * 4 * 3))))


def chunks(ids: Any, length: int) -> Iterator[np.ndarray]:
    ids = np.asarray(ids)
    for start in range(0, len(ids), length):
        yield ids[start : start + length]
