"""The independent pieces of work of a run: once the reference is recorded, every probe and every unit of the sketch."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from orderscope.engine.threads import one_thread
from orderscope.recording.runs import record_run, run_plan
from orderscope.sketching import SketchPlan, SketchStage, missing_units
from orderscope.store import RunStore, ShardInfo
from orderscope.task import Task
from orderscope.training import true_runs
from orderscope.training.segments import segment_name

METRICS_AT = "final"  # where the metrics of a run under another order are computed


@dataclass(frozen=True)
class Training:
    """Piece of work: train an order and record it.

    Args:
        name: of the run.
        order: sample ids, [steps, batch].
        ends: steps after which states are kept, ascending.
    """

    name: str
    order: np.ndarray
    ends: tuple[int, ...]

    @property
    def shards(self) -> list[str]:
        return [segment_name(self.name, k) for k in range(len(self.ends))]


@dataclass(frozen=True)
class Sketching:
    """Compute one unit of the sketch."""

    name: str

    @property
    def shards(self) -> list[str]:
        return [self.name]


Piece = Training | Sketching


@dataclass(frozen=True)
class Done:
    """What a worker reports of a finished piece.

    Args:
        shards: that it wrote.
        events: that it logged, for the journal.
    """

    shards: list[ShardInfo]
    events: list[dict[str, Any]]


@dataclass
class Bench:
    """Where pieces are worked on.

    Args:
        task: what is trained.
        store: the run, with its plan.
    """

    task: Task
    store: RunStore
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def _plan(self) -> SketchPlan:
        return SketchPlan.read(self.store)

    @cached_property
    def _stage(self) -> SketchStage:
        return SketchStage(self.task, self.store, self._plan)

    def do(self, piece: Piece, *, leave: bool = False) -> Done:
        """Do one piece. A model is moved about and random numbers are seeded, so threads take turns.

        Args:
            piece: what to do.
            leave: leave a note beside what was written, for a writer to whom it is not reported.
        """
        with self._lock, one_thread():
            annex = self.store.annex()
            if isinstance(piece, Training):
                coords = self._plan.coordinates.indices
                record_run(self.task, annex, piece.name, piece.order, piece.ends, coords=coords, metrics_at=METRICS_AT,
                           whole=False)  # fmt: skip
            else:
                began, cpu = time.perf_counter(), time.process_time()
                annex.write(piece.name, *self._stage.compute(piece.name))
                seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
                annex.log({"event": "sketched", "unit": piece.name, "seconds": seconds, "cpu": cpu})
            if leave:
                annex.leave()
            return Done(annex.written, annex.events)


def sketching(store: RunStore) -> list[Piece]:
    """What is missing of the sketch."""
    return [Sketching(name) for name in missing_units(store, SketchPlan.read(store))]


def further(store: RunStore, prefix: str, orders: Sequence[np.ndarray]) -> list[Training]:
    """Pieces that train more orders, under names that begin with `prefix`. A run of the same order that a killed
    command left unfinished is resumed; other remnants are left where they are.

    Args:
        store: the run on disk.
        prefix: of the names.
        orders: sample ids, [steps, batch] each.
    """
    plan = SketchPlan.read(store)
    steps, coords = plan.steps, plan.coordinates.indices
    number = store.next_number(f"record/{prefix}")
    done = set(true_runs(store))
    left = [name for n in range(number) if (name := f"{prefix}{n}") not in done]
    pieces = []
    for order in orders:
        own = run_plan(order, (0, steps), coords, METRICS_AT)
        name = next((name for name in left if store.mentions(segment_name(name, 0), own)), None)
        if name is None:
            name, number = f"{prefix}{number}", number + 1
        else:
            left.remove(name)
        pieces.append(Training(name, order, (0, steps)))
    return pieces
