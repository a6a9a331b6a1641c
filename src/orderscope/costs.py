"""What a run has cost, by its journal."""

from __future__ import annotations

from typing import Any

from orderscope.names import FURTHER, REFERENCE
from orderscope.store import RunStore

PARTS = ("reference", "probes", "gradients", "curvature", "metrics")
_KINDS = {"rows": "gradients", "curvature": "curvature", "metric": "metrics"}


def part_seconds(store: RunStore) -> dict[str, float]:
    """Seconds that workers spent on each part of recording, whoever they were and however many ran at once; what was
    trained since is not of it."""
    seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for event in store.journal():
        if event.get("event") == "segment" and str(event.get("run")).startswith(FURTHER):
            continue
        if event.get("event") == "segment":
            part = "reference" if event.get("run") == REFERENCE else "probes"
        elif event.get("event") == "sketched":
            part = _KINDS.get("".join(str(event.get("unit")).split("/")[1:2]))
        else:
            continue
        if part is not None:
            seconds[part] += _number(event, "seconds")
    return seconds


def recording_seconds(store: RunStore) -> float:
    """Wall time of recording and sketching; zero where the journal tells nothing."""
    parts = part_seconds(store)
    at_work = sum(_number(e, "seconds") for e in store.journal() if e.get("event") == "work finished")
    return parts["reference"] + at_work if at_work else sum(parts.values())


def training_seconds(store: RunStore) -> float | None:
    """Wall time of training the reference order once, None where the journal does not tell."""
    segments = {
        str(e.get("index")): _number(e, "train_seconds")
        for e in store.journal()
        if e.get("event") == "segment" and e.get("run") == REFERENCE
    }
    return sum(segments.values()) or None


def _number(event: dict[str, Any], key: str) -> float:
    """A journal may come from anybody: what is no number of seconds counts for nothing."""
    value = event.get(key)
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e12 else 0.0


def part_runs(store: RunStore) -> dict[str, float]:
    """`part_seconds` in runs of the reference; empty where the journal does not tell."""
    run = training_seconds(store)
    return {part: taken / run for part, taken in part_seconds(store).items()} if run else {}
