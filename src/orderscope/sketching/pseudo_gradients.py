"""Sampled Gauss-Newton curvature: pseudo-gradients whose outer products have the Gauss-Newton matrix as their mean.

For a sample with outputs z(theta), J = dz/dtheta and L the Hessian of the loss in z,

    ghat = J^T L^(1/2) e,    E[e e^T] = 1    =>    E[ghat ghat^T] = J^T L J.

With softmax cross-entropy this is the gradient at a label drawn from the model's own softmax, token by token.
Source: Schraudolph, "Fast curvature matrix-vector products", 2002; Martens, "New insights and perspectives on the
natural gradient method", 2020, for the sampled form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from orderscope.sketching.coordinates import Coordinates
from orderscope.sketching.gradients import Parts, Point, carried, chunks, first_sample, join
from orderscope.sketching.outputs import (
    OutputSplit,
    batch_of_one,
    draw_output_gradient,
    kept_outputs,
    loss_of_outputs,
    outputs_of,
    wide,
)
from orderscope.sketching.taps import NO_TAPS, Taps
from orderscope.task.per_sample import each_sample, filled

BLOCK = 64  # samples that share a random stream: draws do not depend on how the work is split


def pseudo_gradients(
    at: Point,
    split: OutputSplit,
    batch_of: Any,
    ids: Any,
    coordinates: Coordinates,
    *,
    draws: int,
    seed: int,
    micro_batch: int,
    dtype: torch.dtype | None = None,
    taps: Taps = NO_TAPS,
) -> Tensor:
    """`draws` pseudo-gradients of each sample, [len(ids), draws, m].

    The draws of one sample are stratified: for each of its outputs the uniform numbers are one number shifted by
    multiples of 1/draws, so together they cover the softmax more evenly than independent ones. Which draw gets which
    multiple is random for each output: with one sequence for all, products of different outputs would not average out,
    however many draws. Each draw alone has the right distribution.
    Source: McKay, Beckman and Conover, "A comparison of three methods for selecting values of input variables", 1979.

    Args:
        at: weights, moments and buffers at which gradients are taken.
        split: the loss as a function of the model's outputs.
        batch_of: ids -> collated batch.
        ids: samples, [n].
        coordinates: the carried coordinates, m of the P weights.
        draws: pseudo-gradients of each sample.
        seed: numbers depend on it and on the position of a sample in `ids`, not on `micro_batch`.
        micro_batch: samples of one forward pass; changes the rounding alone.
        dtype: of the result; the parameters' if not given.
        taps: layers whose weights' gradients are not formed.
    """
    pseudo = _mapped(at, split, taps) if at.mapped else _one_after_another(at, split)
    like, shapes, noise = next(iter(at.params.values())), _Shapes(at, split), _Noise(draws, seed)
    step = max(1, micro_batch // draws)
    drawn = torch.empty(len(ids), draws, coordinates.carried, dtype=like.dtype if dtype is None else dtype)
    for start, chunk in zip(range(0, len(ids), step), chunks(ids, step), strict=True):
        for places, batch in alike([batch_of([i]) for i in chunk]):
            numbers = noise.of(start + places, replace(split, shape=shapes.of(batch)).noise_shape).to(like)
            together = len(places) == len(chunk)  # in their sequence, so that they are written in place
            rows = drawn[start : start + len(chunk)] if together else drawn.new_empty(len(places), *drawn.shape[1:])
            for draw, parts in pseudo(batch, numbers, coordinates):
                join(parts, rows if draw is None else rows[:, draw])
            if not together:
                drawn[start + torch.from_numpy(places)] = rows
    return drawn


Drawn = Iterator[tuple[int | None, Parts]]  # the entries of all draws, or of one


def _mapped(at: Point, split: OutputSplit, taps: Taps) -> Callable[[Any, Tensor, Coordinates], Drawn]:
    """Pseudo-gradients of a batch by `vmap` over its samples and the draws."""
    params, rest = at.params, at.rest
    free, held = taps.parted(params)

    def rows(offsets: Any, sample: Any, noise: Tensor) -> Any:
        tensors: list[bool] = []  # a cache of keys and values is a leaf too, which vjp cannot return

        def outputs(p: Any, offsets: Any) -> tuple[Tensor, Any]:
            with taps.reading(offsets) as inputs:
                z, leaves = outputs_of(at, split, p | held, rest, sample)
            tensors[:] = [isinstance(leaf, Tensor) for leaf in leaves]
            return z, ([leaf for leaf in leaves if isinstance(leaf, Tensor)], inputs)

        z, pull, (leaves, inputs) = cast(Any, vjp(outputs, free, offsets, has_aux=True))
        found = iter(leaves)
        fixed = [next(found).detach() if tensor else None for tensor in tensors]

        def loss(y: Tensor) -> Tensor:
            return loss_of_outputs(at, split, params, rest, sample, fixed, y)

        narrow, z = z.dtype, wide(z.detach())
        drawn = vmap(lambda u: pull(draw_output_gradient(split, loss, z, u).to(narrow)))(noise)
        return *drawn, inputs

    many = each_sample(rows, (None, 0, 0))

    def of_batch(batch: Any, noise: Tensor, coordinates: Coordinates) -> Drawn:
        fitted = taps.fitted(lambda: outputs_of(at, split, params, rest, first_sample(batch)))
        gradients, slopes, inputs = many(fitted.offsets, batch, noise)
        yield None, carried(at.layout, coordinates, gradients)
        for draw in range(noise.shape[1]):
            one = {key: slope[:, draw] for key, slope in slopes.items()}
            yield draw, fitted.entries(at.layout, coordinates, inputs, one)

    return of_batch


def _one_after_another(at: Point, split: OutputSplit) -> Callable[[Any, Tensor, Coordinates], Drawn]:
    """The same by plain autograd: one forward pass a sample, one backward pass a draw."""
    params, rest, parameters = at.params, at.rest, at.layout.of_model(at.model)

    def of_batch(batch: Any, noise: Tensor, coordinates: Coordinates) -> Drawn:
        samples = [tree_map(lambda leaf, i=i: leaf[i], batch) for i in range(len(noise))]
        graphs = []
        for sample in samples:
            outputs: list[Any] = []
            at.task_loss(kept_outputs(at.model, outputs), batch_of_one(sample))
            graphs.append(tree_leaves(outputs[0]))
        for draw in range(noise.shape[1]):
            rows = []
            for sample, leaves, u in zip(samples, graphs, noise[:, draw], strict=True):
                fixed = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]

                def loss(y: Tensor, sample: Any = sample, fixed: list[Any] = fixed) -> Tensor:
                    return loss_of_outputs(at, split, params, rest, sample, fixed, y)

                z = leaves[split.leaf]
                slope = draw_output_gradient(split, loss, wide(z.detach()), u).to(z.dtype)
                found = torch.autograd.grad(z, parameters, slope, retain_graph=True, allow_unused=True)
                rows.append(filled(found, parameters))
            each = {name: torch.stack(g) for name, g in zip(at.layout.names, zip(*rows, strict=True), strict=True)}
            yield draw, carried(at.layout, coordinates, each)

    return of_batch


def alike(samples: list[Any]) -> Iterator[tuple[np.ndarray, Any]]:
    """Batches of one put together as far as their shapes are the same: places in the list, int64, and the batch.

    A collate pads to the longest of a batch. Put together from single samples, what is drawn for one does not depend on
    the others, and no padding is computed.
    """
    places: dict[tuple[torch.Size, ...], list[int]] = {}
    for i, sample in enumerate(samples):
        places.setdefault(tuple(leaf.shape for leaf in tree_leaves(sample)), []).append(i)
    for rows in places.values():
        yield np.array(rows), tree_map(lambda *leaves: torch.cat(leaves), *(samples[i] for i in rows))


class _Shapes:
    """Shape of a sample's outputs z, by the shapes of what goes in."""

    def __init__(self, at: Point, split: OutputSplit) -> None:
        self._at, self._split = at, split
        self._known: dict[tuple[torch.Size, ...], tuple[int, ...]] = {}

    def of(self, batch: Any) -> tuple[int, ...]:
        key = tuple(leaf.shape[1:] for leaf in tree_leaves(batch))
        if key not in self._known:
            with torch.no_grad():
                z, _ = outputs_of(self._at, self._split, self._at.params, self._at.rest, first_sample(batch))
            self._known[key] = tuple(z.shape)
        return self._known[key]


