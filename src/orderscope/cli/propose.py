"""`orderscope propose`: search for a better order, and confirm it by training it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from orderscope.answers.stored import because, number_of
from orderscope.cli.kept import end, keep, try_writing
from orderscope.cli.options import (
    check_question,
    open_simulator,
    run_argument,
    seed_option,
    shown,
    sound_output,
    task_option,
    threads_option,
)
from orderscope.cli.query import NO_EFFECT, UNTRUSTED
from orderscope.cli.spoken import as_options
from orderscope.cli.table import print_table
from orderscope.cli.text import columns, figures, json_option, plain, print_json, say, signed, true_change
from orderscope.files import written
from orderscope.text import number

SHOWN = 12


@click.command()
@run_argument
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME[=WEIGHT]",
    help="Metric to improve. Default: the first metric of the task. Several: their weighted sum if weights are given, "
    "otherwise a Pareto front.",
)
@click.option("--maximize", is_flag=True, help="Maximize the metric instead of minimizing it.")
@click.option(
    "--constraint",
    "constraints",
    multiple=True,
    metavar="RULE",
    help="Constraint on orders: after:GROUP:STEP, before:GROUP:STEP, share:GROUP:LEAST-MOST:WINDOW or fixed:STEPS.",
)
@click.option(
    "--schedules", is_flag=True, help="Search learning-rate schedules too, for the recorded and the found order."
)
@click.option(
    "--verify",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Number of the best orders to train; one run each.",
)
@click.option(
    "--budget", type=click.IntRange(min=1), default=2000, show_default=True, help="Most orders that the search scores."
)
@click.option(
    "--regroup/--keep-batches",
    default=None,
    help="Whether samples may leave their recorded batches. Default: if that is significantly better on held-out rows "
    "that the search does not see.",
)
@click.option("--anyway", is_flag=True, help="Search even if the noise of the held-out rows hides the effect of order.")
@click.option(
    "--searched",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="Share of the held-out rows that the search sees; the others only confirm.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Most rounds of searching and confirming; each starts from the best confirmed order.",
)
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Time limit of the search. Default: none.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), callback=sound_output,
    help="Write the order there, as a .npy file.",
)  # fmt: skip
@seed_option
@task_option
@threads_option
@json_option
def propose(
    run: Path,
    metrics: Sequence[str],
    maximize: bool,
    constraints: Sequence[str],
    schedules: bool,
    verify: int,
    budget: int,
    regroup: bool | None,
    anyway: bool,
    searched: float,
    rounds: int,
    seconds: float | None,
    out: Path | None,
    seed: int,
    spec: str | None,
    threads: int,
    as_json: bool,
) -> None:
    """Search for an order with a better final metric, and confirm the best by training them.

    It first reports how much order matters, and stops if the noise hides it. The search sees a part of the held-out
    rows; the gain is measured on the others. An interrupted search resumes when the command is run again.

    The proposal is kept in the run, for the report. Exit code 3 if it is neither confirmed nor trusted.
    """
    if out is not None and out.suffix != ".npy":
        raise click.BadParameter("the file of an order ends in .npy", param_hint="--out")
    asked = wanted(metrics)
    check_question(run, spec, metrics=[asked] if isinstance(asked, str) else list(asked or ()))
    sim, told = open_simulator(run, spec, threads, quiet=as_json)
    proposal, facts = search(
        sim, metric=asked, maximize=maximize, constraints=constraints, schedules=schedules, verify=verify,
        budget=budget, regroup=regroup, anyway=anyway, searched=searched, rounds=rounds, seconds=seconds, seed=seed,
        quiet=as_json,
    )  # fmt: skip
    failed = try_writing(out, lambda path: write_order(path, proposal.order))
    facts = {"run": str(run), "task": told, "out": None if out is None or failed else str(out), **facts}
    if as_json:
        print_json(facts | {"order": np.asarray(proposal.order).tolist()})
    else:
        say(f"{plain(facts['run'])}   task: {plain(facts['task'])}")
        show(facts)
    end(failed, 0 if facts["trusted"] else UNTRUSTED)


def search(
    sim: Any, *, metric: Any, maximize: bool, constraints: Sequence[str], schedules: bool, verify: int, budget: int,
    regroup: bool | None, anyway: bool, searched: float, rounds: int, seconds: float | None, seed: int, quiet: bool,
    partial: bool = True,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    """Propose, and keep the proposal in the run: it, and what is printed of it as JSON values. No metric means
    the first of the task.

    Args:
        sim: the run, opened.
        metric: as `propose` takes it; None for the first.
        maximize: more of the metric is better.
        constraints: their texts.
        schedules: search among learning-rate schedules too.
        verify: how many of the best are trained.
        budget: orders that may be scored.
        regroup: whether samples may leave their batches; None where the run decides.
        anyway: search also where there is nothing to find.
        searched: share of the held-out rows that the search sees.
        rounds: of searching and confirming.
        seconds: most wall seconds; None for no limit.
        seed: of the random numbers.
        quiet: draw no bars.
        partial: what a search had found when it was interrupted is a proposal too; otherwise the interrupt goes on.
    """
    import orderscope
    from orderscope.answers.stored import keep_proposal, proposal_facts

    with shown(sim, quiet) as progress:
        progress("see how much there is to find", 0, 0)
        proposal = orderscope.propose(
            sim,
            metric=metric or sim.metric_names[0],
            budget=budget,
            verify=verify,
            maximize=maximize,
            constraints=constraints,
            regroup=regroup,
            anyway=anyway,
            searched=searched,
            rounds=rounds,
            seconds=seconds,
            seed=seed,
            progress=progress,
        )
        if not partial and any(str(note).startswith("interrupted") for note in proposal.notes):
            raise KeyboardInterrupt
        rates = best_rates(sim, proposal, verify, maximize, progress) if schedules else None
    facts = {"kept": keep(Path(sim.path), lambda store: keep_proposal(store, proposal)), **proposal_facts(proposal)}
    if rates is not None:
        facts["schedule"] = rates
    return proposal, facts | {"trusted": proposal.confirmed is not None or _trusted(sim, proposal)}


def write_order(out: Path, order: Any) -> None:
    """Write an order as a .npy file.

    Args:
        out: path of the file.
        order: sample ids, [steps, batch].

    Raises:
        OSError: it cannot be written.
    """
    with written(out) as file:
        np.save(file, np.asarray(order, dtype=np.int64))


def wanted(texts: Sequence[str]) -> str | list[str] | dict[str, float] | None:
    """The metric of `--metric` options: a name, several for a front, or weights where any is given.

    Example:
        >>> wanted(["eval", "code=0.5"])
        {'eval': 1.0, 'code': 0.5}
    """
    parts = [text.rpartition("=") for text in texts]
    try:
        if any(split for _, split, _ in parts):
            return {name if split else weight: float(weight) if split else 1.0 for name, split, weight in parts}
    except ValueError:
        raise click.BadParameter(f"{', '.join(texts)}: a weight is a number, NAME=0.5", param_hint="--metric") from None
    return None if not texts else texts[0] if len(texts) == 1 else list(texts)


def best_rates(sim: Any, proposal: Any, verify: int, maximize: bool, progress: Any) -> dict[str, Any]:
    """Search a learning-rate schedule for the recorded order and the proposed one.

    Args:
        sim: the run, opened.
        proposal: what was proposed.
        verify: how many schedules are trained to confirm them.
        maximize: whether higher is better.
        progress: called as `progress(stage, done, total)`.

    Returns:
        The best schedule and what it gains, as JSON values.

    Raises:
        OrderscopeError: the proposal is for several metrics.
    """
    from orderscope.answers.stored import json_value
    from orderscope.search.rates import propose_rates

    orders = np.unique(np.stack([sim.order, proposal.order]), axis=0)
    found = propose_rates(sim, proposal.metric, orders=orders, verify=verify, maximize=maximize, progress=progress)
    rows = [
        {"name": row.name, "predicted": row.predicted, "error": row.error, "law": row.law, "confirmed": row.confirmed,
         "proposed_order": bool(np.array_equal(orders[row.order], proposal.order))}
        for row in found.table[:SHOWN]
    ]  # fmt: skip
    return json_value(
        {"rates": found.rates, "predicted": found.predicted, "error": found.error, "confirmed": found.confirmed,
         "proposed_order": bool(np.array_equal(found.order, proposal.order)), "table": rows, "notes": found.notes}
    )  # fmt: skip


def _trusted(sim: Any, proposal: Any) -> bool:
    if proposal.metric not in sim.metric_names:
        return False  # a sum of metrics is known only from training
    prediction = sim.predict(proposal.order, metrics=[proposal.metric])
    return bool(prediction.trusted_in(proposal.metric)[0])


def show(facts: dict[str, Any]) -> None:
    """Print what `search` found."""
    metric, table = facts["metric"], facts["table"]
    say("\n" + plain(facts["verdict"]) + "\n")
    if not facts["searched"]:
        for note in spoken(facts["notes"]):
            say(f"note: {plain(note)}")
        return
    apart = any(row["parts"] for row in table[:SHOWN])
    parts = ["other rows", "±"] if apart else []
    print_table(["order", metric, "error", "trained", *parts], [_cells(row, apart) for row in table[:SHOWN]])
    if len(table) > SHOWN:
        say(f"  and {len(table) - SHOWN} more; --json prints all")
    if any(row.get("proposed") for row in table[:SHOWN]):
        say("\n* the proposed order")
    if parts:
        say("\nother rows: the gain on the held-out rows that the search never saw, ± its error over rows")
    say("\nhow these were found")
    say(columns([[row["name"], row["source"]] for row in table[:SHOWN]]))
    if facts["front"]:
        names = list(facts["front"][0]["metrics"])
        say("\nnone is better than these in all metrics; trained values in brackets")
        print_table([*names, "found by"], [_point(row, names) for row in facts["front"]], text=(len(names),))
    if facts.get("schedule"):
        say("\nlearning rates")
        whose = {True: "the proposed order", False: "the recorded order"}
        rows = [[*_cells(row), whose[row["proposed_order"]]] for row in facts["schedule"]["table"]]
        print_table(["schedule", metric, "error", "trained", "with"], rows, text=(0, 4))
    say()
    for line in summary_lines(facts):
        say(plain(line))
    from orderscope.search.notes import folded

    if lines := simple_lines(facts):
        say()
        for line in lines:
            say(plain(line))
        say()
    for note in folded(spoken(facts["notes"])):
        say(f"note: {plain(note)}")
    if facts["out"]:
        say(f"order written to {plain(facts['out'])}")


def spoken(notes: Sequence[object]) -> list[str]:
    """The library's notes with options of this command in place of Python arguments."""
    return [as_options(str(note), propose) for note in notes]


