"""The replay on a GPU, in Triton: two passes over the states a step, three with clipping.

products   d = theta - start is formed in registers and multiplied with the entries of its unit and with a tile of the
           factor; coordinates are split over programs and their partial sums added up afterwards, in a fixed order.
step       the gradient of a tile of rows and coordinates is formed in registers, the optimizer's step taken on it.
squares    with clipping the norm is needed before the step, so the gradient is formed once more beforehand: reading the
           tables twice is cheaper than writing and reading rows x coordinates.
"""

# Triton reads annotations of its kernels: they have to be objects here, not strings. What it makes of arguments, and of
# numbers and tensors in a kernel, type checkers do not know.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false, reportOperatorIssue=false

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from orderscope_kernels import reference
from orderscope_kernels.reference import (
    Clip,
    Part,
    Products,
    Terms,
    affine_weights,
    clip_factor,
    remainder_coefficients,
)

__all__ = ["affine_weights", "displacement_products", "remainder_coefficients", "replay_step"]

_Arguments = tuple[list[Tensor], list[float], dict[str, bool]]
ROWS = 16  # the least that tl.dot takes
COORDS = 128
RANK = 32
SPAN = 4096  # coordinates of a program of the products
# The interpreter multiplies the bits of bfloat16 as if they were integers.
WIDE_DOT = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def anchor_products(
    theta, start, at, table, index, square, along, rows, coords, terms, span: tl.constexpr, TERMS: tl.constexpr,
    COORDS: tl.constexpr,
):  # fmt: skip
    """Of one row on a span of coordinates: d . d and its entries times d."""
    row, part = tl.program_id(0), tl.program_id(1)
    state = tl.load(at + row).to(tl.int64) * coords
    j = tl.arange(0, TERMS)
    entry = tl.load(index + row.to(tl.int64) * terms + j, mask=j < terms, other=0).to(tl.int64) * coords
    total = tl.zeros([TERMS], tl.float32)
    length = tl.zeros([COORDS], tl.float32)
    for first in range(0, tl.minimum(span, coords - part * span), COORDS):
        on = part * span + first + tl.arange(0, COORDS)
        inside = on < coords
        d = tl.load(theta + state + on, mask=inside, other=0.0) - tl.load(start + on, mask=inside, other=0.0)
        values = tl.load(table + entry[:, None] + on[None, :], mask=(j < terms)[:, None] & inside[None, :], other=0.0)
        total += tl.sum(values.to(tl.float32) * d[None, :], 1)
        length += d * d
    place = part.to(tl.int64) * rows + row
    tl.store(along + place * terms + j, total, mask=j < terms)
    tl.store(square + place, tl.sum(length, 0))


@triton.jit
def curvature_products(
    theta, start, at, factor, ranges, curved, rows, coords, rank, span: tl.constexpr, ROWS: tl.constexpr,
    RANK: tl.constexpr, COORDS: tl.constexpr,
):  # fmt: skip
    """A d of a tile of rows, a tile of the factor and a span of coordinates; nothing where no row uses the tile."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    r = tl.program_id(1) * RANK + tl.arange(0, RANK)
    part = tl.program_id(2)
    low = tl.load(ranges + 2 * i, mask=i < rows, other=rank)
    high = tl.load(ranges + 2 * i + 1, mask=i < rows, other=0)
    used = (r[None, :] >= low[:, None]) & (r[None, :] < high[:, None])
    total = tl.zeros([ROWS, RANK], tl.float32)
    if tl.max(used.to(tl.int32)) > 0:
        state = tl.load(at + i, mask=i < rows, other=0).to(tl.int64) * coords
        line = r.to(tl.int64) * coords
        for first in range(0, tl.minimum(span, coords - part * span), COORDS):
            on = part * span + first + tl.arange(0, COORDS)
            inside = on < coords
            d = tl.load(theta + state[:, None] + on[None, :], mask=(i < rows)[:, None] & inside[None, :], other=0.0)
            d -= tl.load(start + on, mask=inside, other=0.0)[None, :]
            a = tl.load(factor + line[None, :] + on[:, None], mask=(r < rank)[None, :] & inside[:, None], other=0.0)
            if WIDE_DOT:
                a = a.to(tl.float32)
            total = tl.dot(d.to(a.dtype), a, total, input_precision="ieee")
    place = (part.to(tl.int64) * rows + i) * rank
    tl.store(curved + place[:, None] + r[None, :], total * used, mask=(i < rows)[:, None] & (r < rank)[None, :])


@triton.jit
def _gradient_tile(
    table, index, weights, factor, coefficients, ranges, i, on, rows, coords, terms, rank, ROWS: tl.constexpr,
    RANK: tl.constexpr, COORDS: tl.constexpr,
):  # fmt: skip
    """g of a tile of rows and coordinates, in registers."""
    row, inside = i < rows, on < coords
    g = tl.zeros([ROWS, COORDS], tl.float32)
    first = i.to(tl.int64) * terms
    for j in range(terms):
        weight = tl.load(weights + first + j, mask=row, other=0.0)
        weigh = row & (weight != 0)
        entry = tl.load(index + first + j, mask=weigh, other=0).to(tl.int64) * coords
        values = tl.load(table + entry[:, None] + on[None, :], mask=weigh[:, None] & inside[None, :], other=0.0)
        g += weight[:, None] * values.to(tl.float32)
    low = tl.min(tl.load(ranges + 2 * i, mask=row, other=rank), 0)
    high = tl.max(tl.load(ranges + 2 * i + 1, mask=row, other=0), 0)
    for base in range(low, high, RANK):
        r = base + tl.arange(0, RANK)
        c = tl.load(
            coefficients + i.to(tl.int64)[:, None] * rank + r[None, :],
            mask=row[:, None] & (r < high)[None, :],
            other=0.0,
        )
        a = tl.load(
            factor + r.to(tl.int64)[:, None] * coords + on[None, :],
            mask=(r < high)[:, None] & inside[None, :],
            other=0.0,
        )
        if WIDE_DOT:
            a = a.to(tl.float32)
        g = tl.dot(c.to(a.dtype), a, g, input_precision="ieee")
    return g


@triton.jit
def gradient_squares(
    table, index, weights, factor, coefficients, ranges, square, rows, coords, terms, rank, ROWS: tl.constexpr,
    RANK: tl.constexpr, COORDS: tl.constexpr,
):  # fmt: skip
    """Sums of g^2 of a tile of rows over a tile of coordinates."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    on = tl.program_id(1) * COORDS + tl.arange(0, COORDS)
    g = _gradient_tile(
        table, index, weights, factor, coefficients, ranges, i, on, rows, coords, terms, rank, ROWS, RANK, COORDS
    )
    tl.store(square + tl.program_id(1).to(tl.int64) * rows + i, tl.sum(g * g, 1), mask=i < rows)


