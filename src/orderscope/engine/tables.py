"""A window laid out for the kernels: flat tables of entries, one factor for all groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from orderscope_kernels.shapes import Float, Int32, Int64

if TYPE_CHECKING:
    from orderscope.engine.window import Window


@dataclass(frozen=True)
class ReplayTables:
    """The tensors that a step of the replay reads.

    Args:
        entries: gradients, [entries, m]: of single samples, row s * samples + i of the i-th sample at the s-th anchor
            with samples; behind them of recorded batches, row u * anchors + a of unit u at anchor a.
        single: how many of them are of single samples.
        factor: rows of the curvature of all groups, one group after the other, [rank, m].
        piece: group of each row of the factor, int64 [rank].
        ranges: rows of the factor that are a group's, int32 [groups, 2].
        crossed: the factor's products with `AnchorSpace.spread`, [spread, rank]; curvature times a remainder follows
            from them without forming the remainder, A (d - sum_k w_k d_k) = A d - sum_k w_k A d_k.
    """

    entries: Float[Tensor, "entries coords"]
    single: int
    factor: Float[Tensor, "rank coords"]
    piece: Int64[Tensor, " rank"]
    ranges: Int32[Tensor, "groups 2"]
    crossed: Float[Tensor, "spread rank"]


def replay_tables(window: Window) -> ReplayTables:
    """Lay out a window."""
    sizes = torch.tensor(window.sizes)
    last = sizes.cumsum(0)
    device = window.factor.device
    return ReplayTables(
        entries=window.entries,
        single=window.single,
        factor=window.factor,
        piece=torch.arange(len(sizes)).repeat_interleave(sizes).to(device),
        ranges=torch.stack([last - sizes, last], dim=1).to(torch.int32).to(device),
        crossed=window.crossed,
    )


def factor_ranges(tables: ReplayTables, fractions: Float[Tensor, "rows groups"]) -> Int32[Tensor, "rows 2"]:
    """Rows of the factor that each row of states uses, int32 [rows, 2]: from the first to the last of its groups.

    Args:
        tables: the window's, for the rows of the factor that are a group's.
        fractions: share of each group, [rows, groups].
    """
    used = (fractions > 0) & (tables.ranges[:, 1] > tables.ranges[:, 0])
    low = tables.ranges[:, 0].expand(len(fractions), -1).masked_fill(~used, len(tables.factor)).min(1).values
    high = tables.ranges[:, 1].expand(len(fractions), -1).masked_fill(~used, 0).max(1).values
    return torch.stack([low.minimum(high), high], dim=1).to(torch.int32)
