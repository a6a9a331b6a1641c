"""What recording a task will take, before it is recorded: time, memory and disk of every stage.

A few steps, one block of gradients and one of pseudo-gradients are truly computed at the start of the window, with the
code that records, in a process like those that will share the work; what they took is scaled by the counts of the plan.
Disk is the plan's own arithmetic.
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orderscope import recording
from orderscope.budget import LEAST
from orderscope.engine.completed import held_bytes
from orderscope.errors import OrderscopeError, ended_by_task
from orderscope.names import REFERENCE
from orderscope.record import record_run, task_shard
from orderscope.record.segments import read_state
from orderscope.record.state import TrainingState
from orderscope.sketch import SketchPlan, SketchStage, write_split
from orderscope.store import RunStore
from orderscope.task import Task
from orderscope.threads import one_thread
from orderscope.work import available_cores, default_jobs, sendable

STEPS = 5  # trained for the timing, beside one that warms up
WRITTEN = 1 << 24  # bytes, to see how quick the disk is
SHARD = 6000  # bytes of a shard beside its arrays


@dataclass(frozen=True)
class Stage:
    """What one stage takes.

    Args:
        name: as in `orderscope.costs.PARTS`, or "query".
        seconds: of one process; not a number for a query, whose time depends on how much is asked.
        memory: peak bytes of a process that does it, everything included.
        disk: bytes it leaves.
    """

    name: str
    seconds: float
    memory: float
    disk: float


@dataclass(frozen=True)
class Preflight:
    """All stages, and how many processes share all but the first."""

    stages: tuple[Stage, ...]
    jobs: int

    @property
    def seconds(self) -> float:
        """Wall time of recording: the reference, then everything else on `jobs` processes."""
        first, *others = (s.seconds for s in self.stages if s.name != "query")
        return first + sum(others) / self.jobs

    @property
    def disk(self) -> float:
        return sum(stage.disk for stage in self.stages)


def preflight(
    task: Task,
    where: str | Path | None = None,
    *,
    anchors: int | None = None,
    probes: int | None = None,
    budget: float | None = None,
    sample_anchors: int | None = None,
    coords: int | None = None,
    curvature_rows: int | None = None,
    seed: int = 0,
) -> Preflight:
    """Try a task out.

    Args:
        where: a directory for what is tried, a temporary one if not given; nothing is left there.
        anchors, probes, budget, sample_anchors, coords, curvature_rows, seed: as `record` will be given them.

    Raises:
        OrderscopeError: recording would fail at its start.
    """
    coords = recording.coordinates_of(task) if coords is None else coords
    budget = None if budget is None else max(budget, LEAST)  # the least is done all the same
    anchors, probes, rows = recording.allotted(task, anchors, probes, curvature_rows, budget, coords)
    ends = recording.spaced(task.steps, anchors)
    plan = recording.sketch_plan(task, ends, sample_anchors, coords, rows, seed, probes)
    with tempfile.TemporaryDirectory(dir=where, prefix=".orderscope-preflight-") as folder:

        def tried() -> Preflight:
            with RunStore.create(folder) as store, one_thread():
                task_shard(task, store)
                return _tried(task, store, plan, probes)

        return _by_a_worker(tried)


def _by_a_worker(work: Callable[[], Preflight]) -> Preflight:
    """What `work` returns or raises in a forked process, as workers are; in this one where that is unsafe."""
    if torch.cuda.is_initialized() or "fork" not in multiprocessing.get_all_start_methods():
        return work()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(work, sender))
    process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        raise OrderscopeError(
            "a process that ended while a few steps of the task were tried in it",
            "one that lives to tell what they took",
            "look for want of memory: a smaller model, batch or data set, or a larger machine",
        ) from None
    except BaseException:  # Ctrl-C is told here, not by the process
        process.kill()
        raise
    finally:
        process.join()
    if isinstance(found, Exception):
        raise found
    return found


def _send(work: Callable[[], Preflight], sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sender.send(work())
    except SystemExit as stop:
        sender.send(ended_by_task(stop))
    except Exception as error:  # whatever it is, the caller raises it
        sender.send(sendable(error, "while it was tried"))


def _tried(task: Task, store: RunStore, plan: SketchPlan, probes: int) -> Preflight:
    steps = min(STEPS + 1, task.steps)
    short = replace(task, order=task.order[:steps])
    _restart_peak()
    record_run(short, store, REFERENCE, short.order, sorted({0, 1, steps}), coords=plan.coordinates.indices)
    ran = [event for event in store.journal() if event.get("event") == "segment"][-1]
    step, ending = ran["train_seconds"] / ran["steps"], ran["seconds"] - ran["train_seconds"]
    first, last = read_state(store, REFERENCE, 0), read_state(store, REFERENCE, 1)
    peaks = [_peak_anew()]

    near = replace(plan, anchors=[replace(a, segment=min(a.segment, 1)) for a in plan.anchors])
    stage = SketchStage(task, store, near)
    write_split(store, stage.split())
    batches = max(1, stage.micro_batch // plan.batch)
    sampled = [a for a in near.anchors if a.samples]
    kinds = [(True, len(sampled)), (False, len(plan.anchors) - len(sampled))]
    blocks = {samples: [(0, min(batches, plan.steps))] for samples, count in kinds if count}
    rows = sum(
        count * plan.steps / blocks[samples][0][1]
        * _timed(_with_plan(stage, anchors=[replace(near.anchors[0], samples=samples)], blocks=blocks[samples]),
                 "sketch/rows/a00-b000")
        for samples, count in kinds if count
    )  # fmt: skip
    peaks.append(_peak_anew())
    drawn = sum(map(len, plan.curvature_ids))
    ids = plan.curvature_ids[0][: max(1, stage.micro_batch // plan.draws)]
    at = _with_plan(stage, curvature_ids=[ids])
    curvature = drawn / len(ids) * _timed(at, "sketch/curvature/b000")
    peaks.append(_peak_anew())
    metrics = sum(_timed(stage, f"sketch/metric/{name}") for name in plan.metrics)
    found = _stages(task, plan, probes, first, last, step, ending, rows, curvature, metrics, [*peaks, _peak()])
    byte = _write_seconds(store) / WRITTEN
    sketched = ("gradients", "curvature", "metrics")  # what ends a run has been timed with its writing
    found = tuple(replace(s, seconds=s.seconds + s.disk * byte) if s.name in sketched else s for s in found)
    return Preflight(found, min(default_jobs(store), available_cores()))


def _with_plan(stage: SketchStage, **changes: Any) -> SketchStage:
    """The stage with some of its plan changed."""
    return replace(stage, plan=replace(stage.plan, **changes))


def _write_seconds(store: RunStore) -> float:
    numbers = np.random.default_rng(0).integers(0, 256, WRITTEN, np.uint8)
    began = time.perf_counter()
    store.write("written", {"x": numbers})
    return time.perf_counter() - began


def _timed(stage: SketchStage, unit: str) -> float:
    """Seconds of a unit once it is warm."""
    stage.compute(unit)
    began = time.perf_counter()
    stage.compute(unit)
    return time.perf_counter() - began


def _stages(
    task: Task, plan: SketchPlan, probes: int, first: TrainingState, last: TrainingState, step: float, ending: float,
    rows: float, curvature: float, metrics: float, peaks: Sequence[float],
) -> tuple[Stage, ...]:  # fmt: skip
    item, m, steps = task.layout.dtype.itemsize, plan.carried, plan.steps
    used, kept = len(np.unique(task.order)), sum(a.samples for a in plan.anchors)
    drawn = sum(map(len, plan.curvature_ids)) * plan.draws
    losses = sum(4 * len(x) for x in task.metrics.values() if not callable(x))
    of_steps = steps * (m * item + plan.batch * 12 + len(task.layout) + 8 * 16)
    ends = len(plan.anchors)
    starting, ended = (_state_bytes(s) for s in (first, last))
    random = sum(x.nbytes for x in first.rng.values())
    block = plan.blocks[0][1] - plan.blocks[0][0]
    base, of_rows, of_curvature, of_metrics = peaks
    run = steps * step
    reference = of_steps + starting + (ends - 1) * ended + ends * (random + losses + SHARD)
    probe = of_steps + starting + ended + losses + 2 * SHARD
    own = steps * (1 + probes) * m * item
    table = steps * len(plan.anchors) * m * item
    samples = kept * used * m * 2
    known = held_bytes(ends + probes, plan.size, item) if m < plan.size else 0
    return (
        Stage("reference", run + ends * ending, base + of_steps / max(1, ends - 1) + ended, reference),
        Stage("probes", probes * (run + ending), base + of_steps + ended, probes * probe),
        Stage("gradients", rows, of_rows + block * m * (item + plan.batch * 2 * bool(kept)),
              table + samples + kept * used * 8 + len(plan.anchors) * len(plan.blocks) * SHARD),
        Stage("curvature", curvature, of_curvature + max(map(len, plan.curvature_ids)) * plan.draws * m * 2,
              drawn * m * 2 + len(plan.curvature_ids) * SHARD),
        Stage("metrics", metrics, of_metrics, sum(m * (item + 2 * n) + SHARD for n in plan.metrics.values())),
        # Own states, as they are and from the start, and gradients, alone and in the table; the curvature twice.
        # States of all weights are read one by one and put together.
        Stage("query", float("nan"), base + 4 * own + 2 * table + samples + 2 * drawn * m * item + 2 * known, 0.0),
    )  # fmt: skip


def _state_bytes(state: TrainingState) -> int:
    tensors = [state.theta, state.count, state.present, *state.moments.values(), *state.buffers.values()]
    return sum(tensor.nbytes for tensor in tensors)


def _peak_anew() -> float:
    """`_peak`, which begins anew."""
    peak = _peak()
    _restart_peak()
    return peak


def _restart_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Most memory this process has had, in bytes, on Linux since `_restart_peak`."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
