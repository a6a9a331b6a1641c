"""The coordinate sketch: which entries of the flat parameter vector [P] are carried, and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Coordinates:
    """A fixed sample S of m of the P coordinates, drawn uniformly without replacement.

    Adam is elementwise, so the state on S is carried exactly; sums over all coordinates are estimated by the
    Horvitz-Thompson estimator, sum_i x_i ~ (P / m) sum_{i in S} x_i, which is unbiased over the draw of S.

    Args:
        indices: ascending int64 [m], or None where all are carried (m = P).
        size: P.

    Source: Horvitz and Thompson, "A Generalization of Sampling Without Replacement From a Finite Universe", 1952.
    """

    indices: Tensor | None
    size: int

    @property
    def carried(self) -> int:
        """m, the number of coordinates carried."""
        return self.size if self.indices is None else len(self.indices)

    @property
    def weight(self) -> float:
        """P / m: what one carried coordinate stands for in a sum over all."""
        return self.size / self.carried

    def take(self, flat: Tensor) -> Tensor:
        """[..., P] -> [..., m]."""
        return flat if self.indices is None else flat.index_select(-1, self.indices.to(flat.device))

    def of_tensors(self, sizes: Sequence[int]) -> list[tuple[slice, Tensor | None]]:
        """For each tensor of a flat vector, of `sizes` entries: its place in [m], and which of its entries are carried,
        None for all."""
        edges = [0, *accumulate(sizes)]
        if self.indices is None:
            return [(slice(low, high), None) for low, high in pairwise(edges)]
        cuts = torch.searchsorted(self.indices, torch.tensor(edges)).tolist()
        return [
            (slice(low, high), self.indices[low:high] - edge)
            for (low, high), edge in zip(pairwise(cuts), edges[:-1], strict=True)
        ]

    def total(self, values: Tensor) -> Tensor:
        """Horvitz-Thompson estimate of the sum over all coordinates: [..., m] -> [...]."""
        return values.sum(-1) * self.weight


def draw_coordinates(size: int, carried: int, seed: int) -> Coordinates:
    """`carried` of `size` coordinates; all of them where `carried >= size`.

    Args:
        size: P.
        carried: m, at most P.
        seed: of the random numbers.

    Example:
        >>> draw_coordinates(5, 9, seed=0).carried
        5
        >>> draw_coordinates(1000, 10, seed=0).weight
        100.0
    """
    if carried >= size:
        return Coordinates(None, size)
    generator = torch.Generator().manual_seed(seed)
    return Coordinates(torch.randperm(size, generator=generator)[:carried].sort().values, size)
