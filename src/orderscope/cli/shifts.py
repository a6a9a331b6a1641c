"""`orderscope inspect RUN --shifts`: how far something must move in time before a prediction tells that it moved."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orderscope.cli.options import open_simulator, shown
from orderscope.cli.table import print_table
from orderscope.cli.text import plain, say
from orderscope.report.words import count, listed, two

if TYPE_CHECKING:
    from orderscope.studies.resolution import Resolution, Shifted


def shifts_of(run: Path, metric: str | None, *, quiet: bool) -> Resolution:
    """Predict shifted orders of a run.

    Args:
        run: directory or packed file.
        metric: a held-out loss; None for the first.
        quiet: show no progress.

    Raises:
        OrderscopeError: for an unknown metric, one that is no held-out loss, or a window of fewer than four steps.
    """
    from orderscope.studies.resolution import resolution

    sim, _ = open_simulator(run, None, 1, with_task=False, quiet=quiet)
    with shown(sim, quiet) as progress:
        return resolution(sim, metric, progress=progress)


def as_json(found: Resolution) -> dict[str, Any]:
    """All of it as JSON values."""
    from orderscope.answers.stored import json_value

    rows = [asdict(row) | {"told_apart": row.told_apart} for row in found.rows]
    return json_value({"metric": found.metric, "rows": rows, "smallest": found.smallest, "cost": found.cost})


def show_shifts(run: Path, found: Resolution) -> None:
    """Print the shifts as a table, and in words which are told apart."""
    say(f"{plain(str(run))}: how far must something move for predictions of {plain(found.metric)} to tell?\n")
    header = ["moved", "later by", "difference", "error", "told apart"]
    rows = [
        [plain(row.what), count(row.steps, "step"), two(row.effect), f"±{two(row.error)}", _of(row)]
        for row in found.rows
    ]
    print_table(header, rows, text=(0,))
    say()
    for line in in_words(found):
        say(plain(line))


def _of(row: Shifted) -> str:
    if row.orders == 1:
        return "yes" if row.apart else "no"
    return f"{row.apart} of {row.orders}"


def in_words(found: Resolution) -> list[str]:
    """Which shifts are told apart, in sentences.

    Args:
        found: the shifts.
    """
    from orderscope.studies.resolution import BATCH

    groups: dict[int | None, list[str]] = {}
    for what, steps in found.smallest.items():
        if what != BATCH:
            groups.setdefault(steps, []).append(what)
    lines = [_sentence("a single batch", found.smallest[BATCH])]
    some = sorted((steps, names) for steps, names in groups.items() if steps is not None)
    lines += [_sentence(f"all batches of {listed(names)}", steps) for steps, names in some]
    if None in groups:
        lines.append(_sentence(f"all batches of {listed(groups[None])}", None))
    return lines


def _sentence(what: str, steps: int | None) -> str:
    if steps is None:
        return f"{what}: no shift up to half of the run is told from the recorded order"
    return f"{what}: shifts are told from the recorded order from {count(steps, 'step')} on"
