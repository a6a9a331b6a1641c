"""An order as a strip of its steps, coloured by group."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from markupsafe import Markup

from orderscope.report.figure import GROUPS
from orderscope.report.words import plain

COLUMNS = 240


def strip(order: np.ndarray, codes: np.ndarray, names: Sequence[str], label: str) -> Markup:
    """Steps from left to right, a mixed one in the shares of its groups; empty where there is but one group.

    Args:
        order: sample ids, [steps, batch].
        codes: index into `names` of every sample.
        names: all groups, in the order of their colours; from the eighth on they share one.
        label: what order it is, for those who cannot see it.
    """
    if len(names) < 2:
        return Markup("")
    columns = min(len(order), COLUMNS)
    edges = np.linspace(0, len(order), columns + 1).round().astype(int)
    colors = np.minimum(codes, GROUPS - 1)
    shares = [
        tuple(np.bincount(colors[order[a:b]].ravel(), minlength=min(len(names), GROUPS)) / order[a:b].size)
        for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]
    drawn, start = [], 0
    for share, members in groupby(shares):
        stop = start + len(list(members))
        drawn.append(_column(share, edges[start], edges[stop], names))
        start = stop
    return Markup(
        '<svg class="strip" viewBox="0 0 {} 1" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(len(order), f"groups by step, {plain(label)}", Markup("").join(drawn))


def _column(share: tuple[float, ...], start: int, stop: int, names: Sequence[str]) -> Markup:
    """Steps of equal composition: one rectangle a group, stacked."""
    steps = f"step {start}" if stop == start + 1 else f"steps {start} to {stop - 1}"
    parts, low = [], 0.0
    for color, height in enumerate(share):
        if height:
            name = plain(names[color]) if color < GROUPS - 1 or len(names) == GROUPS else "other groups"
            told = f"{name}, {steps}" if height == 1 else f"{name} {100 * height:.0f} %, {steps}"
            parts.append(
                Markup(
                    '<rect x="{}" y="{:.4g}" width="{}" height="{:.4g}" class="g{}"><title>{}</title></rect>'
                ).format(start, low, stop - start, height, color, told)
            )
            low += height
    return Markup("").join(parts)


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