class _Noise:
    """Rows of `uniform_noise` for outputs of different shapes."""

    def __init__(self, draws: int, seed: int) -> None:
        self._draws, self._seed = draws, seed
        self._kept: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def of(self, places: np.ndarray, shape: tuple[int, ...]) -> Tensor:
        rows = []
        for place in places.tolist():
            key = place // BLOCK, shape
            if key not in self._kept:
                self._kept[key] = noise_block(key[0], self._draws, shape, self._seed)
            rows.append(self._kept[key][place % BLOCK])
        return torch.stack(rows)


def uniform_noise(samples: int, draws: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Uniform numbers in [0, 1), [samples, draws, *shape]: for each entry of a sample's `shape` a Latin hypercube over
    its draws.

    Args:
        samples: how many.
        draws: of each sample.
        shape: of the numbers of one draw.
        seed: of the random numbers.
    """
    blocks = [noise_block(number, draws, shape, seed) for number in range(-(-samples // BLOCK))]
    return torch.cat(blocks)[:samples] if blocks else torch.empty((0, draws, *shape), dtype=torch.float64)


def noise_block(number: int, draws: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """`uniform_noise` of `BLOCK` samples from number * BLOCK on.

    Args:
        number: of the block, from 0.
        draws: of each sample.
        shape: of the numbers of one draw.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, number * BLOCK]).generate_state(1)[0]))
    base = torch.rand((BLOCK, 1, *shape), generator=generator, dtype=torch.float64)
    strata = torch.rand((BLOCK, draws, *shape), generator=generator, dtype=torch.float64).argsort(1)
    return (base + strata / draws) % 1.0


