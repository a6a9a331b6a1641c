"""Gradients of single samples and of batches at a fixed point, on the coordinates carried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad
from torch.utils._pytree import tree_map

from orderscope.sketching.coordinates import Coordinates
from orderscope.sketching.taps import LIKE, NO_TAPS, Taps, find_taps
from orderscope.task import Task
from orderscope.task.functional import FunctionalLoss, frozen_and_buffers, functional_loss, sample_loss
from orderscope.task.layout import ParameterLayout
from orderscope.task.per_sample import each_sample, filled, one_after_another
from orderscope.training.state import Weights

MEMORY = 1 << 30  # bytes that the gradients of a micro-batch may take
OUTPUT_COPIES = (
    13  # memory that a sample takes beside its gradients, in sizes of its outputs, measured on language models
)


@dataclass(frozen=True)
class Point:
    """A model held at one state of training.

    Args:
        model: the module, its parameters and buffers set to the state.
        layout: its flat layout.
        loss: `functional_loss` of the task around it.
        task_loss: the task's own, `(model, batch) -> [len(batch)]`.
        mapped: whether torch.func can take the gradients of single samples; plain autograd takes one after the other
            where it cannot.
    """

    model: nn.Module
    layout: ParameterLayout
    loss: FunctionalLoss
    task_loss: Callable[[Any, Any], Tensor]
    mapped: bool = True

    @property
    def params(self) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in zip(self.layout.names, self.layout.of_model(self.model), strict=True)}

    @property
    def rest(self) -> dict[str, Tensor]:
        return frozen_and_buffers(self.model, self.layout)


def point(task: Task, model: nn.Module, state: Weights) -> Point:
    """Set `model` to `state`.

    Args:
        task: what is trained.
        model: a model of the task; changed.
        state: weights and buffers to set it to.
    """
    set_parameters(model, task.layout, state.theta)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in state.buffers:
                buffer.copy_(state.buffers[name])
    return Point(model, task.layout, functional_loss(task, model), task.loss, task.mapped)


def set_parameters(model: nn.Module, layout: ParameterLayout, theta: Tensor) -> None:
    """Write flat weights [P] into the model.

    Args:
        model: is written to.
        layout: which entry of [P] belongs to which weight.
        theta: weights in layout order, [P].
    """
    with torch.no_grad():
        for p, value in zip(layout.of_model(model), layout.unflatten(theta).values(), strict=True):
            p.copy_(value)


def batch_gradient(at: Point, loss: Callable[[Any, Any], Tensor], batch: Any, coordinates: Coordinates) -> Tensor:
    """Gradient of the mean loss of one batch by an ordinary backward pass, [m]: the bits of the training loop.

    Args:
        at: weights, moments and buffers at which it is computed.
        loss: (model, batch) -> losses [batch].
        batch: collated samples.
        coordinates: the carried coordinates, m of the P weights.
    """
    parameters = at.layout.of_model(at.model)
    grads = torch.autograd.grad(loss(at.model, batch).mean(), parameters, allow_unused=True)
    whole = filled(grads, parameters)
    return coordinates.take(at.layout.flatten(whole))


Parts = list[tuple[slice, Tensor]]


def sample_gradients(
    at: Point,
    batch_of: Callable[[Any], Any],
    ids: Any,
    coordinates: Coordinates,
    *,
    micro_batch: int,
    taps: Taps = NO_TAPS,
) -> Iterator[Parts]:
    """Per-sample gradients, a chunk of `micro_batch` samples at a time; the last may be shorter.

    By `vmap` of `grad`, or one after the other where torch.func cannot take the model.

    They come tensor by tensor, as pairs of a place in [m] and the entries there, [chunk, entries]: joining them takes
    as long as computing them, and whoever keeps them copies them anyway, see `join`.

    Args:
        at: weights, moments and buffers at which gradients are taken.
        batch_of: sample ids -> collated batch.
        ids: samples, [n].
        coordinates: the carried coordinates, m of the P weights.
        micro_batch: samples of one forward pass; changes the rounding alone.
        taps: layers whose weights' gradients are not formed.
    """
    if not at.mapped:
        parameters = at.layout.of_model(at.model)
        for chunk in chunks(ids, micro_batch):
            each = one_after_another(lambda sample: at.task_loss(at.model, sample).sum(), parameters, batch_of(chunk))
            yield carried(at.layout, coordinates, dict(zip(at.layout.names, each, strict=True)))
        return
    loss = sample_loss(at.loss)
    free, held = taps.parted(at.params)

    def value(free: Any, offsets: Any, rest: Any, sample: Any) -> tuple[Tensor, dict[str, Tensor]]:
        with taps.reading(offsets) as inputs:
            return loss(free | held, rest, sample), inputs

    def one(free: Any, offsets: Any, rest: Any, sample: Any) -> Any:
        (gradients, slopes), inputs = grad(value, argnums=(0, 1), has_aux=True)(free, offsets, rest, sample)
        return gradients, slopes, inputs

    many = each_sample(one, (None, None, None, 0))
    rest = at.rest
    for chunk in chunks(ids, micro_batch):
        batch = batch_of(chunk)
        fitted = taps.fitted(lambda: loss(at.params, rest, first_sample(batch)))  # noqa: B023
        gradients, slopes, inputs = many(free, fitted.offsets, rest, batch)
        yield carried(at.layout, coordinates, gradients) + fitted.entries(at.layout, coordinates, inputs, slopes)


def proved_taps(at: Point, batch: Any, coordinates: Coordinates) -> Taps:
    """The layers whose weights' gradients need not be formed.

    A weight may be used beside its layers, by the loss or by a model that calls functions: so the first sample's
    gradient is worked out in both ways, and where they differ all are formed.

    Args:
        at: weights, moments and buffers at which it is computed.
        batch: collated samples.
        coordinates: the carried coordinates, m of the P weights.
    """
    found = find_taps(at.model, at.layout, coordinates) if at.mapped else NO_TAPS
    if not found.places:
        return NO_TAPS
    rows = torch.zeros(2, coordinates.carried, dtype=at.layout.dtype)
    try:
        for row, taps in zip(rows, (found, NO_TAPS), strict=True):
            for parts in sample_gradients(at, lambda _: batch, [0], coordinates, micro_batch=1, taps=taps):
                join(parts, row[None])
    except (RuntimeError, KeyError):  # a foreign forward pass, whose layers are called in ways not foreseen
        return NO_TAPS
    read, formed = rows
    if float((read - formed).norm()) > LIKE * float(formed.norm()):
        return NO_TAPS
    return found.fitted(lambda: sample_loss(at.loss)(at.params, at.rest, first_sample(batch)))


def first_sample(batch: Any) -> Any:
    return tree_map(lambda leaf: leaf[0], batch)


def carried(layout: ParameterLayout, coordinates: Coordinates, tensors: Mapping[str, Tensor]) -> Parts:
    """The carried entries of the tensors given, [..., *shape], as pairs of a place in [m] and [..., entries].

    Args:
        layout: which entry of [P] belongs to which weight.
        coordinates: the carried coordinates, m of the P weights.
        tensors: by parameter name, [..., *shape]; those that are missing are passed over.
    """
    parts = []
    places = coordinates.of_tensors(layout.sizes)
    for name, shape, (place, entries) in zip(layout.names, layout.shapes, places, strict=True):
        if name not in tensors:
            continue
        tensor = tensors[name]
        flat = tensor.reshape(*tensor.shape[: tensor.dim() - len(shape)], -1)
        parts.append((place, flat if entries is None else flat.index_select(-1, entries.to(flat.device))))
    return parts


def join(parts: Parts, out: Tensor) -> Tensor:
    """Put parts of some vectors together, rounding to the type of `out`.

    Args:
        parts: places among the m coordinates and the values there, [..., places].
        out: [..., m], written to.
    """
    for place, values in parts:
        out[..., place].copy_(values)
    return out


def micro_batch_size(size: int, memory: int = MEMORY, *, outputs: int = 0) -> int:
    """Samples at once, so that their full gradients (and as much again while they are gathered), and what comes of the
    model's outputs, each fit `memory` bytes.

    Args:
        size: weights that are trained.
        memory: bytes that gradients may take at once.
        outputs: numbers that the model returns for one sample; of a language model tokens times vocabulary.
    """
    return int(min(128, max(1, memory // (4 * max(3 * size, OUTPUT_COPIES * outputs)))))


def gpu_share(device: torch.device) -> int:
    """Bytes of a GPU that samples may take at once, 0 of a CPU: a sixteenth of all it has, not of what is free, so that
    a sketch that is resumed beside other work cuts its samples alike."""
    return torch.cuda.get_device_properties(device).total_memory // 16 if device.type == "cuda" else 0


def chunks(ids: Any, length: int) -> Iterator[np.ndarray]:
    """Some ids at a time, int64 [at most length].

    Args:
        ids: [n].
        length: how many at a time.
    """
    ids = np.asarray(ids)
    for start in range(0, len(ids), length):
        yield ids[start : start + length]
