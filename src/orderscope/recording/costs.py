"""The cost of a run by its journal, in CPU seconds of all processes and in runs.

A run is the cost of training the window once, in the same seconds. A recording's cost is that of everything up to and
including the first answer.
"""

from __future__ import annotations

import math
import resource
from typing import Any

from orderscope.store import RunStore
from orderscope.store.names import FURTHER, REFERENCE

PARTS = ("reference", "probes", "gradients", "curvature", "held-out losses", "table")
_KINDS = {"rows": "gradients", "curvature": "curvature", "metric": "held-out losses", "known": "held-out losses",
          "held-out": "held-out losses"}  # fmt: skip
DEAR = 0.5  # an answer that costs this share of a training or more is called dear
OTHER = "other"  # the part of the cost that goes to starting processes, reading data, checking the task


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def part_seconds(store: RunStore) -> dict[str, float]:
    """CPU seconds of each part of recording, over all processes; orders trained after recording are
    not included. Runs of earlier versions have wall seconds."""
    seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    whole = 0.0
    for event in store.journal():
        kind, taken = event.get("event"), _number(event, "cpu", "seconds")
        if kind == "recorded":
            whole += taken
        elif kind == "table":
            seconds["table"] += taken
        elif kind == "segment" and not str(event.get("run")).startswith(FURTHER):
            seconds["reference" if event.get("run") == REFERENCE else "probes"] += taken
        elif kind == "sketched" and not str(event.get("unit")).split("/")[-1].startswith(FURTHER):
            part = _KINDS.get("".join(str(event.get("unit")).split("/")[1:2]))
            if part is not None:
                seconds[part] += taken
    rest = whole - sum(seconds.values())
    return seconds | ({OTHER: rest} if rest > 0 else {})


def recording_seconds(store: RunStore) -> float:
    """CPU seconds of recording and sketching; zero if the journal has no times."""
    return sum(part_seconds(store).values())


def training_seconds(store: RunStore) -> float | None:
    """CPU seconds of training the window once, None if the journal has no times: those of the fastest run, since others
    record more while training. Only runs of the recording count, so that its cost in runs stays the same when further
    runs are trained."""
    runs: dict[str, dict[int, float]] = {}
    for e in store.journal():
        if e.get("event") == "segment" and "train_seconds" in e and isinstance(e.get("index"), int):
            runs.setdefault(str(e.get("run")), {})[e["index"]] = _number(e, "train_cpu", "train_seconds")
    last = max((max(parts) for parts in runs.values()), default=0)
    whole = {run: sum(parts.values()) for run, parts in runs.items() if run != REFERENCE or len(parts) == last + 1}
    recorded = [seconds for run, seconds in whole.items() if seconds > 0 and not run.startswith(FURTHER)]
    return min(recorded or [seconds for seconds in whole.values() if seconds > 0], default=None)


def _number(event: dict[str, Any], key: str, older: str) -> float:
    """Seconds in a journal entry; 0 if it is not a valid number, since a journal may come from a stranger."""
    value = event.get(key, event.get(older))
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e12 else 0.0


def answer_words(answer: float, run: float | None, recording: float = 0.0) -> str:
    """What an answer costs beside a training, in words; empty where it is not known what a training costs.

    Args:
        answer: CPU seconds of an answer.
        run: CPU seconds of a training; None where they are not known.
        recording: CPU seconds of what was recorded to have answers.

    Example:
        >>> answer_words(0.1, 2.0, 38.0)
        'an answer costs 1/20 of a training (0.1 s of 2 s); recording pays from 20 answers on'
    """
    if run is None:
        return ""
    if answer >= DEAR * run:
        dear = "dearer than" if answer > run else "as dear as"
        return (
            f"this window trains in {run:.2g} s: an answer, {answer:.2g} s, is {dear} training the order. Asking pays "
            "where training takes long: a longer window, larger batches, a larger model"
        )
    pays = f"; recording pays from {math.ceil(recording / (run - answer))} answers on" if recording else ""
    return f"an answer costs 1/{run / answer:.0f} of a training ({answer:.2g} s of {run:.2g} s){pays}"


def part_runs(store: RunStore) -> dict[str, float]:
    """`part_seconds` in runs; empty if the journal has no times."""
    run = training_seconds(store)
    return {part: taken / run for part, taken in part_seconds(store).items()} if run else {}
