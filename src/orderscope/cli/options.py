"""Options that several verbs share, and what they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from orderscope.cli.tasks import Spec, find_task

if TYPE_CHECKING:
    from orderscope.simulator import Simulator

run_argument = click.argument("run", type=click.Path(path_type=Path))
task_option = click.option(
    "--task", "spec", type=Spec(), metavar="FILE.py:NAME",
    help="The recorded task, as file.py:name or module:name. Default: where it was when the run was recorded.",
)  # fmt: skip
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Threads of torch. With more than one, reruns may differ in the last bits, and small models are slower.",
)
seed_option = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of random draws.")


def set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def open_simulator(run: Path, spec: str | None, threads: int) -> tuple[Simulator, str]:
    """The simulator of a run, with its task where there is one, and what to tell about the task. Raises as both."""
    from orderscope.store import RunStore

    RunStore.open(run)  # a path that holds no run is told before torch is loaded
    set_threads(threads)
    from orderscope.simulator import Simulator

    task, told = find_task(run, spec)
    return Simulator(run, task), told
