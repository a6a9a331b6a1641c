"""Sketches of gradients: random projections that are never whole, and entries of a linear layer's gradients.

Random numbers are a function of (seed, column, word), so any part of a projection can be made anywhere with the same
bits. Columns of several layers lie one after the other: the projection of a whole gradient is the sum over layers of
theirs, each with its own first column. On a GPU Triton's kernels take over; the rest of this module is their reference.

Source of the mixing function: C. Wellons, "Prospecting for hash functions", 2018 (lowbias32).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from orderscope_kernels.shapes import Float, Int, Int64

SPARSE = 8  # entries that are not zero in each column of a sparse projection
WIDTH = 4096  # columns at once
WORD = 32  # signs in a word
GOLDEN = 0x9E3779B9
MASK = 0xFFFFFFFF


def mixed(x: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """A bijection of the 32-bit numbers that looks random; int64 tensors."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & MASK
    return x ^ (x >> 16)


def random_words(
    seed: int, columns: Int64[Tensor, " columns"], words: Int64[Tensor, " words"]
) -> Int64[Tensor, "words columns"]:
    """32 random bits at (seed, column, word), int64 [words, columns].

    Args:
        seed: of the random numbers.
        columns: of the projection, int64 [columns].
        words: their numbers, int64 [words].

    Example:
        >>> random_words(0, torch.tensor([0, 1]), torch.tensor([0]))
        tensor([[3958346208, 1562012930]])
    """
    start = mixed(columns ^ int(mixed(torch.tensor((seed * GOLDEN + 1) & MASK))))
    return mixed((start + (words[:, None] * GOLDEN)) & MASK)


