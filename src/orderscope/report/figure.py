"""Drawings as SVG that takes its colours and its type from the page, the same bytes every time.

Colours are drawn as markers, `#0101xx`, and become CSS variables: one drawing serves light and dark. Each figure is
drawn twice, wide and narrow, so that its lettering has the page's size on a telephone too.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from orderscope.report.words import plain

SERIES, HEAT, GROUPS = 6, 11, 8
NAMES = [
    "ink", "muted", "grid", "surface", "accent", "good",
    *(f"s{i}" for i in range(SERIES)), *(f"d{i}" for i in range(HEAT)), *(f"g{i}" for i in range(GROUPS)),
]  # fmt: skip
COLORS = {name: f"#0101{i:02x}" for i, name in enumerate(NAMES)}
INK, MUTED, GRID, SURFACE, ACCENT = (COLORS[name] for name in ("ink", "muted", "grid", "surface", "accent"))
WIDE, NARROW = 8.4, 3.7
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a metric may be called "$x$"
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}
Draw = Callable[[Figure, bool], None]


def tip(artist: Any, text: str) -> None:
    """Give a mark a text that is shown to who points at it, and read by screen readers.

    Args:
        artist: the mark, of matplotlib.
        text: on one line.
    """
    artist.set_gid(f"tip-{plain(text).encode().hex()}")


def hover(axes: Any, x: Any, y: Any, text: str) -> None:
    """Draw a wide, unseen line along a curve, which shows a text to who points near it.

    Args:
        axes: of matplotlib.
        x: places of the curve, [n].
        y: heights, [n].
        text: on one line.
    """
    (line,) = axes.plot(x, y, color=INK, linewidth=11, alpha=0.0, zorder=8)
    tip(line, text)


def apart(heights: Sequence[float], least: float, lowest: float = -math.inf) -> list[float]:
    """Heights moved up and down so that no two are nearer than `least`, in their order and about their places, and none
    is below `lowest`.

    Args:
        heights: in any order.
        least: distance of two neighbours.
        lowest: bound below.

    Example:
        >>> apart([0.0, 0.2, 5.0], 1.0), apart([0.0, 0.2, 5.0], 1.0, 0.5)
        ([-0.4, 0.6, 5.0], [0.5, 1.5, 5.0])
    """
    rank = sorted(range(len(heights)), key=lambda i: heights[i])
    blocks: list[tuple[float, list[int]]] = []  # middle, members
    for i in rank:
        blocks.append((heights[i], [i]))
        while len(blocks) > 1:
            (low, below), (high, above) = blocks[-2:]
            if high - low >= least * (len(below) + len(above)) / 2:
                break
            members = below + above
            blocks[-2:] = [(sum(heights[k] for k in members) / len(members), members)]
    found = list(heights)
    for middle, members in blocks:
        for place, i in enumerate(members):
            found[i] = round(max(lowest, middle + (place - (len(members) - 1) / 2) * least), 9)
            lowest = found[i] + least
    return found


def series(index: int) -> str:
    return COLORS[f"s{index % SERIES}"]


def drawing(name: str, label: str, draw: Draw, height: float, narrow_height: float | None = None) -> Markup:
    """A figure in both widths.

    Args:
        name: its own name on the page.
        label: what it shows, for those who cannot see it.
        draw: `(figure, narrow)`, puts axes on the figure.
        height: in inches at 72 pixels each.
        narrow_height: the same on a narrow page; as `height` if not given.
    """
    versions = [("wide", WIDE, height, False), ("narrow", NARROW, narrow_height or height, True)]
    return Markup("").join(
        Markup('<div class="drawing {}" role="img" aria-label="{}">{}</div>').format(
            width, label, Markup(_svg(f"{name}-{width}", draw, inches, tall, narrow))
        )
        for width, inches, tall, narrow in versions
    )


def _svg(name: str, draw: Draw, width: float, height: float, narrow: bool) -> str:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters its own font lacks: the page's font draws them
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        draw(figure, narrow)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        out = io.StringIO()
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})
    return _inline(out.getvalue())


def _inline(svg: str) -> str:
    """The part of an SVG file that a page needs, with the page's colours and type."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(?:xmlns(?::\w+)?|version|height|width)="[^"]*"', "", head)
    body = body.replace("xlink:href", "href")
    body = re.sub(r'\sid="tip-([0-9a-f]*)">', _title, body)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', body))
    body = re.sub(r'\sid="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    # matplotlib has written either of two forms
    body = re.sub(r"font-family:[^;\"]*", "font-family: var(--sans)", body)
    body = re.sub(r"font:\s*((?:[\w.]+ )*[\d.]+px) [^;\"]*", r"font: \1 var(--sans)", body)
    body = re.sub(r"#0101([0-9a-f]{2})", lambda found: f"var(--{NAMES[int(found[1], 16)]})", body)
    return re.sub(r"\n\s*", "\n", f"{head}>{body}").strip()


def _title(found: re.Match[str]) -> str:
    return f' class="tip"><title>{escape(bytes.fromhex(found[1]).decode())}</title>'


def bare(axes: Any, *sides: str) -> None:
    """Take away the frame's sides and the ticks on them.

    Args:
        axes: of matplotlib.
        *sides: "left", "right", "top" or "bottom".
    """
    for side in sides:
        axes.spines[side].set_visible(False)
    if "left" in sides:
        axes.tick_params(axis="y", length=0)
    if "bottom" in sides:
        axes.tick_params(axis="x", length=0)
