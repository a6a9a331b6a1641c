"""The standard error of a mean held-out loss over rows, as a function of weights.

With g_i the gradient of row i's loss at the end of the reference run and d the displacement from there, row i changes
by delta_i = g_i . d to first order, and the difference of the mean over n rows to the reference has the standard error

    se(d)  =  |B d|,    B = (g_i - mean g) / sqrt(n (r - 1)),    i = 1 .. r,

where r <= n rows represent all of them. A search adds a multiple of se to its objective, as a penalty on weights at
which the rows disagree.
Source: Maurer and Pontil, "Empirical Bernstein bounds and sample variance penalization", 2009.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from orderscope_kernels.shapes import Float, Float64


@dataclass(frozen=True)
class RowSpread:
    """The standard error as a function of weights.

    Args:
        center: weights at the end of the reference run, [m].
        factor: B times P / m, [r, m].
    """

    center: Float[Tensor, " coords"]
    factor: Float[Tensor, "r coords"]

    def __call__(self, theta: Float[Tensor, "*rows coords"]) -> Float64[Tensor, "*rows"]:
        """[..., m] -> [...] float64."""
        return ((theta - self.center) @ self.factor.T).double().norm(dim=-1)

    def slope(self, theta: Float[Tensor, " coords"]) -> tuple[float, Float[Tensor, " coords"]]:
        """The standard error at weights [m], and P / m of its gradient on the coordinates, [m]; zero at the center."""
        projected = (theta - self.center) @ self.factor.T
        size = float(projected.double().norm())
        return size, (projected @ self.factor) / max(size, torch.finfo(theta.dtype).tiny)


def row_spread(
    center: Float[Tensor, " coords"], gradients: Float[Tensor, "r coords"], rows: int, weight: float
) -> RowSpread:
    """From the gradients of some rows [r, m], standing for `rows` of them; `weight` is P / m.

    Args:
        center: weights at the end of the reference run, [m].
        gradients: of single rows there, [r, m].
        rows: how many rows they stand for.
        weight: P / m.
    """
    centred = gradients - gradients.mean(0)
    return RowSpread(center, centred * (weight / (rows * max(1, len(gradients) - 1)) ** 0.5))
