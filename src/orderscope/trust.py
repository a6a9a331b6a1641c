"""Whose code may be run: tasks that this user has recorded or named, each with the run it was for.

A run can come from somebody else, and what it says about its task is then their choice. The record is the user's own,
outside of every run: one JSON line a task, in `trusted.jsonl` of the folder that ORDERSCOPE_STATE names, else of
`orderscope` in the XDG state folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

STATE = "ORDERSCOPE_STATE"


def run_id(fingerprint: Mapping[str, str]) -> str:
    """What a run is known by, wherever it is moved or copied: the task it was recorded of."""
    return hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True, default=str).encode()).hexdigest()[:32]


def trusted(run: str, file: Path, name: str) -> bool:
    """Whether this user recorded or named what `file` (where links lead) calls `name` for that run.

    Args:
        run: id of the run, see `run_id`.
        file: with the task; links are followed.
        name: of the task in the file.
    """
    return (run, os.path.realpath(file), name) in _known()


def ran(file: Path) -> bool:
    """Whether the code in `file` was run before, for any run."""
    return any(os.path.realpath(file) == other for _, other, _ in _known())


def trust(run: str, file: Path, name: str) -> None:
    """Remember that this user recorded or named a task. Where it cannot be written down, the user is asked again.

    Args:
        run: id of the run, see `run_id`; empty where the task was named for no run.
        file: with the task; links are followed.
        name: of the task in the file.
    """
    entry = {"run": run, "file": os.path.realpath(file), "name": name}
    if tuple(entry.values()) in _known():
        return
    with suppress(OSError):
        place = _place()
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, json.dumps(entry).encode() + b"\n")
        finally:
            os.close(descriptor)


def _place() -> Path:
    if own := os.environ.get(STATE):
        return Path(own) / "trusted.jsonl"
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "orderscope" / "trusted.jsonl"


def _known() -> set[tuple[str, str, str]]:
    try:
        lines = _place().read_bytes().splitlines()
    except OSError:
        return set()
    found = set()
    for line in lines:
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            entry = json.loads(line)
            found.add((str(entry["run"]), str(entry["file"]), str(entry["name"])))
    return found
