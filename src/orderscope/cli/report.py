"""`orderscope report`: one HTML page about a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from orderscope.cli.options import (
    check_question,
    open_simulator,
    run_argument,
    shown,
    sound_output,
    task_option,
    threads_option,
)
from orderscope.cli.text import json_option, plain, print_json, say, size


@click.command()
@run_argument
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, callback=sound_output,
    help="The file to write, such as report.html.",
)  # fmt: skip
@click.option(
    "--metric", default=None, help="The metric that the page shows first. Default: the first metric of the task."
)
@click.option(
    "--order", "texts", multiple=True, metavar="EXPR|FILE", help="An order to show beside those queried before."
)
@task_option
@threads_option
@json_option
def report(
    run: Path, out: Path, metric: str | None, texts: Sequence[str], spec: str | None, threads: int, as_json: bool
) -> None:
    """Write one HTML page about a run: the effect of order on this model, in figures and words.

    It shows the orders queried before, what validate and positions measured, and the last proposal. It needs no
    network and no server, and the same run gives the same bytes.
    """
    check_question(run, spec, orders=texts, metrics=[] if metric is None else [metric])
    sim, told = open_simulator(run, spec, threads, quiet=as_json)
    with shown(sim, as_json) as progress:
        progress("gather what the run holds", 0, 0)
        from orderscope.report.page import write_report

        sections = write_report(sim, out, metric=metric, orders=texts, progress=progress)
    facts = {"run": str(run), "task": told, "file": str(out), "bytes": out.stat().st_size, "sections": sections}
    if as_json:
        print_json(facts)
    else:
        say(f"{plain(str(out))}: {size(facts['bytes'])}, open it in a browser")
