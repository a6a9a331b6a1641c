"""What a sketch is made of: a fixed list of independent units, decided once and kept in the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from orderscope.errors import IncompleteRun
from orderscope.sketching.coordinates import Coordinates, draw_coordinates
from orderscope.store import RunStore
from orderscope.store.names import PLAN, REFERENCE, TABLE, latest_plan

SHARD_BYTES = 1 << 27  # about the largest size of a unit's shard
HELD_OUT_BLOCK = 128  # held-out rows that one unit works on


@dataclass(frozen=True)
class Anchor:
    """A recorded state at which gradients are taken.

    Args:
        run: name of the recorded run.
        segment: its boundary number.
        step: steps trained at that boundary.
        samples: whether single samples' gradients are kept here too, or only those of recorded batches.
    """

    run: str
    segment: int
    step: int
    samples: bool


@dataclass(frozen=True)
class SketchPlan:
    """All decisions of a sketch.

    Args:
        size, carried, seed: P, m, and the seed of every random draw.
        anchors: where gradients are taken.
        blocks: first and last step of the reference order of each block of rows.
        curvature_anchor: index of the anchor at which pseudo-gradients are drawn.
        curvature_ids: sample ids they are drawn for, in blocks of one group.
        draws: pseudo-gradients a sample.
        metrics: held-out sets, name -> their rows.
        held_out_ids: distinct held-out rows that pseudo-gradients are drawn for, in blocks; see
            `orderscope.sketching.held_out`. Runs of earlier versions have none: there a unit is drawn for each metric.
        held_out_draws: pseudo-gradients a row.
        grows: whether what is bought was or is decided by measurement; see `orderscope.recording.spending`.
        settled: whether nothing more is bought.
        measured: what the decision for this plan rests on.
        batch: samples a step, steps: T.
        probes: true runs under other orders that belong to the recording.
    """

    size: int
    carried: int
    seed: int
    anchors: list[Anchor]
    blocks: list[tuple[int, int]]
    curvature_anchor: int
    curvature_ids: list[list[int]]
    draws: int
    metrics: dict[str, int] = field(default_factory=dict)
    batch: int = 1
    steps: int = 1
    probes: int = 0
    held_out_ids: list[list[int]] = field(default_factory=list)
    held_out_draws: int = 1
    grows: bool = False
    settled: bool = True
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def coordinates(self) -> Coordinates:
        return draw_coordinates(self.size, self.carried, self.seed)

    def units(self) -> list[str]:
        """Names of all shards of the sketch, in the order a single worker writes them."""
        rows = [f"sketch/rows/a{a:02d}-b{b:03d}" for a in range(len(self.anchors)) for b in range(len(self.blocks))]
        curvature = [f"sketch/curvature/b{b:03d}" for b in range(len(self.curvature_ids))]
        if self.metrics and not self.held_out_ids:
            return [*rows, *curvature, *(f"sketch/metric/{name}" for name in self.metrics)]
        return [*rows, *curvature, *self.known_units(), *self.held_out_units()]

    def known_units(self) -> list[str]:
        """Those that need the recorded runs: held-out losses where each of them ended."""
        runs = [REFERENCE, *(f"probe-{i}" for i in range(self.probes))]
        return [f"sketch/known/{run}" for run in runs] if self.metrics else []

    def held_out_units(self) -> list[str]:
        return [f"sketch/held-out/b{b:03d}" for b in range(len(self.held_out_ids))]

    def cost(self) -> dict[str, float]:
        """Planned gradient evaluations of the sketch in runs, by part; not the cost measured."""
        per_run = self.steps * self.batch
        return {
            "gradients": float(len(self.anchors)),
            "curvature": sum(map(len, self.curvature_ids)) * self.draws / per_run,
            "held-out losses": sum(map(len, self.held_out_ids)) * self.held_out_draws / per_run,
        }

    def attrs(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, store: RunStore) -> SketchPlan:
        """Raises: IncompleteRun where nothing was planned yet."""
        if PLAN not in store:
            raise IncompleteRun("a run without a sketch", "a sketched run", "run `orderscope sketch` on it")
        attrs = store.attrs(latest_plan(store.names(PLAN)))
        attrs["anchors"] = [Anchor(**a) for a in attrs["anchors"]]
        attrs["blocks"] = [(int(a), int(b)) for a, b in attrs["blocks"]]
        return cls(**attrs)


def next_plan(store: RunStore) -> str:
    """Name of the plan that will supersede the one that counts."""
    return f"{PLAN}-{len(store.names(PLAN)):03d}"


def missing_units(store: RunStore, plan: SketchPlan) -> list[str]:
    """Names of the sketch's units that are still to be computed; none once the table is built, for which they are
    dropped.

    Args:
        store: the run on disk.
        plan: what the sketch consists of.
    """
    built = bool(store.names(f"{TABLE}left-out-"))
    return [] if built else [name for name in plan.units() if name not in store]


def require_probes(store: RunStore, plan: SketchPlan) -> None:
    """Check that the probes are all there: nothing else would show that a recording stopped before them.

    Args:
        store: the run on disk.
        plan: what the sketch consists of.

    Raises:
        IncompleteRun: some are missing.
    """
    missing = [i for i in range(plan.probes) if f"record/probe-{i}/segment-001" not in store]
    if missing:
        raise IncompleteRun(
            f"{plan.probes - len(missing)} of {plan.probes} probes recorded",
            "all of them, which errors are calibrated on",
            "run `orderscope record` again with the same directory: recording resumes",
        )


def make_plan(
    boundaries: Sequence[int],
    *,
    coords: int,
    seed: int,
    curvature_rows: int,
    sample_anchors: int,
    group_codes: np.ndarray,
    order: np.ndarray,
    size: int,
    item_size: int,
    metrics: dict[str, int],
    held_out: Sequence[int] = (),
    held_out_draws: int = 1,
    probes: int = 0,
) -> SketchPlan:
    """Decide a sketch for what was recorded.

    Args:
        boundaries: steps after which the reference's states are kept; all but the first are anchors.
        coords: most coordinates to carry.
        seed: of the draws of coordinates, samples and rows.
        curvature_rows: about how many pseudo-gradients to draw in all; every group gets a share.
        sample_anchors: at how many reference anchors single samples' gradients are kept.
        group_codes: group of each sample id, [samples].
        order: the recorded one, [steps, batch].
        size: P, the number of trained weights.
        item_size: bytes of one number.
        metrics: held-out sets and their rows.
        held_out: distinct held-out rows to draw pseudo-gradients for, `held_out_draws` each.
        held_out_draws: pseudo-gradients of each held-out row.
        probes: true runs under other orders.
    """
    carried = min(coords, size)
    anchors = [Anchor(REFERENCE, k, int(step), False) for k, step in enumerate(boundaries) if k]
    own = list(range(len(anchors)))
    kept = (
        {own[round(i)] for i in np.linspace(0, len(own) - 1, min(sample_anchors, len(own)))} if sample_anchors else {}
    )
    anchors = [Anchor(a.run, a.segment, a.step, i in kept) for i, a in enumerate(anchors)]
    steps, batch = order.shape
    block = max(1, SHARD_BYTES // max(1, carried * max(item_size, batch * 2 if kept else 0)))
    middle = min(own, key=lambda i: abs(anchors[i].step - steps / 2))
    used = np.unique(order)
    draws = max(1, round(curvature_rows / len(used)))
    return SketchPlan(
        size=size,
        carried=carried,
        seed=seed,
        anchors=anchors,
        blocks=[(b, min(b + block, steps)) for b in range(0, steps, block)],
        curvature_anchor=middle,
        curvature_ids=_curvature_blocks(used, group_codes, curvature_rows // draws, draws, carried, seed),
        draws=draws,
        metrics=metrics,
        batch=batch,
        steps=steps,
        probes=probes,
        held_out_ids=[
            list(map(int, held_out[i : i + HELD_OUT_BLOCK])) for i in range(0, len(held_out), HELD_OUT_BLOCK)
        ],
        held_out_draws=held_out_draws,
    )


def _curvature_blocks(
    used: np.ndarray, group_codes: np.ndarray, samples: int, draws: int, carried: int, seed: int
) -> list[list[int]]:
    """Sample ids for the curvature, in blocks of one group each.

    Where not all samples are used, every group gets its share but at least 32, so that a rare group has a curvature.
    """
    rng = np.random.default_rng(seed)
    block = max(1, min(256, SHARD_BYTES // (2 * carried * draws)))
    blocks: list[list[int]] = []
    for code in np.unique(group_codes[used]):
        ids = used[group_codes[used] == code]
        wanted = max(32, math.ceil(samples * len(ids) / len(used)))
        ids = np.sort(rng.permutation(ids)[:wanted])
        blocks += [ids[i : i + block].tolist() for i in range(0, len(ids), block)]
    return blocks