def rademacher_block(rank: int, columns: Int64[Tensor, " columns"], seed: int) -> Float[Tensor, "{rank} columns"]:
    """Entries +-1 / sqrt(rank), float32 [rank, columns]: bit r % 32 of word r // 32 says the sign.

    Args:
        rank: rows of the projection.
        columns: which of its columns, int64 [columns].
        seed: of the random numbers.
    """
    rows = torch.arange(rank, device=columns.device)
    words = random_words(seed, columns, torch.arange(-(-rank // WORD), device=columns.device))
    bits = (words[rows // WORD] >> (rows % WORD)[:, None]) & 1
    return (1 - 2 * bits).float() / math.sqrt(rank)


def sparse_block(
    rank: int, columns: Int64[Tensor, " columns"], seed: int
) -> tuple[Float[Tensor, "s columns"], Int64[Tensor, "s columns"]]:
    """Entries of a sparse projection: values +-1 / sqrt(s) and the rows they stand in, [s, columns] each.

    Rows are cut into s = min(`SPARSE`, rank) ranges as even as can be; word j chooses sign and row in range j.

    Args:
        rank: rows of the projection.
        columns: which of its columns, int64 [columns].
        seed: of the random numbers.
    """
    count = min(SPARSE, rank)
    words = random_words(seed, columns, torch.arange(count, device=columns.device))
    edges = torch.tensor([rank * j // count for j in range(count + 1)], device=columns.device)
    rows = edges[:-1, None] + (((words >> 1) * (edges[1:] - edges[:-1])[:, None]) >> 31)
    return (1 - 2 * (words & 1)).float() / math.sqrt(count), rows


def project(
    x: Float[Tensor, "rows size"], kind: str, rank: int, seed: int, *, first: int = 0
) -> Float[Tensor, "rows {rank}"]:
    """P x: [rows, size] -> [rows, rank].

    Args:
        x: [rows, size].
        kind: "rademacher" or "sparse".
        rank: rows of P.
        seed: of P's random numbers.
        first: column of the projection that the first coordinate meets.
    """
    if x.is_cuda and x.dtype == torch.float32 and find_spec("triton"):
        return import_module("orderscope_kernels.triton_projection").project(x, kind, rank, seed, first=first)
    out = x.new_zeros(len(x), rank)
    for part, columns in column_blocks(x, first):
        if kind == "rademacher":
            out.addmm_(part, rademacher_block(rank, columns, seed).to(x).T)
        else:
            for value, row in zip(*sparse_block(rank, columns, seed), strict=True):
                out.index_add_(1, row, part * value.to(x))
    return out


def column_blocks(x: Float[Tensor, "rows size"], first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Coordinates `WIDTH` at a time, with the columns of the projection that they meet.

    Args:
        x: [rows, size].
        first: column of the first coordinate.

    Returns:
        Pairs of a part [rows, width] and columns int64 [width].
    """
    for start in range(0, x.shape[1], WIDTH):
        part = x[:, start : start + WIDTH]
        yield part, torch.arange(first + start, first + start + part.shape[1], device=x.device)


def linear_entries(
    inputs: Float[Tensor, "samples positions width_in"],
    output_gradients: Float[Tensor, "samples positions width_out"],
    entries: Int64[Tensor, " coords"],
) -> Float[Tensor, "samples coords"]:
    """Some entries of each sample's gradient of a linear layer's weight, without forming the whole of it.

        G_b[i, j] = sum_t output_gradients[b, t, i] inputs[b, t, j]

    Args:
        inputs: what came into the layer, [samples, positions, in].
        output_gradients: gradients of each sample's loss at what came out, [samples, positions, out].
        entries: flat indices i * in + j into the weight, int64 [m].

    Returns:
        [samples, m].
    """
    if inputs.is_cuda and inputs.dtype == torch.float32 and find_spec("triton"):
        return import_module("orderscope_kernels.triton_projection").linear_entries(inputs, output_gradients, entries)
    row, column = entries // inputs.shape[2], entries % inputs.shape[2]
    out = inputs.new_empty(len(inputs), len(entries))
    for start in range(0, len(entries), WIDTH):
        on = slice(start, start + WIDTH)
        out[:, on] = (output_gradients[:, :, row[on]] * inputs[:, :, column[on]]).sum(1)
    return out


def embedding_entries(
    ids: Int[Tensor, "samples positions"],
    output_gradients: Float[Tensor, "samples positions width"],
    entries: Int64[Tensor, " coords"],
) -> Float[Tensor, "samples coords"]:
    """Some entries of each sample's gradient of an embedding's weight.

        G_b[v, j] = sum_t [ids[b, t] = v] output_gradients[b, t, j]

    Args:
        ids: what was looked up, int64 [samples, positions].
        output_gradients: gradients of each sample's loss at what came out, [samples, positions, width].
        entries: flat indices v * width + j into the weight, ascending, int64 [m].

    Returns:
        [samples, m].
    """
    samples, positions, width = output_gradients.shape
    row = torch.div(entries, width, rounding_mode="floor")
    ids = ids.contiguous()
    first, last = torch.searchsorted(row, ids), torch.searchsorted(row, ids, right=True)
    counts = (last - first).flatten()
    place = torch.arange(samples * positions, device=ids.device).repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    entry = first.flatten()[place] + torch.arange(len(place), device=ids.device) - before[place]
    out = output_gradients.new_zeros(samples, len(entries))
    values = output_gradients.flatten(0, 1)[place, entries[entry] % width]
    return out.index_put_((place // positions, entry), values, accumulate=True)


def linear_projection(
    inputs: Float[Tensor, "samples positions width_in"],
    output_gradients: Float[Tensor, "samples positions width_out"],
    kind: str,
    rank: int,
    seed: int,
    *,
    first: int = 0,
) -> Float[Tensor, "samples {rank}"]:
    """P times each sample's gradient of a linear layer's weight, formed some rows of the weight at a time, [samples,
    rank].

    Args:
        inputs: of the layer, [samples, positions, width_in].
        output_gradients: gradients of each sample's loss at its outputs, [samples, positions, width_out].
        kind: of the projection, see `project`.
        rank: rows of P.
        seed: of its random numbers.
        first: column of P that the weight's first entry meets.
    """
    width = inputs.shape[2]
    rows = max(1, WIDTH // width)
    out = inputs.new_zeros(len(inputs), rank)
    for start in range(0, output_gradients.shape[2], rows):
        part = torch.einsum("bti,btj->bij", output_gradients[:, :, start : start + rows], inputs)
        out += project(part.flatten(1), kind, rank, seed, first=first + start * width)
    return out
