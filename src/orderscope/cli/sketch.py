"""`orderscope sketch`: compute what is missing of a run's sketch."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import Any

import click

from orderscope.cli.options import check_question, run_argument, set_threads, task_option, threads_option
from orderscope.cli.progress import doing, progress_bars
from orderscope.cli.record import jobs_option, tell
from orderscope.cli.tasks import find_task, need_task
from orderscope.cli.text import json_option, plain, print_json, say
from orderscope.store import RunStore
from orderscope.text import number

FROM_ENVIRONMENT = (("RANK", "WORLD_SIZE"), ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"))
SCRIPT = """#!/bin/bash
#SBATCH --job-name=orderscope-sketch
#SBATCH --array=0-{last}
#SBATCH --cpus-per-task=1
export OMP_NUM_THREADS=1
orderscope sketch {run} --worker
# When all have ended, one call makes what they left part of the run, and computes what is missing:
#   orderscope sketch {run}
"""


class Worker(click.ParamType):
    """`i/n`, or nothing where the environment says both."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        text = value or next((f"{os.environ[i]}/{os.environ[n]}" for i, n in FROM_ENVIRONMENT
                              if i in os.environ and n in os.environ), "")  # fmt: skip
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            names = " or ".join("/".join(pair) for pair in FROM_ENVIRONMENT)
            self.fail(f"{text!r} is not i/n with 0 <= i < n, such as 0/4; without a value {names} is read", param, ctx)
        return int(index), int(count)


@click.command()
@run_argument
@task_option
@jobs_option
@click.option("--worker", type=Worker(), is_flag=False, flag_value="", metavar="[i/n]",
              help="Compute only share i of n, beside the other workers; a call without --worker gathers the shares. "
              "Without a value it is read from RANK/WORLD_SIZE (torchrun) or the SLURM array.")  # fmt: skip
@click.option("--plan", "show", is_flag=True, help="Print the units and a SLURM array script, and compute nothing.")
@threads_option
@json_option
def sketch(
    run: Path, spec: str | None, jobs: int | None, worker: tuple[int, int] | None, show: bool, threads: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Compute what is missing of a recorded run's sketch: gradients at the anchors, curvature, held-out losses.

    `record` does this too; call it after `record --no-sketch`, or to go on after an interruption.
    """
    store = RunStore.open(run)
    if show:
        tell_plan(store, as_json)
        return
    check_question(run, spec)
    with doing(f"load torch and the task of {run}", quiet=as_json):
        set_threads(threads)
        from orderscope.recording import record as recording

        task = need_task(*find_task(run, spec))
    began = time.monotonic()
    with progress_bars(quiet=as_json) as progress:
        if worker is not None:
            recording.sketch_share(task, run, *worker, progress=progress)
        else:
            recording.sketch(task, run, jobs=jobs, progress=progress)
    if worker is None:
        tell(run, time.monotonic() - began, as_json)
    elif as_json:
        print_json({"run": str(run), "worker": worker[0], "workers": worker[1], "seconds": time.monotonic() - began})
    else:
        say(f"share {worker[0]} of {worker[1]} is done; `orderscope sketch {plain(str(run))}` gathers the shares")


def tell_plan(store: RunStore, as_json: bool) -> None:
    """Print what a sketch is made of. Raises: IncompleteRun where nothing was planned yet."""
    from orderscope.sketching import SketchPlan, missing_units

    plan = SketchPlan.read(store)
    missing = set(missing_units(store, plan))
    units = [{"unit": unit, "done": unit not in missing or store.is_left(unit)} for unit in plan.units()]
    script = SCRIPT.format(run=shlex.quote(str(store.path)), last=min(len(units), 64) - 1)
    if as_json:
        print_json({"units": units, "cost": plan.cost(), "script": script})
        return
    for unit in units:
        say(f"{'done' if unit['done'] else 'to do'}  {unit['unit']}")
    costs = ", ".join(f"{part} {number(runs, 3)}" for part, runs in plan.cost().items())
    say(f"\ngradient evaluations in runs: {costs}\n")
    say(script, nl=False, whole=True)
