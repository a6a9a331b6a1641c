"""The kernels of `triton_replay`: tiles of rows and coordinates in registers.

Pointers and sizes are named as the arrays of `reference` and their axes (rows, coords, terms, rank). Names in capitals
are sizes of a tile, or choices, that a kernel is compiled for; `span` is how many coordinates one program covers.
"""

# Triton reads annotations of its kernels: they have to be objects here, not strings. What it makes of arguments, and of
# numbers and tensors in a kernel, type checkers do not know.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl

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
    entry = tl.load(index + row.to(tl.int64) * terms + j, mask=j < terms, other=-1).to(tl.int64)
    some, entry = entry >= 0, entry * coords
    total = tl.zeros([TERMS], tl.float32)
    length = tl.zeros([COORDS], tl.float32)
    for first in range(0, tl.minimum(span, coords - part * span), COORDS):
        on = part * span + first + tl.arange(0, COORDS)
        inside = on < coords
        d = tl.load(theta + state + on, mask=inside, other=0.0) - tl.load(start + on, mask=inside, other=0.0)
        values = tl.load(table + entry[:, None] + on[None, :], mask=some[:, None] & inside[None, :], other=0.0)
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
