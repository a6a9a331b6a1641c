"""Affine interpolation between anchors in state space."""

from __future__ import annotations

import torch
from torch import Tensor

from orderscope_kernels.reference import gather_rows, unit_products

RIDGE = 0.1
JITTER = 1e-6
FAR = 1e6


class AnchorSpace:
    """Where gradients are known: states shared by all units, and states of each unit's own.

    A unit's own anchors are the states at which it was trained on in the recorded runs; its gradient there came free
    with training. Weights of a state theta for a unit minimise, over its K shared and R own anchors,

        | theta - sum_k w_k theta_k |^2  +  ridge * sum_k w_k^2 | theta - theta_k |^4 / scale,    sum_k w_k = 1,

    with scale the mean squared distance of the shared anchors from the start. What interpolation misses grows with the
    square of an anchor's distance, so its square is the penalty: near anchors weigh more, far ones hardly, and a state
    that is an anchor gets that anchor alone.

    Args:
        shared: [K, coords].
        own: [units, R, coords].
        start: state the window starts in, [coords]; distances are taken from there to keep numbers small.
        ridge: strength of the penalty.
    """

    def __init__(self, shared: Tensor, own: Tensor, start: Tensor, *, ridge: float = RIDGE) -> None:
        self.start, self.ridge = start, ridge
        self.shared, self.own = shared, own
        self.spread, self.own_spread = shared - start, own - start
        within = (self.spread.double() @ self.spread.double().T).expand(len(own), -1, -1)
        across = torch.einsum("km,urm->ukr", self.spread, self.own_spread).double()
        among = torch.einsum("urm,uqm->urq", self.own_spread, self.own_spread).double()
        self.gram = torch.cat([torch.cat([within, across], 2), torch.cat([across.transpose(1, 2), among], 2)], 1)
        self.norms = self.gram.diagonal(dim1=1, dim2=2)
        self.scale = float(self.norms[:, : len(shared)].mean().clamp_min(1e-30))

    @property
    def count(self) -> int:
        """K + R."""
        return self.gram.shape[1]

    def weights(self, theta: Tensor, unit: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, what they leave, and how much that is.

        Args:
            theta: [rows, coords].
            unit: unit of each row, int64 [rows].
            allowed: bool [rows, K + R], which anchors may weigh in; all if not given.

        Returns:
            weights [rows, K + R] float64; remainder theta - sum_k w_k theta_k, [rows, coords], exactly zero on an
            anchor; its length in units of the root mean squared distance of the shared anchors from the start, [rows].
        """
        d = theta - self.start
        along = torch.cat([d @ self.spread.T, unit_products(self.own_spread, unit, d)], dim=1).double()
        length = (d * d).sum(1).double()
        distance = (length[:, None] - 2 * along + self.norms[unit]).clamp_min(0)
        penalty = self.ridge * distance**2 / self.scale + JITTER * self.scale
        if allowed is not None:
            penalty = penalty + (~allowed) * (FAR * self.scale)
        matrix = self.gram[unit] + torch.diag_embed(penalty)
        solved = torch.linalg.solve(matrix, torch.stack([along, torch.ones_like(along)], -1))
        fitted, ones = solved[..., 0], solved[..., 1]
        weights = fitted + ones * ((1 - fitted.sum(1)) / ones.sum(1))[:, None]
        if allowed is not None:
            weights = weights * allowed
            weights = weights / weights.sum(1, keepdim=True)
            distance = distance.masked_fill(~allowed, torch.inf)
        shared = len(self.shared)
        near = weights.to(d.dtype)
        remainder = d - near[:, :shared] @ self.spread - gather_rows(self.own_spread, near[:, shared:], unit)
        self._snap(theta, unit, distance, weights, remainder)
        outside = remainder.norm(dim=1).double() / self.scale**0.5
        return weights, remainder, outside

    def _snap(self, theta: Tensor, unit: Tensor, distance: Tensor, weights: Tensor, remainder: Tensor) -> None:
        """A row that is one of its anchors, to the bit, takes that anchor alone."""
        candidates = distance <= 1e-5 * self.scale
        shared = len(self.shared)
        for row in candidates.any(1).nonzero()[:, 0].tolist():
            # A unit's own anchors come first, the reference run's before others': their gradients have training's bits.
            for k in sorted(candidates[row].nonzero()[:, 0].tolist(), key=lambda k: (k < shared, k)):
                if torch.equal(theta[row], self.shared[k] if k < shared else self.own[unit[row], k - shared]):
                    weights[row] = 0
                    weights[row, k] = 1
                    remainder[row] = 0
                    break
