"""What recording a task will take, before it is recorded: time, memory and disk of every stage.

A few steps, one block of gradients, one of pseudo-gradients and gradients of the held-out losses are truly computed at
the start of the window, with the code that records, in a process like those that will share the work; what they took is
scaled by the counts of the plan. The table is made of them by products alone: their number is counted, and their rate
measured, of products with matrices and of those with one vector, which read more than they compute. Disk is the plan's
own arithmetic.
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

from orderscope.engine.batches import Batches
from orderscope.engine.completed import held_bytes
from orderscope.engine.compress import GRAM_COORDS
from orderscope.engine.raw import ENERGY, EXACT_BYTES
from orderscope.engine.threads import one_thread
from orderscope.errors import OrderscopeError, ended_by_task
from orderscope.recording import choices
from orderscope.recording.budget import LEAST
from orderscope.recording.runs import record_run
from orderscope.recording.work import available_cores, default_jobs, sendable
from orderscope.sketching import SketchPlan, SketchStage, write_split
from orderscope.sketching.stage import SHORT_SIZE, WHOLE_SIZE
from orderscope.store import RunStore
from orderscope.store.names import REFERENCE
from orderscope.task import Task
from orderscope.training import task_shard
from orderscope.training.segments import read_state
from orderscope.training.state import TrainingState

STEPS = 5  # steps that are timed, after one that warms up
WRITTEN = 1 << 24  # bytes that are written to time the disk
SHARD = 4600  # bytes that a shard takes beside its arrays
PRODUCT_ROWS = 256  # rows of the matrices whose product is timed
VECTOR_NUMBERS = 1 << 25  # most numbers of the matrix whose product with one vector is timed


@dataclass(frozen=True)
class Stage:
    """What one stage takes.

    Args:
        name: as in `orderscope.recording.costs.PARTS`, or "query".
        seconds: CPU seconds of one process; not a number for a query, whose time depends on how much is asked.
        memory: peak bytes of a process that does it, everything included.
        disk: bytes it leaves that stay; of the table at most so many, since how much of the curvature is kept is found
            when it is built.
        passing: bytes it leaves that go when the table is built.
    """

    name: str
    seconds: float
    memory: float
    disk: float
    passing: float = 0.0


@dataclass(frozen=True)
class Preflight:
    """What a recording will take.

    Args:
        stages: of the recording, and a query.
        jobs: processes that share all stages but the reference run and the table.
        run: CPU seconds of one training of the window.
    """

    stages: tuple[Stage, ...]
    jobs: int
    run: float

    @property
    def cost(self) -> dict[str, float]:
        """Recording in runs, by part, as `orderscope.recording.costs.part_runs` counts it afterwards."""
        return {stage.name: stage.seconds / self.run for stage in self.stages if stage.name != "query"}

    @property
    def seconds(self) -> float:
        """Wall time of recording: the reference, then everything else on `jobs` processes, then the table."""
        alone = sum(s.seconds for s in self.stages if s.name in ("reference", "table"))
        return alone + sum(s.seconds for s in self.stages if s.name not in ("reference", "table", "query")) / self.jobs

    @property
    def disk(self) -> float:
        """Bytes of the finished run."""
        return sum(stage.disk for stage in self.stages)

    @property
    def most_disk(self) -> float:
        """The most bytes there are at once, when the table was built and what it is made of is still there."""
        return self.disk + sum(stage.passing for stage in self.stages)


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
        task: what is to be recorded.
        where: a directory for what is tried, a temporary one if not given; nothing is left there.
        anchors: as `record` will be given it.
        probes: as `record` will be given it.
        budget: as `record` will be given it, in runs.
        sample_anchors: as `record` will be given it.
        coords: as `record` will be given it.
        curvature_rows: as `record` will be given it.
        seed: as `record` will be given it.

    Raises:
        OrderscopeError: recording would fail at its start.
    """
    coords = choices.coordinates_of(task) if coords is None else coords
    budget = None if budget is None else max(budget, LEAST)  # the least is done all the same
    anchors, probes, rows = choices.allotted(task, anchors, probes, curvature_rows, budget)
    ends = choices.spaced(task.steps, anchors)
    plan = choices.sketch_plan(task, ends, sample_anchors, coords, rows, seed, probes)
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
    except BaseException:  # Ctrl-C is reported here, not by the process
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
    step, ending = ran["train_cpu"] / ran["steps"], ran["cpu"] - ran["train_cpu"]
    first, last = read_state(store, REFERENCE, 0), read_state(store, REFERENCE, 1)
    peaks = [_peak_anew()]

    near = replace(plan, anchors=[replace(a, segment=1, step=1) for a in plan.anchors])
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
    ends = len(plan.anchors) + 1 + probes
    held_out = ends / len({0, 1, steps}) * _timed(stage, f"sketch/known/{REFERENCE}") if plan.metrics else 0.0
    rows_of = sum(map(len, plan.held_out_ids))
    if rows_of:
        some = plan.held_out_ids[0][: max(1, stage.micro_batch // plan.held_out_draws)]
        at = _with_plan(stage, held_out_ids=[some], held_out_draws=plan.held_out_draws)
        held_out += rows_of / len(some) * _timed(at, "sketch/held-out/b000")
    peaks.append(_peak_anew())
    products, replays = _table_products(task, plan, probes)
    building = products * _product_seconds(plan) + replays * _vector_seconds(plan, _rank(task, plan))
    taken = {"reference": plan.steps * step + ending * (len(plan.anchors) + 1),
             "probes": probes * (plan.steps * step + ending), "gradients": rows, "curvature": curvature,
             "held-out losses": held_out, "table": building}  # fmt: skip
    found = _stages(task, plan, probes, first, last, taken, peaks)
    byte = _write_seconds(store) / WRITTEN
    sketched = ("gradients", "curvature", "held-out losses", "table")  # what ends a run has been timed with its writing
    found = tuple(
        replace(s, seconds=s.seconds + (s.disk + s.passing) * byte) if s.name in sketched else s for s in found
    )
    return Preflight(found, min(default_jobs(store), available_cores()), max(plan.steps * step, 1e-9))


def _with_plan(stage: SketchStage, **changes: Any) -> SketchStage:
    """The stage with some of its plan changed."""
    return replace(stage, plan=replace(stage.plan, **changes))


def _write_seconds(store: RunStore) -> float:
    numbers = np.random.default_rng(0).integers(0, 256, WRITTEN, np.uint8)
    began = time.process_time()
    store.write("written", {"x": numbers})
    return time.process_time() - began


def _timed(stage: SketchStage, unit: str) -> float:
    """CPU seconds of a unit once it is warm."""
    stage.compute(unit)
    began = time.process_time()
    stage.compute(unit)
    return time.process_time() - began


def _product_seconds(plan: SketchPlan) -> float:
    """CPU seconds of a multiplication and addition in a product of matrices as the table is made by."""
    rows = torch.ones(PRODUCT_ROWS, min(plan.carried, 1 << 14))
    torch.mm(rows, rows.T)
    began = time.process_time()
    torch.mm(rows, rows.T)
    return (time.process_time() - began) / (PRODUCT_ROWS * rows.numel())


def _vector_seconds(plan: SketchPlan, rank: float) -> float:
    """CPU seconds of a multiplication and addition in the two products that a step of a replay makes with its group's
    curvature [rank, carried], which is read at every step, from memory where it is too large for the caches."""
    matrix = torch.ones(int(np.clip(rank, 1, max(1, VECTOR_NUMBERS // plan.carried))), plan.carried)
    vector = torch.ones(plan.carried)
    torch.mv(matrix.T, torch.mv(matrix, vector))
    began, repeats = time.process_time(), 1 + VECTOR_NUMBERS // matrix.numel()
    for _ in range(repeats):
        torch.mv(matrix.T, torch.mv(matrix, vector))
    return (time.process_time() - began) / (2 * repeats * matrix.numel())


def _own_anchors(task: Task, probes: int) -> int:
    """Anchors of a unit's own: each time that a run trains on it."""
    units = Batches(np.asarray(task.order)).index(np.asarray(task.order)[None])[0][0]
    return (1 + probes) * int(np.bincount(units).max())


def _pseudo_gradients(task: Task, plan: SketchPlan) -> np.ndarray:
    """Pseudo-gradients of training samples by group."""
    return np.bincount([int(task.group_codes[ids[0]]) for ids in plan.curvature_ids for _ in ids]) * plan.draws


def _rank(task: Task, plan: SketchPlan) -> float:
    """Directions that are kept of a group's curvature, at most and on the average."""
    return ENERGY * float(_pseudo_gradients(task, plan).mean())


def _table_products(task: Task, plan: SketchPlan, probes: int) -> tuple[float, float]:
    """Multiplications and additions of building the table, the largest terms: in products of matrices, and in replays
    of the runs, each left out."""
    m, anchors, own = plan.carried, len(plan.anchors), _own_anchors(task, probes)
    groups = _pseudo_gradients(task, plan)
    compressed = sum(n * n * (min(m, GRAM_COORDS) + 4 * n) + ENERGY * n * n * m for n in map(float, groups))
    rank, spread = ENERGY * float(groups.sum()), anchors + plan.steps * own
    products = plan.steps * float(anchors + own) ** 2 * m + spread * rank * m
    replays = probes * plan.steps * m * float(2 * (anchors + own) + 2 * rank / len(groups) + 20)
    drawn, known = sum(map(len, plan.held_out_ids)) * plan.held_out_draws, (1 + probes) * len(plan.metrics)
    held_out = plan.size * float(known) * (1 + probes) + drawn * (1 + probes) * float(m)
    return compressed + products + held_out, replays


def _stages(
    task: Task, plan: SketchPlan, probes: int, first: TrainingState, last: TrainingState, taken: dict[str, float],
    peaks: Sequence[float],
) -> tuple[Stage, ...]:  # fmt: skip
    """The stages, with CPU seconds `taken` and the peaks of what was tried: a run, gradients, curvature, losses."""
    item, m, steps = task.layout.dtype.itemsize, plan.carried, plan.steps
    used, kept = len(np.unique(task.order)), sum(a.samples for a in plan.anchors)
    losses = sum(4 * len(x) for x in task.metrics.values() if not callable(x))
    of_steps = steps * (plan.batch * 12 + len(task.layout) + 8 * 16)
    ends = len(plan.anchors) + 1
    starting, ended = (_state_bytes(s) for s in (first, last))
    weights = ended - sum(x.nbytes for x in last.moments.values())  # a probe starts where the reference does
    random = sum(x.nbytes for x in first.rng.values())
    block = plan.blocks[0][1] - plan.blocks[0][0]
    base, of_rows, of_curvature, of_losses = peaks
    run, small = steps * m * item, SHARD / 2  # gradients of a run's steps; a shard of one array

    drawn = sum(map(len, plan.curvature_ids)) * plan.draws
    pseudo = sum(map(len, plan.held_out_ids)) * plan.held_out_draws
    long = plan.size if plan.size <= WHOLE_SIZE else m
    short = 2 if plan.size > SHORT_SIZE and task.layout.dtype == torch.float32 else item
    slopes = len(plan.metrics) * (ends + probes) * plan.size * short
    gradients = steps * (ends - 1) * m * item + kept * used * (2 * m + 8)

    own = _own_anchors(task, probes)
    anchors, known = ends - 1 + own, (1 + probes) * len(plan.metrics)
    rows = steps * anchors * m
    exact = item == 8 or 4 * (2 * rows + kept * used * m) <= EXACT_BYTES
    entry, spread = (item if exact else 2), ends - 1 + steps * own
    window = (rows + kept * used * m + spread * m) * entry + drawn * (m * (8 if item == 8 else 2) + spread * item)
    table = (
        window + steps * anchors**2 * 8 + (1 + probes) * 2 * m * item + known * m * item
        + pseudo * (m * (8 if item == 8 else 2) + len(plan.metrics) * 4 + (1 + probes) * 8) + 3 * SHARD
    )  # fmt: skip
    whole = held_bytes(ends + probes, plan.size, item) if m < plan.size else 0
    return (
        Stage("reference", taken["reference"], base + (of_steps + run) / max(1, ends - 1) + ended,
              of_steps + starting + (ends - 1) * ended + ends * (random + losses + SHARD), run + (ends - 1) * small),
        Stage("probes", taken["probes"], base + of_steps + run + ended,
              probes * (of_steps + weights + losses + 1.5 * SHARD), probes * (run + small)),
        Stage("gradients", taken["gradients"], of_rows + block * m * (item + plan.batch * 2 * bool(kept)), 0.0,
              gradients + len(plan.anchors) * len(plan.blocks) * SHARD),
        Stage("curvature", taken["curvature"], of_curvature + max(map(len, plan.curvature_ids)) * plan.draws * m * 2,
              0.0, drawn * m * 2 + len(plan.curvature_ids) * SHARD),
        Stage("held-out losses", taken["held-out losses"], of_losses,
              slopes + (1 + probes) * small * bool(plan.metrics),
              pseudo * (2 * long) + len(plan.held_out_ids) * SHARD),
        # States and gradients of all runs, as they were and by unit, then with those at the anchors; the curvature; and
        # what they are read from.
        Stage("table", taken["table"],
              base + 5 * steps * own * m * item + 2 * rows * item + window + gradients + drawn * m * 6, table),
        # Mapped into memory. States of all weights are read one by one and put together.
        Stage("query", float("nan"), base + table + 2 * whole, 0.0),
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
