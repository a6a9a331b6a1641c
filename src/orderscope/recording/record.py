"""Record a task: train the reference order and the probes, then sketch."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from orderscope.engine.driven import check_loop, check_reached
from orderscope.engine.loading import build_table, missing_runs, table_number
from orderscope.errors import OrderscopeError, check_whole
from orderscope.recording.choices import (
    ANCHORS,
    LEAST_ROWS,
    MIXED_ROWS,
    MOST_ROWS,
    allotted,
    coordinates_of,
    growing_orders,
    mixed_batches,
    partially_carried,
    probe_orders,
    sketch_plan,
    spaced,
)
from orderscope.recording.costs import cpu_seconds, training_seconds
from orderscope.recording.reuse import Reused, reused_orders, take_over, with_reused
from orderscope.recording.runs import record_run
from orderscope.recording.spending import Purse, bought, told_least
from orderscope.recording.work import Piece, Sketching, Training, complete, further, share, sketching
from orderscope.sketching import (
    Coordinates,
    SketchPlan,
    SketchStage,
    draw_coordinates,
    next_plan,
    require_probes,
    write_split,
)
from orderscope.store import RunStore
from orderscope.store.names import FURTHER, PLAN, REFERENCE, SPLIT
from orderscope.task import Task, require_task
from orderscope.training import has_gradients, load_run, require_recorded, task_shard, true_runs

BY_MEASURING = False  # whether a budget is kept to where none is given
IN_PROCESS = 0.4  # seconds of training below which starting processes costs more than they save
Progress = Callable[[str, int, int], None]


def record(
    task: Task,
    path: str | os.PathLike[str],
    *,
    anchors: int | None = None,
    probes: int | None = None,
    budget: float | None = None,
    sample_anchors: int | None = None,
    coords: int | None = None,
    curvature_rows: int | None = None,
    seed: int = 0,
    sketch: bool = True,
    jobs: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
    reuse: Sequence[Any] = (),
) -> RunStore:
    """Train the reference order and the probe orders, then sketch them. An interrupted call resumes.

    Args:
        task: the task to train.
        path: directory of the run.
        anchors: number of states of the reference run, including the last, at which every batch's gradient is computed;
            two by default, after a third of the steps and at the end. One costs a run.
        probes: number of training runs under other orders; by default eight, nine over more than 256 steps, or twelve
            where few of many weights are carried. Each gradient of a batch that such a run trains on is a further
            anchor at no cost, near the queries; held-out losses are estimated from their values where probes end; and
            every prediction is calibrated on them.
        budget: most runs that recording may cost, including the first prediction: CPU seconds of all
            processes over those of training the window once. It replaces `anchors`, `probes` and `curvature_rows`: it
            is spent where it reduces the error of left-out runs most, as measured during recording; see
            `orderscope.recording.budget`.
            If the smallest recording costs more, the smallest is made. With `sketch=False` nothing can be measured:
            the budget then counts gradient evaluations in runs, divided like the defaults.
        sample_anchors: at how many anchors single samples' gradients are kept, for orders that regroup samples; by
            default as many as fit in 128 MiB, two at most, one at least where it fits in a gigabyte.
        coords: most coordinates to carry; by default 16,384, twice as many where batches mix groups, or one in 256 of
            the weights where that is more, 131,072 at most; fewer, 8,192 at least, where single samples' gradients
            would take more than 128 MiB. All P where the model is smaller.
        curvature_rows: pseudo-gradients to draw; by default four passes over the samples, or six where batches mix
            groups (the spectrum is broad there), or one where few of many weights are carried; 512 at least, and 4,096
            at most, or 4,608 where batches mix groups.
        seed: seed of probes, coordinates and curvature.
        sketch: whether to sketch too; `osc.sketch` does it later.
        jobs: processes that train probes and sketch, one thread each; by default one a core and one more on CPUs.
            The bytes are the same for any.
        executor: a `concurrent.futures.Executor` to use instead of processes, of dask, submitit, mpi4py, ...; its
            workers must see `path`. The bytes are the same.
        progress: called as `progress(stage, done, total)`.
        reuse: orders that become the first probes, because they were trained before or are of interest: arrays [steps,
            batch], .npy files, or directories of `record` or `Recorder`, of the same task under other orders. Runs of
            `record` whose steps' gradients are still there (`sketch=False`) are taken over and cost nothing; of others
            the order is trained again.

    Returns:
        The finished run, open for reading.

    Raises:
        OrderscopeError: another task was recorded there, or training or sketching fails; finished parts are kept.
    """
    require_task(task)
    began = cpu_seconds()
    coords = coordinates_of(task) if coords is None else coords
    counts = {"anchors": anchors, "probes": probes, "curvature_rows": curvature_rows}
    measuring = sketch and (budget is not None or BY_MEASURING) and all(n is None for n in counts.values())
    if measuring:
        _check_budget(budget)
    else:
        anchors, probes, curvature_rows = allotted(task, anchors, probes, curvature_rows, budget)
    _check_counts(anchors=(anchors, 1), probes=(probes, 0), sample_anchors=(sample_anchors, 0), coords=(coords, 1),
                  curvature_rows=(curvature_rows, 1), jobs=(jobs, 1))  # fmt: skip
    _check_precision(task)
    coordinates = draw_coordinates(task.layout.size, coords, seed)
    with RunStore.create(path) as store:
        task_shard(task, store)
        reused = reused_orders(task, store, reuse)
        given = reused.orders
        if PLAN in store:  # an interrupted recording keeps its settings
            before = SketchPlan.read(store)
            budget = before.measured.get("asked") if before.grows else budget
            if measuring and not before.grows:
                anchors, probes, curvature_rows = allotted(task, None, None, None, None)
            measuring = before.grows
        purse = Purse(store, began, budget)
        ends = spaced(task.steps, ANCHORS if measuring else anchors or 1)
        record_run(task, store, REFERENCE, task.order, ends, coords=coordinates.indices,
                   progress=_stage(progress, "train the reference"))  # fmt: skip
        built = table_number(store) is not None
        if not built:
            check_loop(store)
            check_reached(store, coordinates)
        if PLAN not in store:
            if measuring:
                plan = _measured_plan(task, purse, ends, sample_anchors, coords, seed, len(given))
            else:
                probes = max(probes or 0, len(given))
                plan = sketch_plan(task, ends, sample_anchors, coords, curvature_rows or 1, seed, probes)
            store.write(PLAN, {}, plan.attrs())
        plan = SketchPlan.read(store)
        if not built:
            _take_over(store, reused, coordinates)
        if SPLIT not in store:
            write_split(store, SketchStage(task, store, plan).split())
        jobs = _few_jobs(store) if jobs is None and executor is None else jobs
        while True:
            # Those that were planned belong to the recording, also where fewer are wanted now.
            wanted = plan.probes if measuring else max(probes or 0, plan.probes)
            fresh = _fresh_orders(task, plan, wanted, seed, growing=measuring)
            orders = with_reused(given, fresh, growing=measuring)
            pieces: list[Piece] = [Training(f"probe-{i}", x, (0, task.steps)) for i, x in enumerate(orders)]
            later = {*plan.known_units(), *plan.held_out_units()} if plan.held_out_ids else set[str]()
            pieces += [piece for piece in sketching(store) if piece.name not in later] if sketch else []
            complete(task, store, pieces, jobs=jobs, executor=executor, progress=_stage(progress, "probes and sketch"))
            for run in (f"probe-{i}" for i in range(wanted)):
                if has_gradients(store, run):  # not yet in the table
                    check_reached(store, coordinates, run)
            if plan.settled or built:
                break
            complete(task, store, sketching(store), jobs=jobs, executor=executor, progress=_stage(progress, "sketch"))
            plan = bought(store, plan, purse, MIXED_ROWS)
            store.write(next_plan(store), {}, plan.attrs())
        if sketch:
            _finish(task, store, jobs, executor, progress)
        if not built:
            store.log({"event": "recorded", "cpu": cpu_seconds() - began})
            if budget is not None and (line := told_least(plan)) is not None:
                warnings.warn(line, stacklevel=2)
    return RunStore.open(path)


def _measured_plan(
    task: Task,
    purse: Purse,
    ends: list[int],
    sample_anchors: int | None,
    coords: int,
    seed: int,
    given: int,
) -> SketchPlan:
    """The plan that a budget begins with; it grows as long as what is bought is worth it."""
    mixed = mixed_batches(task)
    used, most_rows = len(np.unique(task.order)), MIXED_ROWS if mixed else MOST_ROWS
    most = max(1, most_rows // used)
    held, rests, settled = purse.first(mixed=mixed, partial=partially_carried(task), most_passes=most)
    rows = int(np.clip(held.curvature * used, LEAST_ROWS, most_rows))
    plan = sketch_plan(task, ends, sample_anchors, coords, rows, seed, max(held.probes, given))
    settled = settled or not plan.metrics  # without held-out losses, errors cannot be measured without the model
    return replace(plan, grows=True, settled=settled, measured=rests)


def _fresh_orders(task: Task, plan: SketchPlan, count: int, seed: int, *, growing: bool) -> list[np.ndarray]:
    """Orders of the probes that nobody gave."""
    if growing:
        return growing_orders(task, count, seed)
    regroup = task.order.shape[1] > 1 and any(anchor.samples for anchor in plan.anchors)
    return probe_orders(task, count, seed, regroup=regroup)


def _take_over(store: RunStore, reused: Reused, coordinates: Coordinates) -> None:
    """Make runs that were recorded elsewhere probes of this one; those that do not fit are trained again."""
    for i, (order, source) in enumerate(zip(reused.orders, reused.sources, strict=True)):
        if source is not None and not take_over(store, source, f"probe-{i}", order, coordinates.indices):
            store.log({"event": "trained again", "run": f"probe-{i}", "from": str(source.path)})


def _check_budget(budget: float | None) -> None:
    if budget is not None and not 1 <= budget < math.inf:
        raise OrderscopeError(f"budget={budget!r} runs", "at least 1", "raise budget=, or leave it out")


def _finish(
    task: Task, store: RunStore, jobs: int | None, executor: Executor | None, progress: Progress | None
) -> None:
    """What is missing of the sketch, then the table, with every true run that is there."""
    complete(task, store, sketching(store), jobs=jobs, executor=executor, progress=_stage(progress, "sketch"))
    began, cpu = time.perf_counter(), time.process_time()
    if progress is not None:
        progress("build the table", 0, 1)
    if table_number(store) is None:
        build_table(store)
        store.log({"event": "table", "seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu})
    else:
        _extend(task, store)
    if progress is not None:
        progress("build the table", 1, 1)


def _extend(task: Task, store: RunStore) -> None:
    """Add the true runs that the table lacks. For a run of an earlier version the ends of its first runs
    become known states too."""
    if missing_runs(store) and SketchPlan.read(store).metrics:
        units = [f"sketch/known/{run}" for run in true_runs(store)]
        known = [Sketching(unit) for unit in units if unit not in store]
        complete(task, store, known, jobs=1, event="known states finished")
    build_table(store)


def _few_jobs(store: RunStore) -> int | None:
    """One process where a run trains so quickly that starting others would cost more than it saves."""
    run = training_seconds(store)
    return 1 if run is not None and run < IN_PROCESS else None


def sketch(
    task: Task,
    path: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> RunStore:
    """Compute the missing units of a recorded run's sketch, and build its table.

    Args:
        task: what was recorded.
        path: directory of the run.
        jobs: processes, as given to `record`.
        executor: does the work elsewhere, as given to `record`.
        progress: called as `progress(stage, done, total)`.

    Raises:
        OrderscopeError: another task was recorded there, or as `record`.
        IncompleteRun: probes are missing, whose ends are part of it.
    """
    require_task(task)
    with RunStore.create(path) as store:
        task_shard(task, store)
        require_probes(store, SketchPlan.read(store))
        _finish(task, store, jobs, executor, progress)
    return RunStore.open(path)


def sketch_share(
    task: Task, path: str | os.PathLike[str], worker: int, workers: int, *, progress: Progress | None = None
) -> None:
    """One worker's share of a sketch: every `workers`-th unit, from number `worker`.

    Any number of such processes work side by side, on any machines that see `path`: they take no lock and need not know
    of each other. `osc.sketch` then makes what they left part of the run, and computes what they did not.

    Args:
        task: what was recorded.
        path: directory of the run.
        worker: which one, from 0.
        workers: how many there are.
        progress: called as `progress(stage, done, total)`.

    Raises:
        OrderscopeError: another task was recorded there, or no such worker.
        IncompleteRun: probes are missing.
    """
    if not 0 <= worker < workers:
        raise OrderscopeError(f"worker {worker} of {workers}", f"a number from 0 to {workers - 1}", "correct it")
    store = RunStore.open(path)
    require_recorded(task, store)
    require_probes(store, SketchPlan.read(store))
    share(task, store, worker, workers, _stage(progress, f"sketch, share {worker} of {workers}"))


def add_runs(
    task: Task,
    path: str | os.PathLike[str],
    orders: Sequence[np.ndarray],
    prefix: str,
    *,
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    tell: bool = True,
) -> dict[str, np.ndarray]:
    """Train further orders and add them to a recorded run: a simulator opened afterwards returns their true values,
    uses their states as anchors of their batches, and is calibrated on them too.

    Args:
        task: what was recorded.
        path: directory of the run.
        orders: [n, steps, batch]. One that is recorded already is not trained again.
        prefix: "validated-" or "confirmed-"; a number makes the name.
        jobs: processes; the bytes are the same for any.
        progress: called as `progress(done, new)`.
        tell: whether to add them to the table, so that simulators use them. Rebuilding the table costs some
            ten runs for any number of orders, so add orders trained one by one with the last, or with a call without
            orders.

    Returns:
        True final metrics, name -> float64 [n].

    Raises:
        OrderscopeError: another task was recorded there, the run is being written to, or an order diverges.
    """
    if prefix not in FURTHER:
        raise OrderscopeError(f"prefix {prefix!r}", "one of " + ", ".join(FURTHER), "correct it")
    with RunStore.create(path) as store:
        task_shard(task, store)
        known = {load_run(store, run).order.tobytes(): run for run in true_runs(store)}
        new = {order.tobytes(): order for order in orders if order.tobytes() not in known}
        pieces = further(store, prefix, list(new.values()))
        complete(task, store, pieces, jobs=jobs, progress=progress, event="further runs finished")
        if tell and table_number(store) is not None:
            _extend(task, store)
        known |= {key: piece.name for key, piece in zip(new, pieces, strict=True)}
        found = [load_run(store, known[order.tobytes()]).metrics[-1] for order in orders]
    return {name: np.array([m[name] for m in found], dtype=np.float64) for name in task.metrics}


def _check_precision(task: Task) -> None:
    if task.layout.dtype not in (torch.float32, torch.float64):
        raise OrderscopeError(
            f"weights of dtype {task.layout.dtype}",
            "float32 or float64 master weights",
            "keep the weights in float32 and compute in lower precision inside the loss (torch.autocast)",
        )


def _check_counts(**counts: tuple[int | None, int]) -> None:
    for name, (value, least) in counts.items():
        if value is None:
            continue
        check_whole(least, **{name: value})


def _stage(progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    report: Any = progress
    return lambda done, total: report(stage, done, total)
