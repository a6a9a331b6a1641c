"""A window and what is known of held-out losses, from the shards of the recording and the sketch: what tables are built
of, on all carried coordinates or on some, and how true runs are added to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.anchors import AnchorSpace, gram_of
from orderscope.engine.batches import Batches
from orderscope.engine.curvature import Curvature, factor_products
from orderscope.engine.driven import recorded_dynamics
from orderscope.engine.held_out import HeldOut, scaled_as_known
from orderscope.engine.own import OwnAnchors, own_anchors
from orderscope.engine.units import sorting_orders
from orderscope.engine.window import LONG, Window, group_fractions, stands_for
from orderscope.errors import IncompleteRun
from orderscope.sketching import SketchPlan, draw_coordinates, from_bfloat16, missing_units
from orderscope.sketching.coordinates import Coordinates
from orderscope.store import RunStore
from orderscope.store.names import REFERENCE, TASK_SHARD
from orderscope.training import load_run, true_runs
from orderscope.training.segments import map_theta
from orderscope_kernels.shapes import Shaped

# Share of the curvature's trace that is kept. What is cut off is missing from the restoring force and adds up to a
# drift, most in long windows and where batches mix groups: with 0.85 text_mixed has a mae_ratio of 0.97 before
# calibration, with 0.95 0.65, with 0.99 0.59; 512 steps change by 0.3 standard deviations. text_24 and text_96 change
# by less than 0.01, for half of the time.
ENERGY, HIGH_ENERGY = 0.8, 0.95
EXACT_BYTES = 1 << 25  # tables up to this size keep the states' own type, so that recorded runs replay to the bit
CHUNK = 1 << 20  # coordinates at once


@dataclass(frozen=True)
class Some:
    """A subset of the carried coordinates, for approximate computations.

    Args:
        coordinates: which of all weights these are.
        places: which of the carried ones, int64, or None for all.
    """

    coordinates: Coordinates
    places: Tensor | None

    @classmethod
    def of(cls, plan: SketchPlan, count: int | None) -> Some:
        """Some of a plan's carried coordinates, drawn by the plan's seed.

        Args:
            plan: what the sketch consists of.
            count: about how many; all if not given.
        """
        own = plan.coordinates
        if count is None or count >= own.carried:
            return cls(own, None)
        places = draw_coordinates(own.carried, count, plan.seed + 1).indices
        assert places is not None
        return cls(Coordinates(places if own.indices is None else own.indices[places], own.size), places)

    def __call__(self, rows: Shaped[Tensor, "*rows carried"]) -> Shaped[Tensor, "*rows some"]:
        """[..., carried] -> [..., some]."""
        return rows if self.places is None else rows[..., self.places]


def raw_window(store: RunStore, count: int | None = None) -> Window:
    """The window from the shards of the recording and the sketch. Raises as `load_window`.

    Args:
        store: the run on disk.
        count: on how many of the carried coordinates, then without single samples; all if not given.
    """
    plan = SketchPlan.read(store)
    missing = missing_units(store, plan)
    if missing:
        raise IncompleteRun(
            f"{len(missing)} of {len(plan.units())} sketch units missing, first {missing[0]}",
            "a finished sketch",
            "resume it: run `orderscope sketch` again",
        )
    task = store.read(TASK_SHARD)
    order, codes = task["order"], task["group_codes"]
    some = Some.of(plan, count)
    coordinates = some.coordinates
    dynamics, batches = recorded_dynamics(store, coordinates), Batches(order)
    runs = _runs_with_anchors(store, batches, true_runs(store))
    own = own_anchors(dynamics, batches, [replace(run, gradient=some(run.gradient)) for run in runs])
    shared = _anchor_states(store, plan, coordinates.indices)
    rows = torch.cat([some(_table(store, plan)), own.gradients], dim=1)
    sampled = tuple(i for i, a in enumerate(plan.anchors) if a.samples and some.places is None)
    samples, place = _sample_rows(store, plan) if sampled else (rows.new_zeros(0, rows.shape[2]), np.zeros(0, int))
    theta = dynamics.start.theta
    exact = theta.dtype == torch.float64 or 4 * (2 * rows.numel() + samples.numel()) <= EXACT_BYTES
    kept = theta.dtype if exact else torch.bfloat16
    anchors = AnchorSpace.of(shared, own.states, theta, dtype=kept)
    fractions = group_fractions(order, codes, len(store.attrs(TASK_SHARD)["group_names"]))
    curvature = _curvature_arrays(store, plan, some, fractions, anchors.spread, theta.dtype)
    return Window(
        dynamics=dynamics,
        anchors=anchors,
        norms=own.norms,
        stands=stands_for(own.gradients, own.norms, own.known, coordinates.weight),
        known=torch.cat([torch.ones(len(order), len(shared), dtype=torch.bool), own.known], dim=1),
        entries=torch.cat([samples.to(kept), rows.flatten(0, 1).to(kept)]),
        sample_anchors=sampled,
        sample_place=place,
        fractions=fractions,
        has_grad=load_run(store, REFERENCE, gradients=False).has_grad if dynamics.masked else None,
        **curvature,
        order=order,
        group_codes=codes,
        anchor_runs=(*(a.run for a in plan.anchors), *own.runs),
        final=coordinates.take(load_run(store, REFERENCE, gradients=False).theta()[-1]),
    )


def halved(store: RunStore, window: Window, count: int | None) -> Window:
    """A raw window on as many coordinates with half of the curvature's rows.

    Args:
        store: the run on disk.
        window: the run, ready to be replayed.
        count: coordinates of the window; None where all are carried.
    """
    plan = SketchPlan.read(store)
    some = Some.of(plan, count)
    return replace(
        window,
        **_curvature_arrays(store, plan, some, window.fractions, window.anchors.spread, window.dtype, every=2),
    )


def extended(store: RunStore, window: Window, runs: Sequence[str]) -> Window:
    """The window with the states at which more runs trained on its batches.

    Args:
        store: the run on disk.
        window: the run, ready to be replayed.
        runs: names of true runs that the window lacks.
    """
    batches = Batches(window.order)
    found = _runs_with_anchors(store, batches, runs)
    if not found:
        return window
    own: OwnAnchors = own_anchors(window.dynamics, batches, found)
    kept, theta, shared, units = window.entries.dtype, window.dynamics.start.theta, window.anchors.shared, window.units
    spread = torch.cat([window.anchors.spread[shared:].unflatten(0, (units, -1)), (own.states - theta).to(kept)], dim=1)
    common = window.anchors.spread[:shared]
    spread = torch.cat([common, spread.flatten(0, 1)])
    anchors = AnchorSpace(
        theta, spread, shared, gram_of(spread, shared, units, theta.dtype), ridge=window.anchors.ridge
    )
    rows = torch.cat([window.table, own.gradients.to(kept)], dim=1)
    return replace(
        window,
        anchors=anchors,
        norms=torch.cat([window.norms, own.norms], dim=1),
        known=torch.cat([window.known, own.known], dim=1),
        entries=torch.cat([window.entries[: window.single], rows.flatten(0, 1)]),
        crossed=factor_products(spread, window.factor.to(theta.dtype)),
        anchor_runs=(*window.anchor_runs, *own.runs),
    )


def _runs_with_anchors(store: RunStore, batches: Batches, names: Sequence[str]) -> list[Any]:
    """The runs that trained on at least one recorded batch; others have no anchors."""
    runs = (load_run(store, name) for name in names)
    return [run for run in runs if (batches.index(run.order[None])[0] < len(batches.order)).any()]


def raw_held_out(store: RunStore, window: Window, before: HeldOut | None, count: int | None = None) -> HeldOut | None:
    """The model of the held-out losses, from the known states and the pseudo-gradients of held-out rows.

    Args:
        store: the run on disk.
        window: the same run, ready to be replayed.
        before: as it was, where the pseudo-gradients' products with earlier states are known; those with later states
            are estimated from the carried coordinates, as far as earlier states do not span them.
        count: on how many of the carried coordinates; as the window.
    """
    plan = SketchPlan.read(store)
    some = Some.of(plan, count)
    if not plan.metrics:
        return None
    if not plan.held_out_ids and before is None:
        return _single_expansion(store, window, plan)
    runs = [run for run in true_runs(store) if f"sketch/known/{run}" in store]
    names, indices = tuple(plan.metrics), some.coordinates.indices
    size, weight = plan.size, some.coordinates.weight
    states = [map_theta(store, run) for run in runs]
    slopes = [[_slopes(store, run, name) for name in names] for run in runs]
    known = len(runs)
    gram = torch.zeros(known, known, dtype=torch.float64)
    along = torch.zeros(len(names), known, known, dtype=torch.float64)
    rows = None if before is not None else _held_out_rows(store, plan, names)
    full = rows is not None and rows[0].shape[1] == size
    crossed = torch.zeros(0 if rows is None else len(rows[0]), known, dtype=torch.float64)
    take = slice(None) if indices is None else indices
    spread = torch.empty(known, some.coordinates.carried, dtype=window.dtype)
    for k, state in enumerate(states):
        spread[k] = torch.from_numpy(np.asarray(state[take] - states[0][take]))
    for low in range(0, size, CHUNK):
        d = torch.from_numpy(np.stack([s[low : low + CHUNK] for s in states])).double()
        d -= d[0].clone()
        gram += d @ d.T
        for i in range(len(names)):
            along[i] += torch.stack([s[i][low : low + CHUNK].double() for s in slopes]) @ d.T
        if full and rows is not None:
            part = rows[0][:, low : low + CHUNK]
            wide = torch.promote_types(part.dtype, torch.float32)  # rows of 8 bits do not need more
            crossed += (part.to(wide) @ d.T.to(wide)).double()
    on = torch.stack([torch.stack([s[i][take] for s in slopes]) for i in range(len(names))]).to(window.dtype)
    values = torch.tensor([[float(store.attrs(f"sketch/known/{run}")["values"][n]) for run in runs] for n in names],
                          dtype=torch.float64)  # fmt: skip
    if before is not None:
        factor, shares = before.factor, before.shares
        old = [runs.index(run) for run in before.runs]
        crossed = torch.zeros(len(factor), known, dtype=torch.float64)
        crossed[:, old] = before.crossed
        new = [k for k in range(known) if k not in old]
        if new:
            place = before._placed(before.center + spread[new], None)
            crossed[:, new] = (place.weights @ before.crossed.T + place.bent).T
    else:
        assert rows is not None
        factor, shares = rows[0][:, take] if full else some(rows[0]), rows[1]
        if not full:
            crossed = (factor.to(window.dtype) @ spread.T).double() * weight
    kept = factor if window.dtype == torch.float64 else factor.to(torch.bfloat16)
    found = HeldOut(names, tuple(runs), torch.from_numpy(np.array(states[0][take])), spread, weight, gram, values, on,
                    along, kept.contiguous(), shares, crossed)  # fmt: skip
    if before is not None:
        return found
    orders = np.stack([load_run(store, run, gradients=False).order for run in runs])
    sorting = sorting_orders(window, orders)
    return scaled_as_known(found, [run for run, sorts in zip(runs, sorting, strict=True) if sorts])


def _single_expansion(store: RunStore, window: Window, plan: SketchPlan) -> HeldOut:
    """The model for a run of an earlier version, of which only the end of the reference is known."""
    names, values = tuple(plan.metrics), load_run(store, REFERENCE, gradients=False).metrics[-1]
    shards = [f"sketch/metric/{name}" for name in names]
    rows = [from_bfloat16(store.map(shard, "rows")).to(window.dtype) for shard in shards]
    shares = torch.zeros(len(names), sum(map(len, rows)))
    first = 0
    for i, part in enumerate(rows):
        shares[i, first : first + len(part)] = 1 / len(part)
        first += len(part)
    slopes = torch.stack([torch.from_numpy(np.array(store.map(shard, "gradient"))) for shard in shards])
    nothing = torch.zeros(1, 1, dtype=torch.float64)
    return HeldOut(
        names=names, runs=(REFERENCE,), center=window.final, spread=torch.zeros_like(window.final)[None],
        weight=plan.coordinates.weight, gram=nothing,
        values=torch.tensor([[values[n]] for n in names], dtype=torch.float64), slopes=slopes[:, None],
        along=nothing.expand(len(names), 1, 1), factor=torch.cat(rows), shares=shares,
        crossed=torch.zeros(shares.shape[1], 1, dtype=torch.float64),
    )  # fmt: skip


def _slopes(store: RunStore, run: str, name: str) -> Tensor:
    """The gradient of a held-out loss at the end of a run, [P]."""
    found = torch.from_numpy(store.map(f"sketch/known/{run}", f"slope:{name}"))[-1]
    return found.view(torch.bfloat16) if found.dtype == torch.uint16 else found


def _held_out_rows(store: RunStore, plan: SketchPlan, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Pseudo-gradients of held-out rows, [n, P or m], and what each counts in each of these losses, [names, n]."""
    rows, counts = [], []
    for block, name in enumerate(plan.held_out_units()):
        part = from_bfloat16(store.map(name, "rows"))
        rows.append(part)
        places = [store.attrs(name)["names"].index(loss) for loss in names]
        each = torch.from_numpy(store.read(name, ["counts"])["counts"][places]).float()
        counts.append(each.repeat_interleave(len(part) // len(plan.held_out_ids[block]), dim=1))
    shares = torch.cat(counts, dim=1)
    return torch.cat(rows), shares / shares.sum(1, keepdim=True).clamp_min(1)


def _curvature_arrays(
    store: RunStore,
    plan: SketchPlan,
    some: Some,
    fractions: Tensor,
    spread: Tensor,
    dtype: torch.dtype,
    every: int = 1,
) -> dict[str, Any]:
    """`factor`, `sizes` and `crossed` of a `Window`: the curvature of each group from every so many sampled rows."""
    factors = _factors(store, plan, some, fractions, every)
    factor = torch.cat(factors).to(dtype)
    return {
        "factor": factor if dtype == torch.float64 else factor.bfloat16(),
        "sizes": tuple(map(len, factors)),
        "crossed": factor_products(spread, factor),
    }


def _factors(store: RunStore, plan: SketchPlan, some: Some, fractions: Tensor, every: int) -> list[Tensor]:
    """The curvature's rows of each group, [rank, m]."""
    energy, groups = _energy(fractions), fractions.shape[1]
    blocks: list[list[Tensor]] = [[] for _ in range(groups)]
    for block in range(len(plan.curvature_ids)):
        name = f"sketch/curvature/b{block:03d}"
        blocks[store.attrs(name)["group"]].append(some(from_bfloat16(store.map(name, "rows"))[::every]))
    found, weight = [], some.coordinates.weight
    for parts in blocks:
        rows = torch.cat(parts) if parts else torch.zeros(0, some.coordinates.carried, dtype=torch.bfloat16)
        found.append(Curvature.compressed(rows, energy, weight).factor)
    return found


def _energy(fractions: Tensor) -> float:
    """Share of the trace to keep, by the share of each group in each unit, [units, groups]."""
    mixed = bool(((fractions > 0).sum(1) > 1).any())
    return HIGH_ENERGY if mixed or len(fractions) > LONG else ENERGY


def _anchor_states(store: RunStore, plan: SketchPlan, indices: Tensor | None) -> Tensor:
    rows = []
    for a in plan.anchors:
        theta = map_theta(store, a.run, a.segment)
        rows.append(torch.from_numpy(np.array(theta if indices is None else theta[indices.numpy()])))
    return torch.stack(rows)


def _table(store: RunStore, plan: SketchPlan) -> Tensor:
    """Gradients of batches at the shared anchors, [units, K, m]."""
    parts = [
        torch.cat([torch.from_numpy(store.map(f"sketch/rows/a{a:02d}-b{b:03d}", "batch"))
                   for b in range(len(plan.blocks))])
        for a in range(len(plan.anchors))
    ]  # fmt: skip
    return torch.stack(parts, dim=1)


def _sample_rows(store: RunStore, plan: SketchPlan) -> tuple[Tensor, np.ndarray]:
    """Single samples' gradients, anchor by anchor, [anchors samples, m], and the row of each id."""
    anchors = [i for i, a in enumerate(plan.anchors) if a.samples]
    rows: list[Tensor] = []
    place = np.zeros(0, dtype=np.int64)
    for anchor in anchors:
        names = [f"sketch/rows/a{anchor:02d}-b{b:03d}" for b in range(len(plan.blocks))]
        ids = np.concatenate([store.read(name, ["ids"])["ids"] for name in names])
        if not len(place):
            place = np.zeros(int(ids.max()) + 1, dtype=np.int64)
            place[ids] = np.arange(len(ids))
        rows += [from_bfloat16(store.map(name, "samples")) for name in names]
    return torch.cat(rows) if rows else torch.zeros(0, plan.carried, dtype=torch.bfloat16), place
