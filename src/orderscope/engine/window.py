"""Everything a replay needs of a run, as tensors on the carried coordinates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.anchors import AnchorSpace
from orderscope.engine.curvature import Curvature
from orderscope.engine.optimizers import Dynamics, Start
from orderscope.engine.tables import ReplayTables, replay_tables
from orderscope.sketching.stage import first_use
from orderscope_kernels.shapes import Bool, Float, Int, Int64

LONG = 256  # steps; in longer windows the errors of a replay add up to what has to be corrected


@dataclass(frozen=True)
class Window:
    """One recorded window, ready to be replayed.

    Args:
        dynamics: the optimizer, its hyper-parameters and the state it starts in.
        anchors: states where gradients are known, K shared by all units and R of each unit's own.
        norms: norms of a unit's whole gradients at its own anchors, [units, R].
        stands: what a carried coordinate stands for in the squared norm of a unit's gradient, [units + 1]; the last for
            batches that were not recorded.
        known: which of them a unit has, bool [units, K + R].
        entries: gradients, [entries, m]: of single samples, one anchor with samples after the other, then of recorded
            batches at their K + R anchors, unit by unit; unit u is step u of the reference order. A short type where
            the table is large.
        sample_anchors: which anchors have single samples' gradients.
        sample_place: row of each sample id among those of an anchor, int64 [largest id + 1].
        fractions: share of each group in a unit, [units, groups].
        has_grad: whether a parameter gets a gradient in a unit, bool [units, n_params]; None where all always do.
        factor: the curvature of all groups, one after the other, A [rank, m]: C = A^T A over the rows of a group,
            coordinate weight included.
        sizes: rows of each group in it.
        crossed: products of the factor and the anchors' displacements, [K + units R, rank].
        order: the reference order, [steps, batch].
        group_codes: group of every sample, [samples].
        anchor_runs: name of the run each of the K + R anchors is of.
        final: weights at the end of the reference run, [m].
    """

    dynamics: Dynamics
    anchors: AnchorSpace
    norms: Float[Tensor, "units own"]
    stands: Float[Tensor, " units+1"]
    known: Bool[Tensor, "units anchors"]
    entries: Float[Tensor, "entries coords"]
    sample_anchors: tuple[int, ...]
    sample_place: Int64[np.ndarray, " ids"]
    fractions: Float[Tensor, "units groups"]
    has_grad: Bool[Tensor, "units params"] | None
    factor: Float[Tensor, "rank coords"]
    sizes: tuple[int, ...]
    crossed: Float[Tensor, "spread rank"]
    order: Int[np.ndarray, "units batch"]
    group_codes: Int[np.ndarray, " samples"]
    anchor_runs: tuple[str, ...]
    final: Float[Tensor, " coords"]

    @property
    def steps(self) -> int:
        return len(self.order)

    @property
    def units(self) -> int:
        """Recorded batches, one a step."""
        return len(self.order)

    @property
    def coords(self) -> int:
        return len(self.dynamics.start.theta)

    @property
    def dtype(self) -> torch.dtype:
        """Of the states."""
        return self.dynamics.start.theta.dtype

    @property
    def single(self) -> int:
        """How many entries are of single samples."""
        return len(self.entries) - self.units * self.anchors.count

    @property
    def samples(self) -> int:
        """How many samples have gradients of their own."""
        return self.single // max(1, len(self.sample_anchors))

    @property
    def table(self) -> Float[Tensor, "units anchors coords"]:
        """Gradients of recorded batches at their anchors, [units, K + R, m], in the type of the entries."""
        return self.entries[self.single :].unflatten(0, (self.units, -1))

    @property
    def sample_rows(self) -> Float[Tensor, "anchors samples coords"]:
        """Gradients of single samples, [anchors with samples, samples, m], in the type of the entries."""
        return self.entries[: self.single].view(len(self.sample_anchors), self.samples, -1)

    @property
    def curvatures(self) -> tuple[Curvature, ...]:
        """Of each group."""
        return tuple(Curvature.of(factor) for factor in self.factor.split(list(self.sizes)))

    def curvature(self, shares: Float[Tensor, " groups"]) -> Curvature:
        """Of a unit with these shares of the groups, [groups]."""
        return Curvature.joined(zip(shares.tolist(), self.curvatures, strict=True), self.coords)

    def gradients(self, unit: int) -> Float[Tensor, "anchors coords"]:
        """Of one recorded batch at its anchors, [K + R, m], in the states' type."""
        count = self.anchors.count
        return self.entries[self.single + unit * count : self.single + (unit + 1) * count].to(self.dtype)

    def to(self, device: torch.device) -> Window:
        """The same on a device."""
        start = self.dynamics.start
        moved = Start(start.theta.to(device), {key: values.to(device) for key, values in start.moments.items()})
        tensors = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        dynamics = replace(self.dynamics, start=moved)
        return replace(self, dynamics=dynamics, anchors=self.anchors.to(device), **tensors)

    @cached_property
    def home(self) -> Int[np.ndarray, " samples"]:
        """Unit that each sample was trained in first, int64 [samples]; where it never was, that with most of its
        group."""
        first, fullest = first_use(self.order), self.fractions.argmax(0).cpu().numpy()
        return np.where(first < 0, fullest[self.group_codes[: len(first)]], first)

    @cached_property
    def sampled(self) -> Bool[Tensor, " anchors"]:
        """Which anchors have single samples' gradients, bool [K + R]."""
        which = torch.zeros(self.anchors.count, dtype=torch.bool, device=self.known.device)
        which[list(self.sample_anchors)] = True
        return which

    @cached_property
    def tables(self) -> ReplayTables:
        """The same, laid out for the kernels."""
        return replay_tables(self)


