"""`orderscope record`: train the reference run and the probes, then sketch them."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import click

from orderscope.cli.options import noted_run, seed_option, set_threads, threads_option
from orderscope.cli.progress import doing, progress_bars
from orderscope.cli.tasks import Spec, load_task, remember_task, task_file
from orderscope.cli.text import json_option, plain, print_json, say, size
from orderscope.recording.budget import DEFAULT, LONGER, MIXED, PARTIAL
from orderscope.recording.costs import answer_words, part_runs, recording_seconds, training_seconds
from orderscope.store import RunStore
from orderscope.text import number

jobs_option = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Processes, one thread each. Default: one per core, at most eight, plus one; on an accelerator a single one.",
)


@click.command()
@click.argument("spec", metavar="TASK", type=Spec())
@click.option("--out", type=click.Path(path_type=Path), required=True, callback=noted_run, help="Directory of the run.")
@click.option(
    "--anchors",
    type=click.IntRange(min=1),
    help=f"Number of reference states at which gradients are computed; each costs a run. Default: {DEFAULT.anchors}.",
)
@click.option(
    "--probes",
    type=click.IntRange(min=0),
    help="Number of training runs under other orders, which give predictions their error bars."
    f" Default: {DEFAULT.probes}; {MIXED.probes} where batches mix groups, {PARTIAL.probes} where few of many weights"
    f" are carried, {LONGER.probes} in other long windows.",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=1),
    help="Most runs that recording may cost up to the first prediction: CPU time over that of training the window once."
    " It is spent where it reduces the error of left-out runs most.",
)
@click.option(
    "--reuse",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="A .npy file of an order, or the directory of a recording of the same task under another order: taken as a"
    " probe. Repeatable.",
)
@click.option(
    "--coords",
    type=click.IntRange(min=1),
    help="Most weights to carry (a smaller model's are all carried). Default: 16,384, or one in 256 of a large model.",
)
@click.option("--sketch/--no-sketch", default=True, help="Whether to sketch too; `orderscope sketch` can do it later.")
@jobs_option
@seed_option
@threads_option
@json_option
def record(
    spec: str, out: Path, anchors: int | None, probes: int | None, budget: float | None, reuse: tuple[Path, ...],
    coords: int | None, sketch: bool, jobs: int | None, seed: int, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Train TASK once and the probes, and store what predictions need in the directory --out.

    TASK is file.py:name or module:name: an orderscope.Task, its keyword arguments, or a function returning either.

    If it is killed at any instant and called again, it resumes and ends with the same bytes.
    """
    RunStore.check_creatable(out)
    task_file(spec, out)
    with doing(f"load torch and {spec}", quiet=as_json):
        set_threads(threads)
        task = load_task(spec, out)
        remember_task(out, spec, task)
    began = time.monotonic()
    train(task, out, as_json, anchors=anchors, probes=probes, budget=budget, coords=coords, seed=seed, sketch=sketch,
          jobs=jobs, reuse=reuse)  # fmt: skip
    tell(out, time.monotonic() - began, as_json)


def train(task: Any, out: Path, quiet: bool, **options: Any) -> None:
    """`orderscope.record` with its progress shown.

    Args:
        task: what is trained.
        out: directory of the run.
        quiet: whether no progress is shown.
        **options: of `orderscope.record`.
    """
    from orderscope.recording import record as recording

    with progress_bars(quiet=quiet) as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the command prints the same remarks afterwards
        progress("check the task", 0, 0)
        recording.record(task, out, progress=progress, **options)


def tell(run: Path, seconds: float, as_json: bool) -> None:
    """Print the contents of a recorded run.

    Args:
        run: its path.
        seconds: wall time spent.
        as_json: whether as JSON.
    """
    with doing("time a first answer", quiet=as_json):
        facts: dict[str, Any] = {**summary(run), "seconds": seconds}
    if as_json:
        print_json(facts)
    else:
        show(facts)


def show(facts: dict[str, Any]) -> None:
    """Print a `summary` and the seconds it took."""
    run, runs = facts["run"], facts["runs"]
    say(f"{plain(run)}: {len(runs)} runs trained, {size(facts['bytes'])}, in {facts['seconds']:.1f} s")
    if facts["cost"]:
        parts = ", ".join(f"{name} {number(value, 3)}" for name, value in facts["cost"].items())
        say(f"  cost in runs: {number(sum(facts['cost'].values()), 3)} ({parts})")
    if facts["budget"] is not None:
        say(f"  {facts['budget']}")
    for again in facts["trained_again"]:
        say(f"  {plain(again)}: its steps' gradients are gone, so its order was trained again")
    told = facts["seconds_of"]
    if told["answer"] is not None and (words := answer_words(**told)):
        say(f"  {words}")
    for name, value in facts["metrics"].items():
        say(f"  {plain(name)} of the reference order: {number(value, 5)}")
    if not facts["mapped"]:
        say("  gradients of single samples were computed one by one: torch.func does not support this model")
    found, planned = facts["probes"]
    if found < planned:
        say(f"  {found} of {planned} probes recorded: orderscope record again with --out {plain(str(run))}")
    if not facts["sketched"]:
        say(f"  not sketched yet: orderscope sketch {plain(str(run))}")


def summary(path: Path, *, timed: bool = True) -> dict[str, Any]:
    """A finished recording as JSON values.

    Args:
        path: the run's directory.
        timed: time a first answer too.
    """
    from orderscope.recording.spending import told_least
    from orderscope.sketching import SketchPlan, missing_units
    from orderscope.store.names import PLAN, REFERENCE, TASK_SHARD
    from orderscope.training import load_run, true_runs

    store = RunStore.open(path)
    runs = true_runs(store)
    plan = SketchPlan.read(store) if PLAN in store else None
    sketched = plan is not None and not missing_units(store, plan)
    probes = sum(f"probe-{i}" in runs for i in range(plan.probes)) if plan is not None else 0
    return {
        "run": str(path),
        "runs": runs,
        "metrics": load_run(store, REFERENCE).metrics[-1],
        "sketched": sketched,
        "mapped": store.attrs(TASK_SHARD).get("mapped", True),
        "probes": [probes, plan.probes if plan is not None else 0],
        "cost": part_runs(store),
        "seconds_of": {
            "answer": _answer_seconds(path) if sketched and timed else None,
            "run": training_seconds(store),
            "recording": recording_seconds(store),
        },
        "budget": told_least(plan) if plan is not None else None,
        "trained_again": [str(e["from"]) for e in store.journal() if e.get("event") == "trained again"],
        "bytes": sum(shard.size for shard in store.describe()),
    }


def _answer_seconds(path: Path) -> float | None:
    """CPU seconds of a first answer once the run is open; None where no loss is predicted without the model."""
    from orderscope.simulation.simulator import Simulator

    sim = Simulator(path)
    began = time.process_time()
    if not sim.losses:
        return None
    sim.predict(sim.order[::-1])
    return time.process_time() - began