@triton.jit
def adam_step(
    theta, exp_avg, exp_avg_sq, max_exp_avg_sq, at, table, index, weights, factor, coefficients, ranges, scale, lr,
    rows, coords, terms, rank, begin, end, blend, beta2, rest, correction1, root, eps, coupled, decoupled, sign,
    AMSGRAD: tl.constexpr, ROWS: tl.constexpr, RANK: tl.constexpr, COORDS: tl.constexpr,
):  # fmt: skip
    """Gradient and Adam's or AdamW's step on a tile; formulas as `optimizers.adam.adam_update`."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    on = begin + tl.program_id(1) * COORDS + tl.arange(0, COORDS)
    g = _gradient_tile(
        table, index, weights, factor, coefficients, ranges, i, on, rows, coords, terms, rank, ROWS, RANK, COORDS
    )
    mask = (i < rows)[:, None] & (on < end)[None, :]
    place = tl.load(at + i, mask=i < rows, other=0).to(tl.int64)[:, None] * coords + on[None, :]
    rate = tl.load(lr + i, mask=i < rows, other=0.0)[:, None]
    x = tl.load(theta + place, mask=mask, other=0.0)
    g = sign * tl.load(scale + i, mask=i < rows, other=0.0)[:, None] * g + coupled * x
    first = tl.load(exp_avg + place, mask=mask, other=0.0)
    second = tl.load(exp_avg_sq + place, mask=mask, other=0.0)
    first += blend * (g - first)
    second = beta2 * second + rest * g * g
    tl.store(exp_avg + place, first, mask=mask)
    tl.store(exp_avg_sq + place, second, mask=mask)
    if AMSGRAD:
        second = tl.maximum(second, tl.load(max_exp_avg_sq + place, mask=mask, other=0.0))
        tl.store(max_exp_avg_sq + place, second, mask=mask)
    x = (1 - rate * decoupled) * x - rate / correction1 * first / (root * tl.sqrt(second) + eps)
    tl.store(theta + place, x, mask=mask)


@triton.jit
def sgd_step(
    theta, buffer, at, table, index, weights, factor, coefficients, ranges, scale, lr, rows, coords, terms, rank,
    begin, end, momentum, kept, taken, decay, sign, MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr,
    ROWS: tl.constexpr, RANK: tl.constexpr, COORDS: tl.constexpr,
):  # fmt: skip
    """Gradient and SGD's step on a tile; formulas as `optimizers.sgd.sgd_update`."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    on = begin + tl.program_id(1) * COORDS + tl.arange(0, COORDS)
    g = _gradient_tile(
        table, index, weights, factor, coefficients, ranges, i, on, rows, coords, terms, rank, ROWS, RANK, COORDS
    )
    mask = (i < rows)[:, None] & (on < end)[None, :]
    place = tl.load(at + i, mask=i < rows, other=0).to(tl.int64)[:, None] * coords + on[None, :]
    rate = tl.load(lr + i, mask=i < rows, other=0.0)[:, None]
    x = tl.load(theta + place, mask=mask, other=0.0)
    g = sign * tl.load(scale + i, mask=i < rows, other=0.0)[:, None] * g + decay * x
    if MOMENTUM:
        moved = kept * tl.load(buffer + place, mask=mask, other=0.0) + taken * g
        tl.store(buffer + place, moved, mask=mask)
        g = g + momentum * moved if NESTEROV else moved
    tl.store(theta + place, x - rate * g, mask=mask)