def group_fractions(
    batches: Int[np.ndarray, "n batch"], codes: Int[np.ndarray, " samples"], groups: int
) -> Float[Tensor, "n {groups}"]:
    """Share of each group in each batch of ids [n, batch], [n, groups].

    Args:
        batches: sample ids, [n, batch].
        codes: group of each sample id, [samples].
        groups: how many groups there are.
    """
    counts = [np.bincount(codes[ids], minlength=groups) for ids in batches]
    return torch.from_numpy(np.stack(counts) / batches.shape[1]).float()


def stands_for(
    gradients: Float[Tensor, "units own coords"],
    norms: Float[Tensor, "units own"],
    known: Bool[Tensor, "units own"],
    weight: float,
) -> Float[Tensor, " units+1"]:
    """What a carried coordinate stands for in the squared norm of a unit's gradient: the ratio estimator,

        w_u = sum_r |g_ur|^2 / sum_r |g_ur,S|^2    over the unit's own anchors r, whose whole norms were recorded.

    A few rows of an embedding or a bias may be most of a norm, and whether they are among the coordinates is chance
    that all states of a unit share.

    Args:
        gradients: on the coordinates, [units, R, m].
        norms: of the whole gradients, [units, R].
        known: which of them a unit has, bool [units, R].
        weight: P / m, for units without, and where all coordinates are carried.

    Returns:
        [units + 1]; the last is the ratio of the sums over all units.

    Source: Cochran, "Sampling Techniques", 1977, chapter 6.
    """
    if weight == 1:
        return torch.ones(len(norms) + 1, dtype=norms.dtype)
    whole = (norms.square() * known).sum(1)
    part = (torch.stack([unit.norm(dim=1) for unit in gradients]).square() * known).sum(1)
    whole, part = torch.cat([whole, whole.sum(0, keepdim=True)]), torch.cat([part, part.sum(0, keepdim=True)])
    return torch.where(part > 0, whole / part.clamp_min(torch.finfo(part.dtype).tiny), weight)
