"""The sampled curvature as one operator: C = sum_i s_i A_i^T A_i, applied to rows of weights as `rows @ C`.

The rows of A_i are pseudo-gradients, so that C is a sample of the Gauss-Newton matrix; it is symmetric and is never
formed. The kernels apply the same matrix in two halves, `displacement_products` and `predicted_gradient`, because the
states they read are larger than the products.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from orderscope.engine.compress import compress
from orderscope_kernels.shapes import Float, Float64

AT_ONCE = 4096  # rows of a short type that are widened at the same time


@dataclass(frozen=True)
class Curvature:
    """C = sum_i s_i A_i^T A_i.

    Args:
        parts: (s_i, A_i): a number >= 0 and a factor [rank, m], what a carried coordinate stands for included.
            Factors may be of a shorter type than what they are multiplied with: `@` and `products` round rows to it, as
            the kernels do, for a quarter of the time; `square` is in the longer one.
        coords: m.

    Example:
        >>> c = Curvature.of(torch.tensor([[1.0, 2.0]]))
        >>> torch.eye(2) @ c
        tensor([[1., 2.],
                [2., 4.]])
    """

    parts: tuple[tuple[float, Tensor], ...]
    coords: int

    @classmethod
    def of(cls, factor: Float[Tensor, "rank coords"]) -> Curvature:
        """A^T A from one factor [rank, m]."""
        return cls(((1.0, factor),), factor.shape[1])

    @classmethod
    def joined(cls, weighed: Iterable[tuple[float, Curvature]], coords: int) -> Curvature:
        """The sum of curvatures, each times a weight >= 0. Nothing is copied, and those of weight 0 are left out.

        Args:
            weighed: weights and curvatures.
            coords: m, for a sum of none.
        """
        return cls(tuple((w * s, a) for w, each in weighed if w for s, a in each.parts), coords)

    @classmethod
    def compressed(cls, rows: Float[Tensor, "n coords"], energy: float, weight: float) -> Curvature:
        """The mean over sampled pseudo-gradients by the leading directions that hold a share of its trace.

        Args:
            rows: pseudo-gradients, [n, m].
            energy: share of the trace to keep, in (0, 1].
            weight: P / m, what a carried coordinate stands for in inner products.
        """
        return cls.of(compress(rows, energy).float() * (weight / max(1, len(rows))) ** 0.5)

    @property
    def factor(self) -> Float[Tensor, "rank coords"]:
        """A with C = A^T A, [rank, m], a copy unless there is one part of weight 1; [0, m] where there is none."""
        if len(self.parts) == 1 and self.parts[0][0] == 1:
            return self.parts[0][1]
        return torch.cat([s**0.5 * a for s, a in self.parts]) if self.parts else torch.zeros(0, self.coords)

    def __rmatmul__(self, rows: Float[Tensor, "*rows coords"]) -> Float[Tensor, "*rows coords"]:
        """x C of all rows x, [..., m] -> [..., m]."""
        found = [s * ((rows.to(a.dtype) @ a.T) @ a).to(rows.dtype) for s, a in self.parts]
        return sum(found[1:], found[0]) if found else torch.zeros_like(rows)

    def products(
        self, left: Float[Tensor, "left coords"], right: Float[Tensor, "right coords"]
    ) -> Float[Tensor, "left right"]:
        """x C y of all rows x [left, m] and y [right, m], [left, right].

        Args:
            left: rows x, [left, m].
            right: rows y, [right, m].
        """
        found = left.new_zeros(len(left), len(right))
        for s, a in self.parts:
            found += s * ((left.to(a.dtype) @ a.T) @ (right.to(a.dtype) @ a.T).T)
        return found

    def square(self, rows: Float[Tensor, "*rows coords"]) -> Float64[Tensor, "*rows"]:
        """x C x of each row x, [..., m] -> float64 [...]."""
        found = torch.zeros(rows.shape[:-1], dtype=torch.float64, device=rows.device)
        for s, a in self.parts:
            found += s * (rows @ a.to(rows.dtype).T).double().square().sum(-1)
        return found


def factor_products(rows: Float[Tensor, "n coords"], factor: Float[Tensor, "rank coords"]) -> Float[Tensor, "n rank"]:
    """Products of all rows with those of a factor, in the factor's type, some rows at once.

    Args:
        rows: [n, m], perhaps of a shorter type.
        factor: [rank, m].

    Returns:
        [n, rank].
    """
    return torch.cat([part.to(factor.dtype) @ factor.T for part in rows.split(AT_ONCE)])
