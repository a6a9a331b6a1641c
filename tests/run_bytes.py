"""The bytes of a run, as one digest a file: what must be the same whoever wrote it, and however often it was killed."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of every file of a run but its journal and its lock."""
    files = [file for file in path.iterdir() if file.name not in ("journal.jsonl", ".lock")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
