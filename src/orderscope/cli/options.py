"""Options that several verbs share, and what they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orderscope.cli import RUN
from orderscope.cli.progress import Report, doing, progress_bars
from orderscope.cli.tasks import Spec, find_task, shun, task_file
from orderscope.errors import unknown_metric
from orderscope.files import check_output
from orderscope.store import RunStore
from orderscope.store.names import TASK_SHARD

if TYPE_CHECKING:
    from orderscope.simulation.simulator import Simulator

NOT_NEEDED = "not needed for held-out losses"


def noted_run(ctx: click.Context, param: click.Parameter, value: Path) -> Path:
    """Tell the group which run a verb works on; from now on nothing is imported from inside it."""
    ctx.meta[RUN] = value
    shun(value)
    return value


def sound_output(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """See that an answer's file can be written, before anything is computed."""
    if value is not None:
        check_output(value)
    return value


run_argument = click.argument("run", type=click.Path(path_type=Path), callback=noted_run)
task_option = click.option(
    "--task", "spec", type=Spec(), metavar="FILE.py:NAME",
    help="The recorded task, as file.py:name or module:name. Default: where it was when you recorded the run.",
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


def check_question(
    run: Path, spec: str | None = None, *, orders: Sequence[str] = (), metrics: Sequence[str] = ()
) -> None:
    """Check what can be checked of a question without torch, so that a slip ends the command at once.

    Args:
        run: its path.
        spec: of the task, file.py:name or module:name; None where none is named.
        orders: order expressions.
        metrics: names of metrics.

    Raises:
        OrderscopeError: an order, a metric or the file of the task is wrong.
        IncompleteRun: nothing was recorded yet.
    """
    from orderscope.answers.asked import check_order_text

    store = RunStore.open(run)
    if spec is not None:
        task_file(spec, run)
    if not orders and not metrics:
        return
    known = list(store.attrs(TASK_SHARD)["metric_names"])
    for name in metrics:
        if name not in known:
            raise unknown_metric(name, known)
    for text in orders:
        check_order_text(store, text)


def open_simulator(
    run: Path, spec: str | None, threads: int, *, with_task: bool = True, quiet: bool = False
) -> tuple[Simulator, str]:
    """The simulator of a run, with its task where there is one, and what to print about the task. Raises as both.

    Args:
        run: the run's directory or packed file.
        spec: where its task is, FILE:NAME; None for what the run remembers.
        threads: of torch.
        with_task: look for the task also where none is named.
        quiet: as for `progress_bars`.
    """
    RunStore.open(run)  # a path that holds no run is refused before torch is loaded
    with doing(f"open {run}", quiet=quiet):
        set_threads(threads)
        from orderscope.simulation.simulator import Simulator

        task, told = find_task(run, spec) if with_task or spec is not None else (None, NOT_NEEDED)
        return Simulator(run, task), told


@contextmanager
def shown(sim: Simulator, quiet: bool = False) -> Iterator[Report]:
    """Progress of what a simulator is asked, its evaluations of the model too.

    Args:
        sim: whose `progress` is set meanwhile.
        quiet: as for `progress_bars`.
    """
    with progress_bars(quiet) as progress:
        sim.progress = progress
        try:
            yield progress
        finally:
            sim.progress = None


def model_run_for(run: Path, metrics: Sequence[str]) -> list[str]:
    """Metrics of a question for which the model is run: all that are no held-out losses.

    Args:
        run: its path.
        metrics: names; none stands for the held-out losses, or for all metrics where there are no such losses.
    """
    described = RunStore.open(run).attrs(TASK_SHARD)["metrics"]
    others = [name for name, rows in described.items() if rows is None]
    if metrics:
        return [name for name in metrics if name in others]
    return others if len(others) == len(described) else []
