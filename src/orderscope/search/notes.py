"""A proposal in words: its notes, its gain on other rows, and the share of its gain that simple forms keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orderscope.text import number

SILENT = ": this task's samples have no "
LITTLE = 0.2  # share of the gain: a simple form that keeps less is not shown


def folded(notes: Sequence[str]) -> list[str]:
    """The notes, with those of strategies whose signal is missing merged into one line at the end.

    Example:
        >>> folded(["late", "short first: this task's samples have no length"])
        ['late', 'not tried, since the samples have no such numbers: length (short first)']
    """
    silent: dict[str, list[str]] = {}
    for name, _, missing in (note.partition(SILENT) for note in notes if SILENT in note):
        silent.setdefault(missing, []).append(name)
    others = [note for note in notes if SILENT not in note]
    listed = "; ".join(f"{missing} ({', '.join(names)})" for missing, names in silent.items())
    return [*others, f"not tried, since the samples have no such numbers: {listed}"] if silent else others


def elsewhere_words(facts: Mapping[str, Any]) -> str:
    """The expected gain of a proposal on other rows, in words; empty if it is not known.

    Args:
        facts: the proposal as JSON values.

    Example:
        >>> elsewhere_words({"elsewhere": {"gain": 0.002, "error": 0.0075}})
        'expect a gain of +0.002 ± 0.0075 on other rows of their source (90 %)'
    """
    expected = facts.get("elsewhere")
    if not expected:
        return ""
    gain, error = number(expected["gain"], 2, sign=True), number(expected["error"], 2)
    return f"expect a gain of {gain} ± {error} on other rows of their source (90 %)"


REFINED = "searched on some of the held-out rows first, then on all; the order of the first search"


def part_words(part: Mapping[str, Any]) -> str:
    """The gain on one part of the held-out rows, in words.

    Args:
        part: a `PartGain` as JSON values.

    Example:
        >>> part_words({"part": "confirming", "rows": 96, "gain": 0.01, "confirmed": 2.8, "standard_error": 0.004})
        'on 96 rows that the search never saw: gain +0.01 trained, standard error over rows 0.004'
    """
    which = "that the search never saw" if part["part"] == "confirming" else "that the search saw"
    said = f"on {part['rows']} rows {which}: gain {number(part['gain'], 2, sign=True)}"
    width = part["standard_error"]
    if part["confirmed"] is None:
        return f"{said} predicted" + ("" if part["error"] is None else f", ± {number(float(part['error']), 2)}")
    return f"{said} trained" + ("" if width is None else f", standard error over rows {number(width, 2)}")


def worth_showing(form: Mapping[str, Any] | None) -> bool:
    """Whether a simple form is shown: it keeps enough of the gain, or the share that it keeps is not known.

    Args:
        form: the form as JSON values, or None.
    """
    return form is not None and (form["kept"] is None or form["kept"] >= LITTLE)


def kept_words(facts: Mapping[str, Any]) -> str:
    """The share of a proposal's gain that its simple forms keep, in words; empty if there are none or no gain.

    Args:
        facts: the proposal as JSON values; proposals stored by an earlier version have no sort.

    Example:
        >>> kept_words({"simple": {"kept": 0.42, "confirmed": 2.8}})
        'the nearest schedule of groups keeps 42 % of this gain, as trained'
        >>> kept_words({"simple": {"kept": 0.03, "confirmed": 2.8}})
        'no simple form keeps this gain'
    """
    simple, by = facts.get("simple"), facts.get("sort")
    forms = [("the nearest schedule of groups", simple)] if simple else []
    forms += [(f"a sort by {by['by']}", by)] if by else []
    known = [(name, form) for name, form in forms if form["kept"] is not None]
    shown = [
        f"{name} keeps {100 * form['kept']:.0f} % of this gain, as "
        + ("predicted" if form["confirmed"] is None else "trained")
        for name, form in known
        if worth_showing(form)
    ]
    return "; ".join(shown) if shown or not known else "no simple form keeps this gain"
