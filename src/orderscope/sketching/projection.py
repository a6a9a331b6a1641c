"""Seeded random projections P: [P] -> [k], for inner products.

They keep inner products in the mean, E[Px . Py] = x . y, with a standard deviation of at most about |x| |y| sqrt(2/k).
They cannot be undone: E[P^T P x] = x too, but a single P^T P x is off by about sqrt(size / k) |x|.

The matrix is never whole. Its columns come in blocks of `WIDTH` coordinates, each a function of the seed and of its
columns, so that a block is made when it is needed, anywhere, with the same bits. On a GPU projections of signs are made
and multiplied in one kernel (`orderscope_kernels.projection`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from orderscope.errors import OrderscopeError
from orderscope_kernels.projection import SPARSE, WIDTH, project, rademacher_block, sparse_block

KEEP_BYTES = 1 << 28  # of a projection that are kept in memory; other blocks are made again each time

Block = tuple[Tensor, Tensor | None]  # a dense [rank, width], or signs [s, width] and the rows they stand in


@dataclass(frozen=True)
class Projection:
    """A random matrix of `rank` rows and `size` columns.

    Args:
        size: P, the length of the vectors.
        rank: k, the length of their images.
        kind: "gaussian" (normal entries of variance 1/k), "rademacher" (entries +-1/sqrt(k)) or "sparse" (`SPARSE`
            entries +-1/sqrt(SPARSE) a column, one in each of `SPARSE` ranges of rows).
        seed: of the random streams.

    Raises:
        OrderscopeError: unknown kind, or a size or rank below one.

    Source: Johnson and Lindenstrauss 1984; Achlioptas, "Database-friendly random projections", 2003 (rademacher); Kane
    and Nelson, "Sparser Johnson-Lindenstrauss transforms", 2014 (sparse).

    Example:
        >>> p = Projection(10_000, 64, "rademacher", seed=0)
        >>> p.project(torch.zeros(3, 10_000)).shape
        torch.Size([3, 64])
        >>> e = torch.zeros(10_000)
        >>> e[5] = 1
        >>> float(p.project(e).norm())  # every column has length one
        1.0
    """

    size: int
    rank: int
    kind: str = "sparse"
    seed: int = 0
    _kept: dict[int, Block] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OrderscopeError(f"projection {self.kind!r}", "one of " + ", ".join(KINDS), "choose one of these")
        if self.size < 1 or self.rank < 1:
            raise OrderscopeError(
                f"a projection of {self.size} coordinates to {self.rank}", "at least one of each", "raise the rank"
            )

    def project(self, x: Tensor) -> Tensor:
        """P x: [..., size] -> [..., rank]."""
        rows = x.reshape(-1, self.size)
        if x.is_cuda and self.kind != "gaussian":
            return project(rows, self.kind, self.rank, self.seed).view(*x.shape[:-1], self.rank)
        out = rows.new_zeros(len(rows), self.rank)
        for block, part in enumerate(rows.split(WIDTH, dim=1)):
            values, at = self._block(block, x)
            if at is None:
                out.addmm_(part, values.T)
            else:
                for sign, row in zip(values, at, strict=True):
                    out.index_add_(1, row, part * sign)
        return out.view(*x.shape[:-1], self.rank)

    def back(self, y: Tensor) -> Tensor:
        """P^T y: [..., rank] -> [..., size]; the adjoint, an unbiased but very noisy inverse."""
        rows = y.reshape(-1, self.rank)
        out = rows.new_empty(len(rows), self.size)
        for block, part in enumerate(out.split(WIDTH, dim=1)):
            values, at = self._block(block, y)
            if at is None:
                part.copy_(rows @ values)
            else:
                part.zero_()
                for sign, row in zip(values, at, strict=True):
                    part.add_(rows[:, row] * sign)
        return out.view(*y.shape[:-1], self.size)

    def _block(self, block: int, like: Tensor) -> Block:
        kept = self._kept.get(block)
        if kept is None:
            columns = torch.arange(block * WIDTH, min((block + 1) * WIDTH, self.size))
            kept = KINDS[self.kind](self.rank, columns, self.seed)
            per_column = SPARSE * 12 if self.kind == "sparse" else self.rank * 4
            if self.size * per_column <= KEEP_BYTES:
                self._kept[block] = kept
        values, at = kept
        return values.to(like), None if at is None else at.to(like.device)


def _gaussian(rank: int, columns: Tensor, seed: int) -> Block:
    own = int(np.random.SeedSequence([seed, int(columns[0]) // WIDTH]).generate_state(1)[0])
    return torch.randn(rank, len(columns), generator=torch.Generator().manual_seed(own)) / math.sqrt(rank), None


def _rademacher(rank: int, columns: Tensor, seed: int) -> Block:
    return rademacher_block(rank, columns, seed), None


KINDS: dict[str, Callable[[int, Tensor, int], Block]] = {
    "gaussian": _gaussian,
    "rademacher": _rademacher,
    "sparse": sparse_block,
}