def displacement_products(
    theta: Tensor, start: Tensor, at: Tensor, table: Tensor, index: Tensor, factor: Tensor, ranges: Tensor
) -> Products:
    """As `reference.displacement_products`; float32 states."""
    (rows, terms), coords, rank = index.shape, theta.shape[1], len(factor)
    parts = triton.cdiv(coords, SPAN)
    square, along = theta.new_empty(parts, rows), theta.new_empty(parts, rows, terms)
    anchor_products[(rows, parts)](
        theta, start, at, table, index, square, along, rows, coords, terms, SPAN,
        TERMS=triton.next_power_of_2(terms), COORDS=COORDS,
    )  # fmt: skip
    curved = theta.new_empty(parts, rows, rank)
    if rank:
        grid = (triton.cdiv(rows, ROWS), triton.cdiv(rank, RANK), parts)
        curvature_products[grid](
            theta, start, at, factor, ranges, curved, rows, coords, rank, SPAN, ROWS=ROWS, RANK=RANK, COORDS=COORDS
        )
    return Products(square.sum(0), along.sum(0), curved.sum(0))


def replay_step(
    optimizer: str,
    theta: Tensor,
    moments: dict[str, Tensor],
    at: Tensor,
    terms: Terms,
    parts: Sequence[Part],
    clip: Clip | None = None,
) -> None:
    """As `reference.replay_step`; float32 states, all rows take the step of every part."""
    if optimizer not in STEPS:
        reference.replay_step(optimizer, theta, moments, at, terms, parts, clip)
        return
    (rows, count), coords, rank = terms.index.shape, theta.shape[1], len(terms.factor)
    weights, coefficients = terms.weights.float().contiguous(), terms.coefficients.float().contiguous()
    gathered = (terms.table, terms.index.contiguous(), weights, terms.factor, coefficients, terms.ranges.contiguous())
    sizes, tile = (rows, coords, count, rank), dict(ROWS=ROWS, RANK=RANK, COORDS=COORDS)
    scale = theta.new_ones(rows)
    if clip is not None:
        pieces = triton.cdiv(coords, COORDS)
        square = theta.new_empty(pieces, rows)
        gradient_squares[(triton.cdiv(rows, ROWS), pieces)](*gathered, square, *sizes, **tile)
        norm = square.double().sum(0).sqrt() * clip.weight.sqrt()
        scale = clip_factor(torch.where(clip.known.isnan(), norm, clip.known.double()), clip.max_norm).float()
    for part in parts:
        h = part.options
        lr = torch.as_tensor(h["lr"], dtype=theta.dtype, device=theta.device).reshape(-1).expand(rows).contiguous()
        grid = (triton.cdiv(rows, ROWS), triton.cdiv(part.last - part.first, COORDS))
        kernel, arguments = STEPS[optimizer]
        states, numbers, flags = arguments(theta, moments, h)
        sign = -1.0 if h["maximize"] else 1.0
        kernel[grid](
            theta, *states, at, *gathered, scale, lr, *sizes, part.first, part.last, *numbers, sign, **flags, **tile
        )


def _sgd_arguments(theta: Tensor, moments: dict[str, Tensor], h: dict[str, Any]) -> _Arguments:
    """State, numbers and flags of `sgd_step`; `theta` stands for a state that there is not."""
    first = bool(h["first"])
    numbers = [h["momentum"], 0.0 if first else h["momentum"], 1.0 if first else 1 - h["dampening"], h["weight_decay"]]
    flags = dict(MOMENTUM=h["momentum"] != 0, NESTEROV=bool(h["nesterov"]))
    return [moments.get("momentum_buffer", theta)], numbers, flags


def _adam_arguments(theta: Tensor, moments: dict[str, Tensor], h: dict[str, Any]) -> _Arguments:
    """The same of `adam_step`."""
    decay, largest = float(h["weight_decay"]), moments.get("max_exp_avg_sq")
    states = [moments["exp_avg"], moments["exp_avg_sq"], theta if largest is None else largest]
    numbers = [
        1 - h["beta1"], h["beta2"], 1 - h["beta2"], 1 - h["beta1"] ** h["count"],
        (1 - h["beta2"] ** h["count"]) ** -0.5, h["eps"], 0.0 if h["decoupled"] else decay,
        decay if h["decoupled"] else 0.0,
    ]  # fmt: skip
    return states, numbers, dict(AMSGRAD=largest is not None)


# Optimizers whose steps are kernels; others take the plain step.
STEPS = {"SGD": (sgd_step, _sgd_arguments), "Adam": (adam_step, _adam_arguments), "AdamW": (adam_step, _adam_arguments)}
