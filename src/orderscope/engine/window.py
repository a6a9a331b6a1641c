"""Everything a replay needs of a run, as tensors on the carried coordinates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.anchors import AnchorSpace
from orderscope.engine.batches import Batches
from orderscope.engine.driven import recorded_dynamics
from orderscope.engine.optimizers import Dynamics, Start
from orderscope.engine.own import own_anchors
from orderscope.engine.tables import ReplayTables, replay_tables
from orderscope.errors import IncompleteRun
from orderscope.names import REFERENCE, TASK_SHARD
from orderscope.record import load_run, true_runs
from orderscope.record.segments import segment_name
from orderscope.sketch import SketchPlan, from_bfloat16, missing_units
from orderscope.sketch.stage import first_use
from orderscope.store import RunStore


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
        table: batch gradients there, [units, K + R, m]; unit u is step u of the reference order.
        table_scale: what they are to be multiplied by, [units, K + R], where they are kept as int8; else None.
        sample_rows: per-sample gradients at the anchors with samples, bfloat16 [sample anchors, samples, m].
        sample_anchors: which anchors those are.
        fractions: share of each group in a unit, [units, groups].
        has_grad: whether a parameter gets a gradient in a unit, bool [units, n_params]; None where all always do.
        factors: per group the two independent halves A_0, A_1 of the curvature, [rank, m] each: C = (A_0^T A_0 +
            A_1^T A_1) / 2, coordinate weight included.
        order: the reference order; group_codes: group of every sample.
        anchor_runs: name of the run each of the K + R anchors is of.
        final: weights at the end of the reference run, [m].
    """

    dynamics: Dynamics
    anchors: AnchorSpace
    norms: Tensor
    stands: Tensor
    known: Tensor
    table: Tensor
    table_scale: Tensor | None
    sample_rows: Tensor
    sample_anchors: tuple[int, ...]
    fractions: Tensor
    has_grad: Tensor | None
    factors: tuple[tuple[Tensor, Tensor], ...]
    order: np.ndarray
    group_codes: np.ndarray
    anchor_runs: tuple[str, ...]
    final: Tensor

    @property
    def steps(self) -> int:
        return len(self.order)

    @property
    def coords(self) -> int:
        return len(self.dynamics.start.theta)

    def to(self, device: torch.device) -> Window:
        """The same on a device."""
        start = self.dynamics.start
        moved = Start(start.theta.to(device), {key: values.to(device) for key, values in start.moments.items()})
        return replace(
            self,
            dynamics=replace(self.dynamics, start=moved),
            anchors=self.anchors.to(device),
            norms=self.norms.to(device),
            stands=self.stands.to(device),
            known=self.known.to(device),
            table=self.table.to(device),
            table_scale=None if self.table_scale is None else self.table_scale.to(device),
            sample_rows=self.sample_rows.to(device),
            fractions=self.fractions.to(device),
            has_grad=None if self.has_grad is None else self.has_grad.to(device),
            factors=tuple((first.to(device), second.to(device)) for first, second in self.factors),
            final=self.final.to(device),
        )

    @cached_property
    def home(self) -> np.ndarray:
        """Unit that each sample was trained in first, int64 [samples]; 0 where it never was."""
        return np.maximum(first_use(self.order), 0)

    @cached_property
    def sampled(self) -> Tensor:
        """Which anchors have single samples' gradients, bool [K + R]."""
        which = torch.zeros(self.anchors.count, dtype=torch.bool, device=self.known.device)
        which[list(self.sample_anchors)] = True
        return which

    @cached_property
    def tables(self) -> ReplayTables:
        """The same, laid out for the kernels."""
        return replay_tables(self)


def load_window(store: RunStore, *, energy: float) -> Window:
    """Read a finished sketch.

    Args:
        energy: share of the curvature's trace that the kept rank must hold; 1 keeps every row.

    Raises:
        IncompleteRun: the sketch is not finished.
    """
    plan = SketchPlan.read(store)
    missing = missing_units(store, plan)
    if missing:
        raise IncompleteRun(
            f"{len(missing)} of {len(plan.units())} sketch units missing, first {missing[0]}",
            "a finished sketch",
            "resume it: run `orderscope sketch` again",
        )
    attrs = store.attrs(TASK_SHARD)
    arrays = store.read(TASK_SHARD)
    order, codes = arrays["order"], arrays["group_codes"]
    reference = load_run(store, REFERENCE)
    coordinates = plan.coordinates
    dynamics = recorded_dynamics(store, coordinates)
    masks = reference.has_grad if dynamics.masked else None
    batches = Batches(order)
    runs = [load_run(store, run) for run in true_runs(store)]
    runs = [run for run in runs if (batches.index(run.order[None])[0] < len(order)).any()]  # others know no batch
    own = own_anchors(dynamics, batches, runs)
    shared, table = _anchor_states(store, plan, coordinates.indices), _table(store, plan)
    return Window(
        dynamics=dynamics,
        anchors=AnchorSpace(shared, own.states, dynamics.start.theta),
        norms=own.norms,
        stands=stands_for(own.gradients, own.norms, own.known, coordinates.weight),
        known=torch.cat([torch.ones(len(order), len(shared), dtype=torch.bool), own.known], dim=1),
        table=torch.cat([table, own.gradients], dim=1),
        table_scale=None,
        sample_rows=_sample_rows(store, plan, len(codes)),
        sample_anchors=_sample_anchors(plan),
        fractions=group_fractions(order, codes, len(attrs["group_names"])),
        has_grad=masks,
        factors=_factors(store, plan, coordinates.weight, energy, len(attrs["group_names"]), shared.dtype),
        order=order,
        group_codes=codes,
        anchor_runs=(*(a.run for a in plan.anchors), *own.runs),
        final=shared[max(i for i, a in enumerate(plan.anchors) if a.run == REFERENCE)],
    )


