"""`orderscope validate`: train unseen orders and compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from orderscope.answers.stored import number_of
from orderscope.cli.layout import natural_width
from orderscope.cli.options import (
    check_question,
    open_simulator,
    run_argument,
    seed_option,
    shown,
    task_option,
    threads_option,
)
from orderscope.cli.table import print_table
from orderscope.cli.tasks import need_task
from orderscope.cli.text import figures, json_option, plain, print_json, say, truth, width
from orderscope.text import number

SCORES = ("spearman", "pearson", "mae_ratio", "coverage", "sign", "sigma_order", "noise_floor")


@click.command()
@run_argument
@click.option(
    "--orders", type=click.IntRange(min=2), default=16, show_default=True, help="Orders to train; one run each."
)
@click.option("--metric", "metrics", multiple=True, help="Only this metric; may be given several times.")
@seed_option
@task_option
@threads_option
@json_option
def validate(
    run: Path, orders: int, metrics: Sequence[str], seed: int, spec: str | None, threads: int, as_json: bool
) -> None:
    """Train orders that the run has not seen, and compare the results with the predictions.

    \b
    spearman     rank correlation of predicted and true values
    pearson      linear correlation of predicted and true values
    mae_ratio    mean absolute error, as a share of what a constant guess gets
    coverage     how often the truth lay inside the 90 % interval
    sign         of all pairs of orders, how often the better one was named
    sigma_order  standard deviation of the true values
    noise_floor  the same with the order unchanged, the samples of each batch
                 shuffled

    What is trained is kept in the run: later commands and the report use it.
    """
    check_question(run, spec, metrics=metrics)
    sim, told = open_simulator(run, spec, threads, quiet=as_json)
    need_task(sim.task, told)
    facts = {"run": str(run), "task": told, **check(sim, orders=orders, metrics=metrics, seed=seed, quiet=as_json)}
    if as_json:
        print_json(facts)
    else:
        show(facts)


def check(sim: Any, *, orders: int, metrics: Sequence[str], seed: int, quiet: bool) -> dict[str, Any]:
    """Train unseen orders and compare them with their predictions.

    Args:
        sim: the run, opened with its task.
        orders: how many.
        metrics: names; all if empty.
        seed: of the orders.
        quiet: whether no progress is shown.

    Returns:
        What they cost, and the measures of every metric, as JSON values.
    """
    import orderscope
    from orderscope.answers.stored import json_value

    wanted: Any = list(metrics) or None
    with shown(sim, quiet) as progress:
        progress("draw unseen orders", 0, 0)
        found = orderscope.validate(sim, orders=orders, seed=seed, metric=wanted, progress=progress)
    names = list(found.true)
    return {"orders": len(found.orders), "cost": json_value(found.cost)} | {
        "metrics": {
            name: {key: json_value(getattr(found, key)[name]) for key in (*SCORES, "predicted", "error", "true")}
            for name in names
        }
    }


def show(facts: dict[str, Any]) -> None:
    """Print the result of `check`, with the name of the run."""
    spent = f"trained, {number(facts['cost'], 3)} runs spent" if facts["cost"] else "that had been trained before"
    say(f"{plain(facts['run'])}: {facts['orders']} unseen orders {spent}\n")
    rows = [
        [name, *("" if scores[key] is None else number(scores[key], 2) for key in SCORES)]
        for name, scores in facts["metrics"].items()
    ]
    table = [["metric", *SCORES], *rows]
    if natural_width(table) > width():  # long metric names: print one column for each metric
        table = [list(column) for column in zip(*table, strict=True)]
    print_table(table[0], table[1:])
    for name, scores in facts["metrics"].items():
        if (ratio := number_of(scores["mae_ratio"])) >= 1:
            times = f"{number(ratio, 2)} times as much as a constant guess"
            say(f"\n{plain(name)}: on these orders predictions err {times}:")
            say("  do not choose an order by them; docs/untrusted.md says what may help")
    for name, scores in facts["metrics"].items():
        say()
        errors = [number_of(e) for e in scores["error"]]
        lines = zip(scores["predicted"], errors, scores["true"], strict=True)
        print_table(
            ["", name, "error", "true"],
            [[str(i), *figures(p, e), truth(t, e)] for i, (p, e, t) in enumerate(lines)],
        )