def gauss_newton_matrix(at: Point, split: OutputSplit, batch_of: Any, ids: Any, coordinates: Coordinates) -> Tensor:
    """The exact mean Gauss-Newton matrix of the samples, [m, m]: slow and obvious, for tests and small models.

    Args:
        at: weights, moments and buffers at which it is computed.
        split: the loss as a function of the model's outputs.
        batch_of: ids -> collated batch.
        ids: samples, [n].
        coordinates: the carried coordinates, m of the P weights.
    """
    from torch.func import jacrev

    from orderscope.sketching.outputs import hessian_product

    params, rest = at.params, at.rest
    total = torch.zeros(coordinates.carried, coordinates.carried, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        for i in ids:
            sample = tree_map(lambda leaf: leaf[0], batch_of([i]))
            z, leaves = outputs_of(at, split, params, rest, sample)
            jacobian = jacrev(lambda p, s=sample: outputs_of(at, split, p, rest, s)[0])(params)
            flat = torch.cat([jacobian[n].reshape(z.numel(), -1) for n in at.layout.names], dim=1)
            flat = coordinates.take(flat.detach()).double()

            def loss(y: Tensor, s: Any = sample, f: Any = leaves) -> Tensor:
                return loss_of_outputs(at, split, params, rest, s, f, y)

            eye = torch.eye(z.numel(), dtype=z.dtype).view(-1, *z.shape)
            hessian = torch.stack([hessian_product(loss, z.detach(), e).reshape(-1) for e in eye]).double()
            total += flat.T @ hessian @ flat
    return total / len(ids)