def group_fractions(batches: np.ndarray, codes: np.ndarray, groups: int) -> Tensor:
    """Share of each group in each batch of ids [n, batch], [n, groups]."""
    counts = [np.bincount(codes[ids], minlength=groups) for ids in batches]
    return torch.from_numpy(np.stack(counts) / batches.shape[1]).float()


def stands_for(gradients: Tensor, norms: Tensor, known: Tensor, weight: float) -> Tensor:
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


def compress(rows: Tensor, energy: float) -> Tensor:
    """The fewest leading directions of A^T A that hold `energy` of its trace, [rank, m], from rows A [n, m].

    They come from the eigendecomposition of the small matrix A A^T; with energy 1 the rows are kept as they are.
    """
    if energy >= 1 or len(rows) < 2:
        return rows
    largest = rows.abs().max()
    if not float(largest):
        return rows[:1]
    scaled = rows / largest  # squares of tiny numbers would underflow, where no decomposition converges
    try:
        values, vectors = torch.linalg.eigh(scaled @ scaled.T)
    except RuntimeError:  # it did not converge
        values, vectors = (x.to(rows.dtype) for x in torch.linalg.eigh(scaled.double() @ scaled.double().T))
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    held = values.cumsum(0) / values.sum().clamp_min(1e-30)
    rank = int((held < energy).sum()) + 1
    return (vectors[:, :rank].T @ rows).contiguous() if rank < 0.8 * len(rows) else rows


def _factors(
    store: RunStore, plan: SketchPlan, weight: float, energy: float, groups: int, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor], ...]:
    """Halves are told apart by sample, so that the draws of one sample stay together and the halves are independent."""
    wide = torch.promote_types(dtype, torch.float32)  # short types have no eigendecomposition
    halves: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in range(groups)]
    for block, ids in enumerate(plan.curvature_ids):
        name = f"sketch/curvature/b{block:03d}"
        rows = from_bfloat16(store.map(name, "rows")).to(wide).unflatten(0, (len(ids), -1))  # empirical: one a sample
        group = store.attrs(name)["group"]
        for half in (0, 1):
            halves[group][half].append(rows[half::2].flatten(0, 1))
    factors = []
    for pair in halves:
        joined = [torch.cat(part) if part else torch.zeros(0, plan.carried, dtype=wide) for part in pair]
        if not len(joined[1]):
            joined[1] = joined[0]
        first, second = (compress(a * (weight / max(1, len(a))) ** 0.5, energy) for a in joined)
        factors.append((first.to(dtype), second.to(dtype)))
    return tuple(factors)


def _anchor_states(store: RunStore, plan: SketchPlan, indices: Tensor | None) -> Tensor:
    rows = []
    for a in plan.anchors:
        theta = store.map(segment_name(a.run, a.segment), "theta")
        rows.append(torch.from_numpy(np.array(theta if indices is None else theta[indices.numpy()])))
    return torch.stack(rows)


def _table(store: RunStore, plan: SketchPlan) -> Tensor:
    shape = (plan.steps, len(plan.anchors), plan.carried)
    table: Tensor | None = None
    for a in range(len(plan.anchors)):
        for b, (first, last) in enumerate(plan.blocks):
            rows = store.map(f"sketch/rows/a{a:02d}-b{b:03d}", "batch")
            if table is None:
                table = torch.empty(shape, dtype=torch.from_numpy(np.array(rows[:0])).dtype)
            table[first:last, a] = torch.from_numpy(np.array(rows))
    assert table is not None
    return table


def _sample_anchors(plan: SketchPlan) -> tuple[int, ...]:
    return tuple(i for i, a in enumerate(plan.anchors) if a.samples)


def _sample_rows(store: RunStore, plan: SketchPlan, samples: int) -> Tensor:
    anchors = _sample_anchors(plan)
    rows = torch.zeros(len(anchors), samples, plan.carried, dtype=torch.bfloat16)
    for part, anchor in zip(rows, anchors, strict=True):
        for b in range(len(plan.blocks)):
            name = f"sketch/rows/a{anchor:02d}-b{b:03d}"
            part[torch.from_numpy(store.read(name, ["ids"])["ids"])] = from_bfloat16(store.map(name, "samples"))
    return rows
