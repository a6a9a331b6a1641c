"""Affine interpolation between anchors in state space."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from orderscope_kernels.reference import affine_weights, entry_products, gather_entries

RIDGE = 0.1
NEAR = 1e-5


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
        dtype: of the kept distances from the start; a short one stands for anchors that lie where it rounds them to.
    """

    def __init__(
        self, shared: Tensor, own: Tensor, start: Tensor, *, ridge: float = RIDGE, dtype: torch.dtype | None = None
    ) -> None:
        self.start, self.ridge, self.shared, self.own = start, ridge, shared, own
        units, count, coords = own.shape
        self.spread = torch.empty(len(shared) + units * count, coords, dtype=dtype or start.dtype)
        torch.sub(shared, start, out=self.spread[: len(shared)])
        torch.sub(own, start, out=self.spread[len(shared) :].view(own.shape))
        common = self.spread[: len(shared)].to(start.dtype)
        within, across, among = common.double() @ common.double().T, [], []
        for unit in self.spread[len(shared) :].view(own.shape):
            each = unit.to(start.dtype)
            across.append(common @ each.T)
            among.append(each @ each.T)
        side, corner = torch.stack(across).double(), torch.stack(among).double()
        top = torch.cat([within.expand(units, -1, -1), side], 2)
        self.gram = torch.cat([top, torch.cat([side.transpose(1, 2), corner], 2)], 1)
        self.norms = self.gram.diagonal(dim1=1, dim2=2)
        self.scale = float(self.norms[:, : len(shared)].mean().clamp_min(1e-30))

    def to(self, device: torch.device) -> AnchorSpace:
        """The same on a device."""
        moved = copy.copy(self)
        for name in ("start", "shared", "own", "spread", "gram", "norms"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    @property
    def count(self) -> int:
        """K + R."""
        return self.gram.shape[1]

    def entries(self, unit: Tensor) -> Tensor:
        """Rows of `spread` that are a unit's anchors, int64 [rows, K + R]; unit int64 [rows]."""
        shared, own = len(self.shared), self.own.shape[1]
        common = torch.arange(shared, device=unit.device).expand(len(unit), -1)
        return torch.cat([common, shared + unit[:, None] * own + torch.arange(own, device=unit.device)], 1)

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
        d, entries = theta - self.start, self.entries(unit)
        allowed = torch.ones(entries.shape, dtype=torch.bool, device=theta.device) if allowed is None else allowed
        along = entry_products(self.spread, entries, d)
        square = (d * d).sum(1)
        weights, distance, _ = affine_weights(square, along, self.gram, unit, allowed, self.ridge, self.scale)
        remainder = d - gather_entries(self.spread, entries, weights.to(d.dtype))
        remainder[self.snap(theta, torch.arange(len(unit), device=unit.device), unit, distance, weights)] = 0
        return weights, remainder, remainder.norm(dim=1).double() / self.scale**0.5

    def snap(self, theta: Tensor, at: Tensor, unit: Tensor, distance: Tensor, weights: Tensor) -> Tensor:
        """Rows that are one of their anchors take it alone: their weights are written over. Bool [rows].

        They are it to the bit; where distances from the start are kept in a short type, as far as that can tell.

        Args:
            theta: [states, coords]; `at` says which of them the rows are, int64 [rows].
            unit, distance, weights: of each row; the last two as `affine_weights` returns them.
        """
        candidates = distance <= NEAR * (self.scale + self.norms[unit])
        on = torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
        short = self.spread.dtype != self.start.dtype
        shared = len(self.shared)
        for row in candidates.any(1).nonzero()[:, 0].tolist():
            # A unit's own anchors come first, the reference run's before others': their gradients have training's bits.
            for k in sorted(candidates[row].nonzero()[:, 0].tolist(), key=lambda k: (k < shared, k)):
                state = self.shared[k] if k < shared else self.own[unit[row], k - shared]
                if short or torch.equal(theta[at[row]], state):
                    weights[row] = 0
                    weights[row, k] = 1
                    on[row] = True
                    break
        return on
