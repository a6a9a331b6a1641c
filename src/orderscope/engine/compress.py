"""The leading directions of a sampled matrix A^T A."""

from __future__ import annotations

import torch
from scipy.linalg import LinAlgError, eigh
from torch import Tensor

from orderscope_kernels.shapes import Float

GRAM_COORDS = 4096  # coordinates that inner products of rows are taken on: as good as all, in a fraction of the time
PART = 3  # a third of the eigenvectors is computed first, which takes a fraction of the time and mostly suffices
MOST_BY_PART = 0.9  # where a larger share of the trace is asked for, a third never suffices: all are computed at once
AT_ONCE = 2048  # rows of one eigendecomposition; more are compressed in parts first


def compress(rows: Float[Tensor, "n coords"], energy: float) -> Float[Tensor, "rank coords"]:
    """The leading directions of A^T A that hold `energy` of its trace, [rank, m], from rows A [n, m].

    They are V^T A with V the leading eigenvectors of A A^T, which is formed on some of the coordinates where there are
    many; the product is in the rows' own type. With energy 1 the rows are kept as they are. Directions of no length are
    left out.

    Args:
        rows: A, [n, m].
        energy: share of the trace to hold, above 0 and up to 1.

    Example:
        >>> compress(torch.tensor([[2.0, 0.0], [0.0, 0.1], [0.0, 0.0]]), 0.9).abs().tolist()
        [[2.0, 0.0]]
    """
    if energy >= 1 or not len(rows):
        return rows
    lost = 0.0
    if len(rows) > AT_ONCE:
        first = (1 + energy) / 2
        rows = torch.cat([compress(part, first) for part in rows.chunk(-(-len(rows) // AT_ONCE))])
        lost = 1 - first
    some = rows[:, :: max(1, rows.shape[1] // GRAM_COORDS)].to(torch.promote_types(rows.dtype, torch.float32))
    largest = some.abs().max()
    if not float(largest) > 0:
        return rows[:0]
    some = some / largest  # squares of tiny numbers would underflow
    gram = some @ some.T
    values, vectors = _leading(gram, len(gram) if energy > MOST_BY_PART else -(-len(gram) // PART))
    held = values.cumsum(0) / gram.diagonal().sum() * (1 - lost)
    if float(held[-1]) < energy and len(values) < len(gram):
        values, vectors = _leading(gram, len(gram))
        held = values.cumsum(0) / gram.diagonal().sum() * (1 - lost)
    rank = min(int((held < energy).sum()) + 1, int((values > 0).sum()))
    return (vectors[:, :rank].T.to(rows.dtype) @ rows).contiguous()


def _leading(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues [count] of a symmetric matrix and their vectors [n, count], descending."""
    last = len(gram) - 1
    try:
        if count > last:
            values, vectors = eigh(gram.numpy(), check_finite=False, driver="evd")  # all of them: 0.7 of the time
        else:
            values, vectors = eigh(gram.numpy(), subset_by_index=(last - count + 1, last), check_finite=False)
    except (LinAlgError, ValueError):  # it did not converge
        values, vectors = eigh(gram.double().numpy())
    values, vectors = torch.from_numpy(values.copy()).to(gram), torch.from_numpy(vectors.copy()).to(gram)
    return values.flip(0)[:count].clamp_min(0), vectors.flip(1)[:, :count]
