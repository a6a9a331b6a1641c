"""The sketches of `orderscope_kernels.projection` on a GPU, in Triton.

A program makes its part of the projection in registers, from (seed, column, word), and multiplies at once. Sums over
columns are split over programs and added up in a fixed order, so that the same seed gives the same bits.
"""

# Triton reads annotations of its kernels: they have to be objects here, not strings. What it makes of arguments, and of
# numbers and tensors in a kernel, type checkers do not know.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false, reportOperatorIssue=false

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from orderscope_kernels.projection import GOLDEN, MASK, SPARSE, WORD, mixed

ROWS = 16
COLUMNS = 64
SPAN = 1 << 14  # columns of a program
ENTRIES = 128


@triton.jit
def _mixed(x):
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _word(start, word):
    return _mixed(start + (tl.zeros_like(start) + word).to(tl.uint32) * 0x9E3779B9)


@triton.jit
def projected(
    x, out, rows, size, rank, first, key, ranges, scale, span: tl.constexpr, SPARSE_KIND: tl.constexpr,
    ROWS: tl.constexpr, RANK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of rows of x times 32 rows of the projection, on a span of columns."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tile, part = tl.program_id(1), tl.program_id(2)
    r = tile * RANK + tl.arange(0, RANK)
    total = tl.zeros([ROWS, RANK], tl.float32)
    for base in range(0, tl.minimum(span, size - part * span), COLUMNS):
        on = part * span + base + tl.arange(0, COLUMNS)
        mask = (i < rows)[:, None] & (on < size)[None, :]
        values = tl.load(x + i.to(tl.int64)[:, None] * size + on[None, :], mask=mask, other=0.0)
        start = _mixed((first + on).to(tl.uint32) ^ key.to(tl.uint32))
        if SPARSE_KIND:
            signs = tl.zeros([COLUMNS, RANK], tl.float32)
            for j in range(ranges):
                low, high = rank * j // ranges, rank * (j + 1) // ranges
                if (high > tile * RANK) & (low < (tile + 1) * RANK):
                    word = _word(start, j)
                    row = low + (((word >> 1).to(tl.int64) * (high - low)) >> 31).to(tl.int32)
                    sign = 1.0 - 2.0 * (word & 1).to(tl.float32)
                    signs += tl.where(row[:, None] == r[None, :], sign[:, None], 0.0)
        else:
            bits = (_word(start, tile)[:, None] >> tl.arange(0, RANK).to(tl.uint32)[None, :]) & 1
            signs = 1.0 - 2.0 * bits.to(tl.float32)
        total = tl.dot(values, signs, total, input_precision="ieee")
    place = (part.to(tl.int64) * rows + i) * rank
    tl.store(out + place[:, None] + r[None, :], total * scale, mask=(i < rows)[:, None] & (r < rank)[None, :])


@triton.jit
def gathered_entries(
    inputs, gradients, entries, out, positions, width, outputs, count, ENTRIES: tl.constexpr
):  # fmt: skip
    """Some entries of one sample's weight gradient, summed over positions in registers."""
    sample = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * ENTRIES + tl.arange(0, ENTRIES)
    flat = tl.load(entries + e, mask=e < count, other=0)
    row, column = flat // width, flat % width
    total = tl.zeros([ENTRIES], tl.float32)
    for t in range(positions):
        place = sample * positions + t
        g = tl.load(gradients + place * outputs + row, mask=e < count, other=0.0)
        total += g * tl.load(inputs + place * width + column, mask=e < count, other=0.0)
    tl.store(out + sample * count + e, total, mask=e < count)


def project(x: Tensor, kind: str, rank: int, seed: int, *, first: int = 0) -> Tensor:
    """As `projection.project`; float32."""
    rows, size = x.shape
    parts = triton.cdiv(size, SPAN)
    out = x.new_empty(parts, rows, rank)
    ranges = min(SPARSE, rank)
    key = int(mixed(torch.tensor((seed * GOLDEN + 1) & MASK)))
    sparse = kind == "sparse"
    projected[(triton.cdiv(rows, ROWS), triton.cdiv(rank, WORD), parts)](
        x.contiguous(), out, rows, size, rank, first, key, ranges, 1 / math.sqrt(ranges if sparse else rank), SPAN,
        SPARSE_KIND=sparse, ROWS=ROWS, RANK=WORD, COLUMNS=COLUMNS,
    )  # fmt: skip
    return out.sum(0)


def linear_entries(inputs: Tensor, output_gradients: Tensor, entries: Tensor) -> Tensor:
    """As `projection.linear_entries`; float32."""
    (samples, positions, width), outputs = inputs.shape, output_gradients.shape[2]
    out = inputs.new_empty(samples, len(entries))
    gathered_entries[(samples, triton.cdiv(len(entries), ENTRIES))](
        inputs.contiguous(), output_gradients.contiguous(), entries, out, positions, width, outputs, len(entries),
        ENTRIES=ENTRIES,
    )  # fmt: skip
    return out
