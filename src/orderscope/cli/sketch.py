"""`orderscope sketch`: compute what is missing of a run's sketch."""

from __future__ import annotations

import time
from pathlib import Path

import click

from orderscope.cli.options import run_argument, set_threads, task_option, threads_option
from orderscope.cli.progress import progress_bars
from orderscope.cli.record import tell
from orderscope.cli.tasks import find_task, need_task
from orderscope.cli.text import json_option
from orderscope.store import RunStore


@click.command()
@run_argument
@task_option
@threads_option
@json_option
def sketch(run: Path, spec: str | None, threads: int, as_json: bool) -> None:
    """Compute what is missing of a recorded run's sketch: gradients at the anchors, curvature, the metrics.

    `record` does this too; call it after `record --no-sketch`, or to go on after an interruption.
    """
    RunStore.open(run)
    set_threads(threads)
    from orderscope import recording

    task = need_task(*find_task(run, spec))
    began = time.monotonic()
    with progress_bars(quiet=as_json) as progress:
        recording.sketch(task, run, progress=progress)
    tell(run, time.monotonic() - began, as_json)
