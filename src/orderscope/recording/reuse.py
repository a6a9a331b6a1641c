"""Runs that there are anyway, taken as probes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orderscope.errors import IncompleteRun, OrderscopeError
from orderscope.loops import recorded
from orderscope.loops.legs import has_loop
from orderscope.orders.checks import check_order
from orderscope.orders.npy import load_array
from orderscope.recording.pieces import METRICS_AT
from orderscope.recording.runs import run_plan
from orderscope.sketching import SketchPlan
from orderscope.store import RunStore
from orderscope.store.names import REFERENCE, REUSED, TASK_SHARD
from orderscope.task import Task
from orderscope.training import has_gradients, load_run
from orderscope.training.segments import segment_name, write_segment

PARTS = ("order", "groups")  # parts of a task's fingerprint in which a run that is reused may differ


@dataclass(frozen=True)
class Reused:
    """Orders that become the first probes.

    Args:
        orders: sample ids, [steps, batch] each.
        sources: for each the recording that it is the reference order of; None for others.
    """

    orders: list[np.ndarray]
    sources: list[RunStore | None]


def reused_orders(task: Task, store: RunStore, given: Sequence[Any]) -> Reused:
    """The orders of what was given, each once; those of an earlier call where nothing is given now.

    Args:
        task: what is trained.
        store: the run on disk.
        given: arrays [steps, batch], .npy files of them, or directories of older recordings.

    Raises:
        OrderscopeError: one that is no order of this task, a run of another task, or others than an earlier call had.
    """
    found: list[np.ndarray] = []
    sources: list[RunStore | None] = []
    for item in given:
        for order, source in _orders(task, item):
            if not np.array_equal(order, task.order) and not any(np.array_equal(order, x) for x in found):
                found.append(order)
                sources.append(source)
    if REUSED in store:
        before = list(store.read(REUSED)["orders"])
        same = len(before) == len(found) and all(np.array_equal(a, b) for a, b in zip(before, found, strict=True))
        if given and not same:
            raise OrderscopeError(
                f"reuse= with {len(found)} orders that are not the {len(before)} of the recording in {store.path}",
                "those it was begun with, or none",
                "leave out reuse=, or record into another directory",
            )
        return Reused(before, sources or [None] * len(before))
    if found:
        store.write(REUSED, {"orders": np.stack(found)})
    return Reused(found, sources)


def take_over(store: RunStore, source: RunStore, name: str, order: np.ndarray, coords: Tensor | None) -> bool:
    """Make the reference run of another recording the run `name` of this one, if the gradients of its steps are still
    there on the same coordinates; they are dropped once a table is built. Returns: whether it could be.

    Args:
        store: the new run, which is written to.
        source: the older run, which is read.
        name: what it is called in the new run; in the older one it is the reference.
        order: what it trained, in sample ids of the new run, [steps, batch].
        coords: on which this recording keeps gradients.
    """
    if segment_name(name, 0) in store:
        return True
    try:
        run = load_run(source, REFERENCE) if has_gradients(source, REFERENCE) else None
        theirs = SketchPlan.read(source).coordinates.indices
    except IncompleteRun:
        return False
    same = theirs is None if coords is None else theirs is not None and torch.equal(theirs, coords)
    if run is None or run.gradient is None or not same:
        return False
    last = len(run.boundaries) - 1
    ends = [0, int(run.boundaries[-1])]
    held_out = {
        key: torch.from_numpy(value)
        for key, value in source.read(segment_name(REFERENCE, last)).items()
        if key.startswith("metric:")
    }
    rows = {"order": torch.from_numpy(order), "loss": run.loss, "grad_norm": run.grad_norm, "has_grad": run.has_grad,
            "hyper": torch.stack(list(run.hyper.values()), dim=1), "gradient": run.gradient}  # fmt: skip
    plan = run_plan(order, ends, coords, METRICS_AT)
    for index, boundary in ((0, 0), (1, last)):
        attrs = {"run": name, "index": index, "start": 0, "stop": ends[index], "boundaries": ends, "plan": plan,
                 "metrics": run.metrics[last] if index else {}, "hyper": list(run.hyper) if index else []}  # fmt: skip
        state = replace(run.state(boundary), rng={})
        write_segment(
            store, name, index, {**rows, **held_out} if index else {}, state, attrs,
            whole=index == 0, like=None if index else segment_name(REFERENCE, 0),
        )  # fmt: skip
    store.log({"event": "taken over", "run": name, "from": str(source.path)})
    return True


def with_reused(given: Sequence[np.ndarray], drawn: Sequence[np.ndarray], *, growing: bool) -> list[np.ndarray]:
    """Orders of the probes: those given first, then drawn ones, as many in all as were drawn.

    Args:
        given: orders of runs that were taken over, [steps, batch] each.
        drawn: orders drawn for the probes, [steps, batch] each.
        growing: whether what was drawn first stays first.
    """
    return [*given, *drawn[: len(drawn) - len(given)]] if growing or given else list(drawn)


def _orders(task: Task, item: Any) -> list[tuple[np.ndarray, RunStore | None]]:
    if not isinstance(item, (str, os.PathLike)):
        return [(_checked(task, item, "an array"), None)]
    path = Path(item).expanduser()
    if path.suffix == ".npy" or (path.is_file() and not RunStore.is_there(path)):
        return [(_checked(task, order, str(path)), None) for order in _stacked(load_array(str(path), "an order"))]
    if not RunStore.is_there(path):
        raise OrderscopeError(
            f"reuse={str(path)!r}, where no run is",
            "an array [steps, batch], a .npy file, or the directory of a recording",
            "correct reuse=",
        )
    other = RunStore.open(path)
    if has_loop(other):
        return [(_checked(task, recorded(path).order, str(path)), None)]
    if TASK_SHARD not in other:
        raise OrderscopeError(
            f"reuse={str(path)!r}, in which nothing was recorded", "a recording", "leave it out, or record it first"
        )
    mine, theirs = task.fingerprint(), other.attrs(TASK_SHARD)["fingerprint"]
    differ = [part for part in mine if part not in PARTS and mine[part] != theirs.get(part)]
    if differ:
        raise OrderscopeError(
            f"reuse={str(path)!r}, a run with another {', '.join(differ)}",
            "a run of the same model, data and optimizer under another order",
            "leave it out: it tells nothing of this task",
        )
    return [(_checked(task, other.read(TASK_SHARD)["order"], f"{path}, {REFERENCE}"), other)]


def _stacked(array: np.ndarray) -> np.ndarray:
    return array if array.ndim == 3 else array[None]


def _checked(task: Task, order: Any, where: str) -> np.ndarray:
    try:
        return check_order(order, task.order, samples=task.samples)
    except OrderscopeError as error:
        raise OrderscopeError(f"reuse= of {where}: {error.found}", error.expected, error.todo) from error