def summary_lines(facts: dict[str, Any]) -> list[str]:
    """What a proposal gained, in words: predicted, true, and against best-of-N at equal cost."""
    from orderscope.search.notes import REFINED, elsewhere_words, part_words

    value, error = figures(facts["predicted"], number_of(facts["error"]))
    change = signed(facts["predicted"] - facts["reference"], number_of(facts["error"]))
    lines = [f"{facts['metric']}: {number(facts['reference'], 5)} as recorded, {value} {error} predicted ({change})"]
    if facts["confirmed"] is not None:
        gained = true_change(facts["confirmed"] - facts["reference"], number_of(facts["error"]))
        lines.append(f"trained for confirmation: {number(facts['confirmed'], 5)} ({gained})")
    if facts.get("refined"):
        lines.append(REFINED + ":")
    lines += [("  " if facts.get("refined") else "") + part_words(part) for part in facts["parts"]]
    if words := elsewhere_words(facts):
        lines.append(words)
    if facts["undetectable"]:
        lines.append(f"{NO_EFFECT}: {because(facts)}")
    if facts["best_of_n"] is not None:
        lines.append(
            f"best of {facts['cost']:.0f} random orders, truly trained at equal cost: "
            f"{number(facts['best_of_n'], 5)} expected"
        )
    return lines


