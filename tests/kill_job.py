"""What the killed child processes of tests/record/test_kills.py do."""

from __future__ import annotations

from multiprocessing.synchronize import Event
from pathlib import Path

import orderscope as osc
from orderscope.recording.runs import record_run
from orderscope.store import RunStore
from orderscope.training import task_shard
from tasks_tiny import char


def record(path: Path, ready: Event) -> None:
    task = osc.Task(**char(steps=24))
    ready.set()
    with RunStore.create(path) as store:
        task_shard(task, store)
        record_run(task, store, "reference", task.order, range(0, 25, 3))
        record_run(task, store, "probe-0", task.order[::-1], range(0, 25, 6))
