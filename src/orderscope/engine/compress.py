"""The leading directions of a sampled matrix A^T A."""

from __future__ import annotations

import torch
from torch import Tensor

GRAM_COORDS = 4096  # of the coordinates make the inner products of rows: what is kept is as good, at a fraction of time
AT_ONCE = 2048  # rows of one eigendecomposition; more are compressed in parts first


def compress(rows: Tensor, energy: float) -> Tensor:
    """The leading directions of A^T A that hold `energy` of its trace, [rank, m], from rows A [n, m].

    They are V^T A with V the leading eigenvectors of A A^T, which is formed on some of the coordinates where there are
    many. With energy 1 the rows are kept as they are. Directions of no length are left out.

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
    largest = rows.abs().max()
    if not float(largest) > 0:
        return rows[:0]
    some = rows[:, :: max(1, rows.shape[1] // GRAM_COORDS)] / largest  # squares of tiny numbers would underflow
    try:
        values, vectors = torch.linalg.eigh(some @ some.T)
    except RuntimeError:  # it did not converge
        values, vectors = (x.to(rows.dtype) for x in torch.linalg.eigh(some.double() @ some.double().T))
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    held = values.cumsum(0) / values.sum() * (1 - lost)
    rank = min(int((held < energy).sum()) + 1, int((values > 0).sum()))
    return (vectors[:, :rank].T.to(rows.dtype) @ rows).contiguous()
