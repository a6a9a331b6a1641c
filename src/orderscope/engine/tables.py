"""A window laid out for the kernels: flat tables of entries, one factor for all groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from orderscope_kernels.replay import short_types

if TYPE_CHECKING:
    from orderscope.engine.window import Window


@dataclass(frozen=True)
class ReplayTables:
    """What a step reads.

    Args:
        gradients: of recorded batches, entry u * anchors + a, [units * anchors, m].
        scale: what int8 gradients are multiplied by, [units * anchors], or None.
        samples: of single samples, entry s * samples + id at the s-th anchor with samples, [entries, m].
        factor: rows of the curvature of all groups, [rank, m]: group by group and half by half within, or, where
            batches mix groups, half by half.
        piece: group and half of each row of the factor as one number, 2 group + half, int64 [rank].
        ranges: rows of the factor that hold a group's half, [groups, 2, 2].
        crossed: the factor's products with `AnchorSpace.spread`, [entries, rank]; curvature times a remainder follows
            from them without forming the remainder, A (d - sum_k w_k d_k) = A d - sum_k w_k A d_k.
    """

    gradients: Tensor
    scale: Tensor | None
    samples: Tensor
    factor: Tensor
    piece: Tensor
    ranges: Tensor
    crossed: Tensor

    @cached_property
    def regrouped(self) -> Tensor:
        """`samples`, and behind them `gradients` in the same type, [entries, m]."""
        whole = self.gradients if self.scale is None else self.gradients * self.scale[:, None]
        return torch.cat([self.samples, whole.to(self.samples.dtype)])


def replay_tables(window: Window) -> ReplayTables:
    """Lay out a window. Products with the curvature are in bfloat16 where the machine has instructions for them: it
    carries the noise of its sample anyway. Float64 stays float64."""
    theta = window.dynamics.start.theta
    mixed = bool(((window.fractions > 0).sum(1) > 1).any())
    pieces = [(g, h) for g in range(len(window.factors)) for h in (0, 1)]
    pieces = sorted(pieces, key=lambda piece: piece[1]) if mixed else pieces
    sizes = [len(window.factors[g][h]) for g, h in pieces]
    ranges = torch.zeros(len(window.factors), 2, 2, dtype=torch.int32)
    first = 0
    for (g, h), size in zip(pieces, sizes, strict=True):
        ranges[g, h, 0], ranges[g, h, 1] = first, first + size
        first += size
    factor = torch.cat([window.factors[g][h] for g, h in pieces])
    crossed = torch.cat([part.to(factor.dtype) @ factor.T for part in window.anchors.spread.split(4096)])
    if theta.dtype == torch.float32 and short_types(theta.device):
        factor = factor.bfloat16()
    return ReplayTables(
        gradients=window.table.flatten(0, 1),
        scale=None if window.table_scale is None else window.table_scale.flatten(),
        samples=window.sample_rows.flatten(0, 1),
        factor=factor,
        piece=torch.tensor([2 * g + h for g, h in pieces]).repeat_interleave(torch.tensor(sizes)).to(theta.device),
        ranges=ranges.to(theta.device),
        crossed=crossed,
    )


def factor_ranges(tables: ReplayTables, fractions: Tensor, member: Tensor) -> Tensor:
    """Rows of the factor that each row of states uses, int32 [rows, 2]: the hull of its groups' halves.

    Args:
        fractions: share of each group, [rows, groups].
        member: 0 for the whole curvature, 1 and 2 for its halves, [rows].
    """
    sides = tables.ranges.view(1, -1, 2, 2).expand(len(fractions), -1, -1, -1)
    half = torch.arange(2, device=member.device)
    used = (fractions > 0)[:, :, None] & ((member[:, None] == 0) | (member[:, None] == half + 1))[:, None, :]
    used = used & (sides[..., 1] > sides[..., 0])
    low = sides[..., 0].masked_fill(~used, len(tables.factor)).flatten(1).min(1).values
    high = sides[..., 1].masked_fill(~used, 0).flatten(1).max(1).values
    return torch.stack([low.minimum(high), high], dim=1).to(torch.int32)


def factor_shares(fractions: Tensor, member: Tensor) -> Tensor:
    """What each group's halves count for each row of states, [rows, 2 groups]; arguments as `factor_ranges`."""
    half = torch.arange(2, device=member.device)
    side = torch.where((member == 0)[:, None], 0.5, (member[:, None] == half + 1).to(fractions.dtype))
    return (fractions[:, :, None] * side[:, None, :]).flatten(1)
