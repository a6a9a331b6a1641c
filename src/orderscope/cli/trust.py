"""Whose code may be run: task files that this user has recorded or named, each with the run it was for.

A run can come from somebody else, and what it says about its task is then their choice. The record is the user's own,
outside of every run: one JSON line a pair, in `trusted.jsonl` of the folder that ORDERSCOPE_STATE names, else of
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


def trusted(run: str, file: Path) -> bool:
    """Whether this user recorded or named `file` (where links lead) for that run."""
    return (run, _real(file)) in _pairs()


def ran(file: Path) -> bool:
    """Whether the code in `file` was run before, for any run."""
    return any(_real(file) == other for _, other in _pairs())


def trust(run: str, file: Path) -> None:
    """Remember a pair; `run` is empty where the file was named for none. What cannot be remembered is asked again."""
    pair = (run, _real(file))
    if pair in _pairs():
        return
    with suppress(OSError):
        place = _place()
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, json.dumps({"run": pair[0], "file": pair[1]}).encode() + b"\n")
        finally:
            os.close(descriptor)


def _real(file: Path) -> str:
    return os.path.realpath(file)


def _place() -> Path:
    if own := os.environ.get(STATE):
        return Path(own) / "trusted.jsonl"
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "orderscope" / "trusted.jsonl"


def _pairs() -> set[tuple[str, str]]:
    try:
        lines = _place().read_bytes().splitlines()
    except OSError:
        return set()
    found = set()
    for line in lines:
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            pair = json.loads(line)
            found.add((str(pair["run"]), str(pair["file"])))
    return found
