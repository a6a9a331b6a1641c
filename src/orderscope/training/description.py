"""The shard that says what was recorded, with what and where."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from typing import Any

import numpy as np
import torch
from torch import nn

from orderscope.store import RunStore
from orderscope.store.names import REFERENCE, TASK_SHARD
from orderscope.task import Task, require_task
from orderscope.task.fingerprint import compare
from orderscope.task.rng import seeded
from orderscope.training.segments import PREFIX, segment_name
from orderscope.training.state import require_supported


def task_shard(task: Task, store: RunStore) -> None:
    """Write `record/task`, or check that the one there is of this task. One whose recording stopped before its first
    segment was trained, since the task did not do what the loop had done, is replaced: it may have been mended.

    Args:
        task: what is recorded.
        store: the run, opened for writing.

    Raises:
        OrderscopeError: the store holds another task (the parts that differ are named), or the optimizer cannot be
            carried.
    """
    with seeded(0):
        model = task.build_model()
        optimizer = task.build_optimizer(model)
        require_supported(optimizer)
        here = environment(next(model.parameters()).device)
        if _untrained(store) and store.attrs(TASK_SHARD)["fingerprint"] != task.fingerprint():
            store.drop(store.names(f"{PREFIX}/"))
        if TASK_SHARD not in store:
            arrays = {"order": np.array(task.order), "group_codes": task.group_codes}
            store.write(TASK_SHARD, arrays, _attrs(task, model, optimizer) | {"environment": here})
            return
        require_recorded(task, store)
        if store.attrs(TASK_SHARD)["environment"] != here:
            store.log({"event": "resumed elsewhere", "environment": here})


def _untrained(store: RunStore) -> bool:
    """Whether a task is there, and nothing trained of it: at most the start of the reference."""
    return TASK_SHARD in store and set(store.names(f"{PREFIX}/")) <= {TASK_SHARD, segment_name(REFERENCE, 0)}


def require_recorded(task: Task, store: RunStore) -> None:
    """Check that a run was recorded of a task.

    Args:
        task: that is to be it.
        store: the run on disk.

    Raises:
        OrderscopeError: naming the parts in which they differ.
    """
    require_task(task)
    compare(store.attrs(TASK_SHARD)["fingerprint"], task.fingerprint())


def _attrs(task: Task, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    layout = task.layout
    held = set(layout.names)
    return {
        "fingerprint": task.fingerprint(),
        "steps": task.steps,
        "batch": task.batch_size,
        "samples": task.samples,
        "size": layout.size,
        "parameters": [
            {"name": n, "shape": list(s), "group": g}
            for n, s, g in zip(layout.names, layout.shapes, layout.group, strict=True)
        ],
        "dtype": str(layout.dtype).removeprefix("torch."),
        "frozen": [n for n, _ in model.named_parameters() if n not in held],
        "buffers": [n for n, _ in model.named_buffers()],
        "model": type(model).__name__,
        "optimizer": type(optimizer).__name__,
        "param_groups": len(optimizer.param_groups),
        "scheduler": None if task.scheduler is None else type(task.build_scheduler(optimizer)).__name__,
        "warm": bool(task.optimizer_state),
        "max_grad_norm": task.max_grad_norm,
        "metrics": {name: None if callable(m) else len(m) for name, m in task.metrics.items()},
        "metric_names": list(task.metrics),
        "group_names": list(task.group_names),
        "mapped": task.mapped,
    }


def environment(device: torch.device) -> dict[str, Any]:
    """The environment that the exact results of a run may depend on, besides the task."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "numpy", "h5py", "orderscope")},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "processor": platform.machine(),
    }


@functools.cache
def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
