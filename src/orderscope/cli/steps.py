"""`orderscope inspect RUN --steps`: where in the run predictions go wrong."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orderscope.cli.kept import keep
from orderscope.cli.options import open_simulator, shown
from orderscope.cli.table import print_table
from orderscope.cli.text import plain, say, short, signed
from orderscope.report.words import count, listed, two
from orderscope.store import RunStore
from orderscope.store.names import TASK_SHARD
from orderscope.text import number

if TYPE_CHECKING:
    from orderscope.studies.step_map import StepErrorMap

SPANS = 12  # characters of a metric's name in the table's head


def steps_of(
    run: Path, metric: str | None, runs: Collection[str], *, quiet: bool
) -> tuple[StepErrorMap, str | None, bool]:
    """Errors step by step: those stored in the run if they cover these true runs, else computed now and stored.

    Args:
        run: directory or packed file.
        metric: a held-out loss; None for the task's first.
        runs: names of the true runs under other orders.
        quiet: show no progress.

    Returns:
        The errors, the name of their shard where they were found and kept now, and whether they were read.

    Raises:
        OrderscopeError: for a metric that is no held-out loss, or without true runs.
    """
    from orderscope.answers.stored import keep_step_errors, kept_step_errors
    from orderscope.studies.step_map import held_out_loss

    store = RunStore.open(run)
    name = held_out_loss(store.attrs(TASK_SHARD), metric)
    if (before := kept_step_errors(store, name, runs)) is not None:
        return before, None, True
    sim, _ = open_simulator(run, None, 1, with_task=False, quiet=quiet)
    from orderscope.studies.step_errors import step_errors

    with shown(sim, quiet) as progress:
        found = step_errors(sim, name, progress=progress)
    return found, keep(run, lambda opened: keep_step_errors(opened, found)), False


def as_json(found: StepErrorMap) -> dict[str, Any]:
    """All of it as JSON values."""
    from orderscope.answers.stored import json_value

    facts = {name: getattr(found, name) for name in ("metric", "runs", "without", "cost", "total", "agreement")}
    return json_value(facts | {"segments": [asdict(part) for part in found.segments]} | found.arrays())


def show_steps(run: Path, found: StepErrorMap) -> None:
    """Print the segments as a table, and in words how reliable they are."""
    from orderscope.studies.step_map import rms

    metric = short(found.metric, SPANS)
    say(f"{plain(str(run))}: where predictions of {plain(found.metric)} go wrong")
    say(f"{count(len(found.runs), 'true run')}, each predicted without its own states\n")
    header = ["steps", "gradient error", "without curvature", "cosine", f"effect on {metric}", "mean", "share"]
    rows = [
        [
            f"{part.start} to {part.stop - 1}" if part.stop > part.start + 1 else str(part.start),
            _percent(part.gradient),
            _percent(part.interpolation),
            f"{part.cosine:.2f}" if math.isfinite(part.cosine) else "none",
            f"±{two(part.effect)}",
            signed(part.mean, part.effect),
            f"{100 * part.share:.0f} %" if math.isfinite(part.share) else "none",
        ]
        for part in found.segments
    ]
    print_table(header, rows)
    agreement = f"; correlation {found.agreement:.2f}" if math.isfinite(found.agreement) else ""
    say(f"\nall steps: ±{two(rms(found.total))} by adding up, ±{two(rms(found.weights))} by the true runs{agreement}")
    say(f"with the error of computing the loss, before calibration: ±{two(rms(found.error))}")
    if found.without:
        whose = "their" if len(found.without) > 1 else "its"
        names = listed([plain(name) for name in found.without])
        say(f"not among them: {names}; {whose} batches were not recorded")
    if math.isfinite(found.cost):
        say(f"cost: {number(found.cost, 2)} trainings")


def _percent(share: float) -> str:
    return f"{two(100 * share)} %" if math.isfinite(share) else "none"
