"""What can be done with a run next: one command, chosen by the names of its shards and its journal."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from orderscope.store.names import TABLE

SPEC = "my_run.py:task"  # where the run does not say what its task was called
LATER = {
    "validation/": "unseen orders, trained to see what predictions are worth",
    "proposal/": "a proposed order",
    "positions/": "a map of how well batches are remembered",
}


@dataclass(frozen=True)
class Onward:
    """A command, and what it does."""

    command: str
    why: str


def not_yet(names: Collection[str]) -> list[str]:
    """What was not asked of a run, among shards of these names."""
    return [words for prefix, words in LATER.items() if not _any(names, prefix)]


def onward(
    run: Path, names: Collection[str], missing: Sequence[str], *, spec: str | None, sketching: bool, probes: int,
    packed: bool,
) -> Onward:  # fmt: skip
    """The one command that goes on.

    Args:
        run: where the run lies.
        names: of its shards.
        missing: what it lacks, in words; empty where it is complete.
        spec: of the task it remembers.
        sketching: whether nothing but units of the sketch is missing.
        probes: how many runs under other orders it has.
        packed: whether it is one file, into which nothing is written.
    """
    path = shlex.quote(str(run))
    record = f"orderscope record {shlex.quote(spec or SPEC)} --out {path}"
    if missing and not sketching:
        return Onward(record, "goes on with the recording where it was")
    if missing:
        return Onward(f"orderscope sketch {path}", "computes what the sketch lacks, and builds the table")
    if packed:
        return Onward(f"orderscope query {path} --order reverse", "asks what the reversed order would have given")
    if not _any(names, f"{TABLE}left-out-"):
        return Onward(f"orderscope sketch {path}", "builds the table, from which answers come quickly")
    if not probes:
        again = f"orderscope record {shlex.quote(spec or SPEC)} --out {shlex.quote(f'{run}-probed')} --probes 8"
        return Onward(again, "records with probes: without them nothing has an error bar")
    if not _any(names, "validation/"):
        return Onward(f"orderscope validate {path}", "trains unseen orders, to see what predictions are worth")
    if not _any(names, "proposal/"):
        return Onward(f"orderscope propose {path} --out best.npy", "looks for a better order, and trains the best")
    return Onward(f"orderscope report {path} --out report.html", "writes all of it into one page")


def _any(names: Collection[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)
