"""Correction of replayed weights by the errors of left-out runs.

Orders that move the weights in similar directions are replayed with similar errors. The true runs, each predicted
without its own states, show theirs, so a kernel ridge regression predicts those of other orders. With d the
displacement from the reference order's final weights, errors are taken in units of its length:

    e(q) = |d_q| k_q (K + I)^-1 E,    E_p = e_p / |d_p|,    k_qp = max(0, cos(d_q, d_p))^2,

and subtracted from the weights. K has the same between the runs. Nothing is subtracted unless the runs themselves,
each corrected by the others, are nearer to their true weights than without: sum_p |e_p - e(p)|^2 < sum_p |e_p|^2.

Over long runs errors are largest and most alike. Over 512 steps the mean error of shuffled orders has a cosine of 0.8
with that of a shuffled probe, and three quarters of an error's size; see docs/log.md for what other kernels give.

Source of the leave-one-out residuals: Craven and Wahba, "Smoothing noisy data with spline functions", 1979.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from orderscope.engine.calibration import directions
from orderscope_kernels.shapes import Float, Float64

RUNS = 3  # least number of runs to fit to
TINY = 1e-12


@dataclass(frozen=True)
class Correction:
    """The regression of the errors.

    Args:
        center: final weights of the reference order, [m].
        toward: directions of the runs' displacements, as predicted, [runs, m].
        errors: E, [runs, m].
        inverse: (K + I)^-1, [runs, runs].
    """

    center: Float[Tensor, " coords"]
    toward: Float[Tensor, "runs coords"]
    errors: Float[Tensor, "runs coords"]
    inverse: Float64[Tensor, "runs runs"]

    def __call__(self, theta: Float[Tensor, "n coords"]) -> Float[Tensor, "n coords"]:
        """Corrected weights.

        Args:
            theta: weights as predicted, [n, m].
        """
        weights = _kernel(directions(theta, self.center), self.toward) @ self.inverse
        length = (theta - self.center).norm(dim=1, keepdim=True)
        return theta - length * (weights.to(theta.dtype) @ self.errors)

    def without_own(self, theta: Float[Tensor, "runs coords"]) -> Float[Tensor, "runs coords"]:
        """The weights of the runs themselves, each corrected by the errors of the others.

        Args:
            theta: as predicted, [runs, m].
        """
        length = (theta - self.center).norm(dim=1, keepdim=True)
        left = (self.inverse / self.inverse.diagonal()[:, None]).to(theta.dtype) @ self.errors
        return theta + length * (left - self.errors)


def fit_correction(
    theta: Float[Tensor, "runs coords"], true: Float[Tensor, "runs coords"], center: Float[Tensor, " coords"]
) -> Correction | None:
    """Fit a correction to left-out runs.

    Args:
        theta: weights predicted for them without their own states, [runs, m].
        true: their true weights, [runs, m].
        center: final weights of the reference order, [m].

    Returns:
        None where the runs are no better for it, or there are too few.
    """
    if len(theta) < RUNS:
        return None
    toward = directions(theta, center)
    length = (theta - center).norm(dim=1, keepdim=True).clamp_min(TINY)
    inverse = torch.linalg.inv(_kernel(toward, toward) + torch.eye(len(theta), dtype=torch.float64))
    found = Correction(center, toward, (theta - true) / length, inverse)
    after, before = ((x - true).square().sum() for x in (found.without_own(theta), theta))
    return found if after < before else None


def _kernel(one: Float[Tensor, "n coords"], other: Float[Tensor, "runs coords"]) -> Float64[Tensor, "n runs"]:
    """Squares of the positive cosines between unit vectors."""
    return (one @ other.T).double().clamp_min(0).square()
