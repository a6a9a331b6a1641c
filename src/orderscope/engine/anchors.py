"""Affine interpolation between anchors in state space."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from orderscope_kernels.reference import affine_weights, entry_products, gather_entries
from orderscope_kernels.shapes import Bool, Float, Float64, Int64

# Strength of the penalty on the weights of far anchors, see `affine_weights`. From 0.01 to 1 mae_ratio is 0.23 over 24
# steps, falls from 0.228 to 0.202 over 96, and rises from 0.736 to 0.827 where batches mix groups (docs/log.md).
RIDGE = 0.1
NEAR = 1e-5  # relative squared distance up to which a state counts as an anchor itself, whose gradient is then exact


class AnchorSpace:
    """The states at which gradients are known: some shared by all units, and some specific to each unit.

    A unit's own anchors are the states at which it was trained on in the recorded runs; its gradient there came free
    with training. Weights of a state theta for a unit minimise, over its K shared and R own anchors,

        | theta - sum_k w_k theta_k |^2  +  ridge * sum_k w_k^2 | theta - theta_k |^4 / scale,    sum_k w_k = 1,

    with scale half the squared distance of the farthest shared anchor from the start. What interpolation misses grows
    with the square of an anchor's distance, so its square is the penalty: near anchors weigh more, far ones hardly, and
    a state that is an anchor gets that anchor alone.

    Args:
        start: state the window starts in, [coords]; distances are taken from there to keep numbers small.
        spread: displacements of the anchors from there, the shared ones first, then unit by unit each one's own,
            [K + units R, coords]; a short type stands for anchors that lie where it rounds them to.
        shared: K.
        gram: inner products of a unit's anchors, float64 [units, K + R, K + R].
        ridge: strength of the penalty.
    """

    def __init__(
        self,
        start: Float[Tensor, " coords"],
        spread: Float[Tensor, "entries coords"],
        shared: int,
        gram: Float64[Tensor, "units anchors anchors"],
        *,
        ridge: float = RIDGE,
    ) -> None:
        self.start, self.spread, self.shared, self.gram, self.ridge = start, spread, shared, gram, ridge
        self.norms = gram.diagonal(dim1=1, dim2=2)
        self.scale = float(self.norms[:, :shared].max().clamp_min(1e-30) / 2)

    @classmethod
    def of(
        cls,
        shared: Float[Tensor, "shared coords"],
        own: Float[Tensor, "units own coords"],
        start: Float[Tensor, " coords"],
        *,
        ridge: float = RIDGE,
        dtype: torch.dtype | None = None,
    ) -> AnchorSpace:
        """From states: shared [K, coords], own [units, R, coords]; distances are kept in `dtype`.

        Args:
            shared: states shared by all units, [K, coords].
            own: states of each unit's own, [units, R, coords].
            start: state the window starts in, [coords].
            ridge: strength of the penalty.
            dtype: type in which distances from the start are kept; the start's if not given.
        """
        units, count, coords = own.shape
        spread = torch.empty(len(shared) + units * count, coords, dtype=dtype or start.dtype)
        spread[: len(shared)] = shared - start
        for unit, states in zip(spread[len(shared) :].view(own.shape), own, strict=True):
            unit[:] = states - start
        return cls(start, spread, len(shared), gram_of(spread, len(shared), units, start.dtype), ridge=ridge)

    def to(self, device: torch.device) -> AnchorSpace:
        """A copy on a device."""
        moved = copy.copy(self)
        for name in ("start", "spread", "gram", "norms"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    @property
    def own(self) -> int:
        """R."""
        return self.count - self.shared

    def states(self, unit: int) -> Float[Tensor, "anchors coords"]:
        """A unit's anchors, [K + R, coords]."""
        return self.start + self.spread[self.entries(torch.tensor([unit]))[0]].to(self.start.dtype)

    @property
    def count(self) -> int:
        """K + R."""
        return self.gram.shape[1]

    def entries(self, unit: Int64[Tensor, " rows"]) -> Int64[Tensor, "rows anchors"]:
        """Rows of `spread` that are a unit's anchors, int64 [rows, K + R]; unit int64 [rows]."""
        shared, own = self.shared, self.own
        common = torch.arange(shared, device=unit.device).expand(len(unit), -1)
        return torch.cat([common, shared + unit[:, None] * own + torch.arange(own, device=unit.device)], 1)

    def weights(
        self,
        theta: Float[Tensor, "rows coords"],
        unit: Int64[Tensor, " rows"],
        allowed: Bool[Tensor, "rows anchors"] | None = None,
    ) -> tuple[Float64[Tensor, "rows anchors"], Float[Tensor, "rows coords"], Float64[Tensor, " rows"]]:
        """Affine weights of states among their unit's anchors, the remainder, and its length.

        Args:
            theta: [rows, coords].
            unit: unit of each row, int64 [rows].
            allowed: bool [rows, K + R], which anchors may weigh in; all if not given.

        Returns:
            weights [rows, K + R] float64; remainder theta - sum_k w_k theta_k, [rows, coords], exactly zero on an
            anchor; its length in units of the root of scale, [rows].
        """
        d, entries = theta - self.start, self.entries(unit)
        allowed = torch.ones(entries.shape, dtype=torch.bool, device=theta.device) if allowed is None else allowed
        along = entry_products(self.spread, entries, d)
        square = (d * d).sum(1)
        weights, distance, _ = affine_weights(square, along, self.gram, unit, allowed, self.ridge, self.scale)
        remainder = d - gather_entries(self.spread, entries, weights.to(d.dtype))
        remainder[self.snap(theta, torch.arange(len(unit), device=unit.device), unit, distance, weights)] = 0
        return weights, remainder, remainder.norm(dim=1).double() / self.scale**0.5

    def snap(
        self,
        theta: Float[Tensor, "states coords"],
        at: Int64[Tensor, " rows"],
        unit: Int64[Tensor, " rows"],
        distance: Float64[Tensor, "rows anchors"],
        weights: Float64[Tensor, "rows anchors"],
    ) -> Bool[Tensor, " rows"]:
        """Which rows are equal to one of their anchors, bool [rows]; such a row gets weight 1 for it, in place.

        They are equal to the bit; where distances from the start are kept in a short type, as far as that type shows.

        Args:
            theta: [states, coords].
            at: which of them the rows are, int64 [rows].
            unit: unit of each row, int64 [rows].
            distance: squared distances from the unit's anchors as `affine_weights` returns them, [rows, K + R].
            weights: weights of the unit's anchors as `affine_weights` returns them, [rows, K + R]; written over.
        """
        candidates = distance <= NEAR * (self.scale + self.norms[unit])
        on = torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
        short, shared, entries = self.spread.dtype != self.start.dtype, self.shared, None
        for row in candidates.any(1).nonzero()[:, 0].tolist():
            entries = self.entries(unit) if entries is None else entries
            # A unit's own anchors come first, the reference run's before others': their gradients have training's bits.
            for k in sorted(candidates[row].nonzero()[:, 0].tolist(), key=lambda k: (k < shared, k)):
                if short or torch.equal(theta[at[row]] - self.start, self.spread[entries[row, k]]):
                    weights[row] = 0
                    weights[row, k] = 1
                    on[row] = True
                    break
        return on


def gram_of(
    spread: Float[Tensor, "entries coords"], shared: int, units: int, dtype: torch.dtype
) -> Float64[Tensor, "{units} anchors anchors"]:
    """Inner products of each unit's anchors, float64 [units, K + R, K + R]; arguments as `AnchorSpace`, products in
    `dtype`.

    Args:
        spread: displacements as in `AnchorSpace`, [K + units R, coords].
        shared: K.
        units: how many.
        dtype: type that products are made in.
    """
    common = spread[:shared].to(dtype)
    within, across, among = common.double() @ common.double().T, [], []
    for unit in spread[shared:].unflatten(0, (units, -1)):
        each = unit.to(dtype)
        across.append(common @ each.T)
        among.append(each @ each.T)
    side, corner = torch.stack(across).double(), torch.stack(among).double()
    top = torch.cat([within.expand(units, -1, -1), side], 2)
    return torch.cat([top, torch.cat([side.transpose(1, 2), corner], 2)], 1)