def simple_lines(facts: dict[str, Any]) -> list[str]:
    """The nearest schedule of groups and the nearest sort, and what they keep."""
    from orderscope.search.notes import kept_words, worth_showing

    simple, by, words = facts.get("simple"), facts.get("sort"), kept_words(facts)
    lines = [f"in a few words: {words}"] if words else []
    if by and worth_showing(by):
        lines.append(f"  close to a sort by {by['by']} (rank correlation {by['correlation']:.2f}): {_form(by)}")
    if simple and worth_showing(simple):
        lines.append(f"  percent of each group in each part of the run: {_form(simple)}")
        lines += [f"    {line}" for line in simple["words"]]
    return lines


def _form(form: dict[str, Any]) -> str:
    if form["confirmed"] is None:
        return f"{number(form['predicted'], 5)} predicted"
    return f"{number(form['confirmed'], 5)} trained"


def _point(row: dict[str, Any], names: list[str]) -> list[str]:
    cells = []
    for name in names:
        true = row["true"].get(name)
        cells.append(number(row["metrics"][name], 5) + ("" if true is None else f" ({number(true, 5)})"))
    return [*cells, row["name"]]


def _cells(row: dict[str, Any], parts: bool = False) -> list[str]:
    value, error = figures(row["predicted"], number_of(row["error"]))
    trained = "" if row["confirmed"] is None else number(row["confirmed"], 5)
    apart = ["", ""] if parts else []
    if parts and row["parts"]:
        own = row["parts"][0]
        width = own["standard_error"]
        apart = [number(own["gain"], 2, sign=True), "" if width is None else number(width, 2)]
    return [row["name"] + (" *" if row.get("proposed") else ""), value, error, trained, *apart]
