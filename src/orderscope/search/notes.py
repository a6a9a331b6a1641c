"""A proposal's notes for a reader: strategies that had nothing to go by share one line."""

from __future__ import annotations

from collections.abc import Sequence

SILENT = ": this task's samples have no "


def folded(notes: Sequence[str]) -> list[str]:
    """The notes, those of strategies without a signal in one line at the end.

    Example:
        >>> folded(["late", "short first: this task's samples have no length"])
        ['late', 'no such numbers about the samples: length (short first)']
    """
    silent: dict[str, list[str]] = {}
    for name, _, missing in (note.partition(SILENT) for note in notes if SILENT in note):
        silent.setdefault(missing, []).append(name)
    told = [note for note in notes if SILENT not in note]
    listed = "; ".join(f"{missing} ({', '.join(names)})" for missing, names in silent.items())
    return [*told, f"no such numbers about the samples: {listed}"] if silent else told
