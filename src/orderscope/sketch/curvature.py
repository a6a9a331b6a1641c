"""Sampled Gauss-Newton curvature: pseudo-gradients whose outer products have the Gauss-Newton matrix as their mean.

For a sample with outputs z(theta), J = dz/dtheta and L the Hessian of the loss in z,

    ghat = J^T L^(1/2) e,    E[e e^T] = 1    =>    E[ghat ghat^T] = J^T L J.

With softmax cross-entropy this is the gradient at a label drawn from the model's own softmax, token by token.
Source: Schraudolph, "Fast curvature matrix-vector products", 2002; Martens, "New insights and perspectives on the
natural gradient method", 2020, for the sampled form.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from orderscope.per_sample import each_sample
from orderscope.sketch.coordinates import Coordinates
from orderscope.sketch.gradients import Point, carried, chunks, first_sample, join
from orderscope.sketch.outputs import (
    OutputSplit,
    draw_output_gradient,
    loss_of_outputs,
    outputs_of,
    wide,
)
from orderscope.sketch.taps import NO_TAPS, Taps

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
        batch_of: ids -> collated batch.
        seed: numbers depend on it and on the position of a sample in `ids`, not on `micro_batch`.
        dtype: of the result; the parameters' if not given.
        taps: layers whose weights' gradients are not formed.
    """
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
    noise = uniform_noise(len(ids), draws, split.noise_shape, seed).to(next(iter(params.values())))
    step = max(1, micro_batch // draws)
    drawn = torch.empty(len(ids), draws, coordinates.carried, dtype=noise.dtype if dtype is None else dtype)
    for start, chunk in zip(range(0, len(ids), step), chunks(ids, step), strict=True):
        batch = batch_of(chunk)
        fitted = taps.fitted(lambda: outputs_of(at, split, params, rest, first_sample(batch)))  # noqa: B023
        gradients, slopes, inputs = many(fitted.offsets, batch, noise[start : start + len(chunk)])
        place = drawn[start : start + len(chunk)]
        join(carried(at.layout, coordinates, gradients), place)
        for draw in range(draws):
            one = {key: slope[:, draw] for key, slope in slopes.items()}
            join(fitted.entries(at.layout, coordinates, inputs, one), place[:, draw])
    return drawn


def uniform_noise(samples: int, draws: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Uniform numbers in [0, 1), [samples, draws, *shape]: for each entry of a sample's `shape` a Latin hypercube over
    its draws."""
    numbers = []
    for block in range(0, samples, BLOCK):
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, block]).generate_state(1)[0]))
        base = torch.rand((BLOCK, 1, *shape), generator=generator, dtype=torch.float64)
        strata = torch.rand((BLOCK, draws, *shape), generator=generator, dtype=torch.float64).argsort(1)
        numbers.append((base + strata / draws) % 1.0)
    return torch.cat(numbers)[:samples] if numbers else torch.empty((0, draws, *shape), dtype=torch.float64)


def gauss_newton_matrix(at: Point, split: OutputSplit, batch_of: Any, ids: Any, coordinates: Coordinates) -> Tensor:
    """The exact mean Gauss-Newton matrix of the samples, [m, m]: slow and obvious, for tests and small models."""
    from torch.func import jacrev

    from orderscope.sketch.outputs import hessian_product

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
