"""An order as a strip of its steps, coloured by group."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from orderscope.report.figure import GROUPS
from orderscope.report.words import plain


def strip(groups: Sequence[str], names: Sequence[str], label: str) -> Markup:
    """Steps from left to right; empty where there is but one group.

    Args:
        groups: group of each step.
        names: all groups, in the order of their colours; from the eighth on they share one.
        label: what order it is, for those who cannot see it.
    """
    if len(names) < 2:
        return Markup("")
    color = {name: min(i, GROUPS - 1) for i, name in enumerate(names)}
    runs, start = [], 0
    for name, members in groupby(groups):
        length = len(list(members))
        runs.append(
            Markup('<rect x="{}" width="{}" height="1" class="g{}"><title>{}</title></rect>').format(
                start, length, color[name], f"{plain(name)}, {_steps(start, length)}"
            )
        )
        start += length
    return Markup(
        '<svg class="strip" viewBox="0 0 {} 1" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(start, f"groups by step, {plain(label)}", Markup("").join(runs))


def legend(names: Sequence[str]) -> Markup:
    """The groups and their colours."""
    if len(names) < 2:
        return Markup("")
    shown = [
        Markup('<span class="key"><i class="g{}"></i>{}</span>').format(i, plain(name))
        for i, name in enumerate(names[: GROUPS - 1])
    ]
    rest = len(names) - len(shown)
    if rest:
        other = plain(names[-1]) if rest == 1 else f"{rest} more groups"
        shown.append(Markup('<span class="key"><i class="g{}"></i>{}</span>').format(GROUPS - 1, other))
    return Markup('<p class="legend">{}</p>').format(Markup(" ").join(shown))


def _steps(start: int, length: int) -> str:
    return f"step {start}" if length == 1 else f"steps {start} to {start + length - 1}"
