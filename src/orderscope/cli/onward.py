"""The suggested next command for a run, chosen by the names of its shards and its journal."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from orderscope.store.names import TABLE

SPEC = "my_run.py:task"  # shown if the run does not store where its task was loaded from
LATER = {
    "validation/": "unseen orders, trained to check the predictions",
    "proposal/": "a proposed order",
    "positions/": "a map of how well batches are remembered",
}


@dataclass(frozen=True)
class Onward:
    """A command, and what it does."""

    command: str
    why: str


def not_yet(names: Collection[str]) -> list[str]:
    """What was not done with a run yet, in words.

    Args:
        names: names of its shards.
    """
    return [words for prefix, words in LATER.items() if not _any(names, prefix)]


def onward(
    run: Path, names: Collection[str], missing: Sequence[str], *, spec: str | None, sketching: bool, probes: int,
    packed: bool,
) -> Onward:  # fmt: skip
    """The next command.

    Args:
        run: path of the run.
        names: names of its shards.
        missing: what is missing, in words; empty if the run is complete.
        spec: file and name of the task, as stored in the run, or None.
        sketching: whether only units of the sketch are missing.
        probes: number of probes.
        packed: whether it is a packed file, which is read-only.
    """
    path = shlex.quote(str(run))
    record = f"orderscope record {shlex.quote(spec or SPEC)} --out {path}"
    if missing and not sketching:
        return Onward(record, "resumes the recording")
    if missing:
        return Onward(f"orderscope sketch {path}", "computes the rest of the sketch, and builds the table")
    if packed:
        return Onward(f"orderscope query {path} --order reverse", "predicts the result of the reversed order")
    if not _any(names, f"{TABLE}left-out-"):
        return Onward(f"orderscope sketch {path}", "builds the table that predictions are computed from")
    if not probes:
        again = f"orderscope record {shlex.quote(spec or SPEC)} --out {shlex.quote(f'{run}-probed')} --probes 8"
        return Onward(again, "records with probes: without them predictions have no error bars")
    if not _any(names, "validation/"):
        return Onward(f"orderscope validate {path}", "trains unseen orders, to check the predictions")
    if not _any(names, "proposal/"):
        return Onward(
            f"orderscope propose {path} --out best.npy", "searches for a better order, and trains the best ones"
        )
    return Onward(f"orderscope report {path} --out report.html", "writes one page about the run")


def _any(names: Collection[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)
