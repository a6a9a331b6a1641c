"""Affine interpolation between anchors in state space."""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 0.01
JITTER = 1e-6
FAR = 1e6


class AnchorSpace:
    """The anchors' states and their Gram matrix.

    Weights of a state theta minimise

        | theta - sum_k w_k theta_k |^2  +  ridge * sum_k w_k^2 | theta - theta_k |^2,    sum_k w_k = 1.

    The penalty grows with an anchor's distance, as the error of interpolating from it does, so near anchors weigh more
    and a state that is an anchor gets that anchor alone.

    Args:
        states: [anchors, coords].
        ridge: strength of the penalty.
    """

    def __init__(self, states: Tensor, *, ridge: float = RIDGE) -> None:
        self.states, self.ridge = states, ridge
        self.center = states.mean(0)
        self.spread = states - self.center
        self.gram = (self.spread.double() @ self.spread.double().T)
        self.norms = self.gram.diagonal()

    def __len__(self) -> int:
        return len(self.states)

    def weights(self, theta: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, what they leave, and how much that is.

        Args:
            theta: [orders, coords].
            allowed: bool [orders, anchors], which anchors may weigh in; all if not given.

        Returns:
            weights [orders, anchors] float64; remainder theta - sum_k w_k theta_k, [orders, coords], exactly zero on an
            anchor; its length as a share of the distance to the nearest anchor, [orders].
        """
        d = theta - self.center
        along = (d @ self.spread.T).double()
        distance = ((d * d).sum(1, keepdim=True).double() - 2 * along + self.norms).clamp_min(0)
        scale = self.norms.mean().clamp_min(1e-300)
        matrix = self.gram + torch.diag_embed(self.ridge * distance + JITTER * scale)
        if allowed is not None:
            matrix = matrix + torch.diag_embed((~allowed).double() * FAR * scale)
        sides = torch.stack([along, torch.ones_like(along)], -1)
        solved = torch.linalg.solve(matrix, sides)
        fitted, ones = solved[..., 0], solved[..., 1]
        weights = fitted + ones * ((1 - fitted.sum(1)) / ones.sum(1))[:, None]
        if allowed is not None:
            weights = weights * allowed
            weights = weights / weights.sum(1, keepdim=True)
            distance = distance.masked_fill(~allowed, torch.inf)
        remainder = d - weights.to(d.dtype) @ self.spread
        nearest = distance.argmin(1)
        close = (distance.gather(1, nearest[:, None])[:, 0] <= 1e-5 * scale).nonzero()[:, 0]
        on = close[(theta[close] == self.states[nearest[close]]).all(1)]
        if len(on):
            weights[on] = 0
            weights[on, nearest[on]] = 1
            remainder[on] = 0
        size = remainder.norm(dim=1).double()
        outside = size / distance.min(1).values.sqrt().clamp_min(1e-30)
        return weights, remainder, torch.where(size > 0, outside, torch.zeros_like(outside))
