"""`orderscope positions`: how well is a batch remembered, depending on when it came?"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import click
import numpy as np

from orderscope.cli.kept import end, keep, try_writing
from orderscope.cli.options import (
    check_question,
    open_simulator,
    run_argument,
    shown,
    sound_output,
    task_option,
    threads_option,
)
from orderscope.cli.table import print_table
from orderscope.cli.tasks import need_task
from orderscope.cli.text import figures, json_option, plain, print_json, say
from orderscope.files import written
from orderscope.text import number

SHADES = " .:-=+*#%@"


@click.command()
@run_argument
@click.option("--units", type=click.IntRange(min=1), help="Number of recorded batches to move. Default: the library's.")
@click.option("--places", type=click.IntRange(min=2), help="Number of positions to try. Default: the library's.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), callback=sound_output,
    help="File to write the map to, .csv or .npz.",
)  # fmt: skip
@click.option(
    "--verify",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Number of moves to train; one run each.",
)
@task_option
@threads_option
@json_option
def positions(
    run: Path,
    units: int | None,
    places: int | None,
    out: Path | None,
    verify: int,
    spec: str | None,
    threads: int,
    as_json: bool,
) -> None:
    """Map the final model's loss on a recorded batch, by the position at which it is trained.

    The map is kept in the run, for the report.
    """
    if out is not None and out.suffix not in (".csv", ".npz"):
        raise click.BadParameter("the file of a map ends in .csv or .npz", param_hint="--out")
    check_question(run, spec)
    sim, told = open_simulator(run, spec, threads, quiet=as_json)
    need_task(sim.task, told)
    heat, kept = mapped(sim, units=units, places=places, verify=verify, quiet=as_json)
    failed = try_writing(out, lambda path: write_heat(path, heat))
    out = None if failed else out
    if as_json:
        from orderscope.answers.stored import json_value

        arrays = {key: json_value(values) for key, values in heat.arrays().items()} | {"metric": heat.metric}
        print_json({"run": str(run), "task": told, "kept": kept, "out": None if out is None else str(out), **arrays})
    else:
        show(run, heat)
        if out is not None:
            say(f"map written to {plain(str(out))}")
    end(failed, 0)


def mapped(sim: Any, *, units: int | None, places: int | None, verify: int, quiet: bool) -> tuple[Any, str | None]:
    """Make a position map and keep it in the run.

    Args:
        sim: the run, opened.
        units: number of batches to move; all if None.
        places: number of positions to move them to; all if None.
        verify: cells to check by training.
        quiet: whether no progress is shown.

    Returns:
        The map, and the name of its shard.
    """
    import orderscope
    from orderscope.answers.stored import keep_heat

    with shown(sim, quiet) as progress:
        progress("read the recorded batches", 0, 0)
        heat = orderscope.positions(
            sim,
            spread(len(sim.order), units),
            places=spread(len(sim.order), places),
            verify=verify,
            progress=progress,
        )
    return heat, keep(Path(sim.path), lambda store: keep_heat(store, heat))


def spread(steps: int, count: int | None) -> list[int] | None:
    """`count` steps, evenly spaced over the run; None stays None.

    Example:
        >>> spread(10, 4)
        [0, 3, 6, 9]
    """
    if count is None:
        return None
    return sorted({round(float(x)) for x in np.linspace(0, steps - 1, min(count, steps))})


def write_heat(out: Path, heat: Any) -> None:
    """Write a map as a .npz file of its arrays, or as a .csv file with one row a unit and place.

    Args:
        out: path of the file; its ending decides.
        heat: the map.

    Raises:
        OSError: it cannot be written.
    """
    with written(out) as raw:
        if out.suffix == ".npz":
            named: dict[str, Any] = heat.arrays()
            np.savez_compressed(raw, **named)
            return
        file = io.TextIOWrapper(raw, newline="", encoding="utf-8", write_through=True)
        writer = csv.writer(file)
        columns = [
            "unit",
            "recorded_at",
            "place",
            "loss",
            "error",
            "recorded_loss",
            plain(heat.metric),
            "neighbours",
            "true_loss",
            "trusted",
        ]
        writer.writerow(columns)
        true = {(i, j): value for (i, j), value in zip(heat.cells.tolist(), heat.true.tolist(), strict=True)}
        for i, unit in enumerate(heat.units):
            for j, place in enumerate(heat.places):
                cell = float(heat.value[i, j]), float(heat.error[i, j]), float(heat.recorded[i])
                good = "" if not heat.trusted.size else "yes" if heat.trusted[i, j] else "no"
                rest = float(heat.held_out[i, j]), float(heat.neighbours[i, j]), true.get((i, j), ""), good
                writer.writerow([int(unit), int(heat.at[i]), int(place), *cell, *rest])
        file.detach()


def show(run: Path, heat: Any) -> None:
    """Print a map."""
    value, error = np.asarray(heat.value), np.asarray(heat.error)
    say(f"{plain(str(run))}: loss on a batch after training, by where it stood (lowest first)\n")
    moved = value - value.mean(axis=1, keepdims=True)
    top = float(np.abs(moved).max()) or 1.0
    rows = []
    for i, unit in enumerate(heat.units):
        low = int(value[i].argmin())
        shades = "".join(SHADES[round(float(x / top + 1) / 2 * (len(SHADES) - 1))] for x in moved[i])
        best, width = figures(float(value[i, low]), float(error[i, low]))
        span = float(np.ptp(value[i]))
        rows.append([str(int(unit)), f"{heat.recorded[i]:.4g}", best, width, str(int(heat.places[low])),
                     number(span, 2), f"|{shades}|"])  # fmt: skip
    first, last = int(heat.places[0]), int(heat.places[-1])
    header = ["batch", "recorded", "lowest", "error", "at", "span", f"position {first} to {last}"]
    print_table(header, rows, text=(0, 6))
    say(f"\n{SHADES!r}: from lower to higher loss than the batch's mean over positions, {number(top, 2)} either way")
    if len(heat.true):
        i, j = heat.cells.T
        off = np.abs(heat.value[i, j] - heat.true)
        inside = 100 * np.mean(off <= heat.error[i, j])
        say(
            f"{len(off)} moves truly trained: off by {number(off.mean(), 2)} on average, "
            f"{inside:.0f} % inside the error"
        )
    if count := int((~heat.trusted).sum()):
        say(
            f"\nnot trusted: {count} of {heat.trusted.size} estimates. On recorded runs the batch's loss is told no "
            "better than by a guess, its intervals did not hold, or the move leads too far"
        )
        say("docs/untrusted.md says what to do; --verify trains some of the moves")
