"""The position map: how well a batch is remembered, by when it was trained."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from orderscope.report.download import csv_link
from orderscope.report.figure import ACCENT, COLORS, GRID, HEAT, INK, MUTED, bare, drawing, tip
from orderscope.report.material import Material
from orderscope.report.section import Section
from orderscope.report.words import count, figures, short, signed, two
from orderscope.studies.heatmap import Heat


def section(material: Material) -> Section:
    title = "When a batch comes, and how well it is remembered"
    if material.heat is None:
        return Section("heat", title, "Positions", {"found": False})
    heat, moved = material.heat, _moved(material.heat)
    detectable = np.abs(moved) > heat.error
    top = float(np.abs(moved).max()) or 1.0
    return Section(
        "heat",
        title,
        "Positions",
        {
            "found": True,
            "words": _words(heat, moved, detectable),
            "figure": _figure(material, heat, moved, detectable, top),
            "top": two(top),
            "colors": range(HEAT),
            "csv": csv_link("positions", HEADER, _csv(heat)),
        },
    )


HEADER = ("batch", "recorded_at", "place", "loss", "error", "recorded_loss", "trained")
TIPPED = 600  # most cells of a map in which each shows its values to who points at it


def _csv(heat: Heat) -> Iterator[list[object]]:
    true = {(i, j): value for (i, j), value in zip(heat.cells.tolist(), heat.true.tolist(), strict=True)}
    for i, unit in enumerate(heat.units):
        for j, place in enumerate(heat.places):
            yield [int(unit), int(heat.at[i]), int(place), float(heat.value[i, j]), float(heat.error[i, j]),
                   float(heat.recorded[i]), true.get((i, j))]  # fmt: skip


def _moved(heat: Heat) -> np.ndarray:
    """Loss at each place minus the loss at the place nearest to where the unit was recorded, [n, k]."""
    own = np.abs(heat.places[None, :] - heat.at[:, None]).argmin(axis=1)
    return heat.value - heat.value[np.arange(len(heat.units)), own][:, None]


def _words(heat: Heat, moved: np.ndarray, detectable: np.ndarray) -> str:
    early, late = int(heat.places.argmin()), int(heat.places.argmax())
    gain = float((heat.value[:, early] - heat.value[:, late]).mean())
    direction = "better" if gain > 0 else "worse"
    share = f"{100 * detectable.mean():.0f} %"
    batches = f"{len(heat.units)} batches" if len(heat.units) != 1 else "1 batch"
    return (
        f"Over {batches}, training a batch last instead of first leaves the final loss on it {direction} by "
        f"{two(abs(gain))}. {share} of the moves shown are larger than their error." + _checked(heat)
    )


def _checked(heat: Heat) -> str:
    """A summary of the trained cells."""
    if not len(heat.true):
        return ""
    i, j = heat.cells.T
    off, inside = np.abs(heat.value[i, j] - heat.true), np.abs(heat.value[i, j] - heat.true) <= heat.error[i, j]
    return (
        f" {count(len(heat.true), 'move')} (ringed) were truly trained: off by {two(float(off.mean()))} on average, "
        f"{int(inside.sum())} of {len(inside)} inside the error."
    )


def _figure(material: Material, heat: Heat, moved: np.ndarray, detectable: np.ndarray, top: float) -> object:
    rows = np.argsort(heat.at, kind="stable")
    bins = np.clip(((moved / top + 1) / 2 * HEAT).astype(int), 0, HEAT - 1)
    edges = _edges(heat.places)

    def draw(figure: Figure, narrow: bool) -> None:
        axes, below = figure.subplots(2, 1, height_ratios=[max(2.0, 0.16 * len(rows)), 1], sharex=True)
        cells: dict[int, list[Path]] = {}
        for y, i in enumerate(rows):
            for j in range(len(heat.places)):
                inset = 0.0 if detectable[i, j] else 0.3
                width = edges[j + 1] - edges[j]
                box = _box(edges[j] + inset * width, y - 0.5 + inset, width * (1 - 2 * inset), 1 - 2 * inset)
                if heat.value.size > TIPPED:
                    cells.setdefault(int(bins[i, j]), []).append(box)
                    continue
                patch = PathPatch(box, facecolor=COLORS[f"d{bins[i, j]}"], edgecolor="none", linewidth=0)
                axes.add_patch(patch)
                value, width_of = figures(float(heat.value[i, j]), float(heat.error[i, j]))
                tip(patch, f"batch of step {heat.units[i]}, trained at {heat.places[j]}: loss {value} {width_of}, "
                           f"{signed(float(moved[i, j]), float(heat.error[i, j]))}")  # fmt: skip
        for level, boxes in sorted(cells.items()):
            path = Path.make_compound_path(*boxes)
            axes.add_patch(PathPatch(path, facecolor=COLORS[f"d{level}"], edgecolor="none", linewidth=0))
        axes.plot(heat.at[rows], np.arange(len(rows)), "o", color=INK, markersize=3, zorder=3)
        if len(heat.cells):
            row_of = np.argsort(rows)
            i, j = heat.cells.T
            axes.scatter(heat.places[j], row_of[i], s=26, facecolors="none", edgecolors=INK, linewidths=0.9, zorder=3)
            below.plot(heat.places[j], heat.true - heat.recorded[i], ".", color=INK, markersize=4, zorder=3)
        if heat.neighbours.size and np.isfinite(heat.neighbours).all():
            own = np.abs(heat.places[None, :] - heat.at[:, None]).argmin(axis=1)
            near = heat.neighbours - heat.neighbours[np.arange(len(heat.units)), own][:, None]
            below.plot(heat.places, near.mean(axis=0), color=MUTED, linestyle="--")
        axes.set_ylim(len(rows) - 0.5, -0.5)
        every = max(1, round(len(rows) / 12))
        names = [f"{heat.units[i]} {short(material.reference_groups[heat.units[i]], 10)}"
                 if material.grouped and not narrow else str(heat.units[i]) for i in rows]  # fmt: skip
        axes.set_yticks(range(0, len(rows), every), names[::every], fontsize=9)
        axes.set_ylabel("batch of step" if material.grouped else "batch of recorded step")
        bare(axes, "left", "bottom")
        mean = moved.mean(axis=0)
        width = heat.error.mean(axis=0)
        below.fill_between(heat.places, mean - width, mean + width, color=ACCENT, alpha=0.16, linewidth=0)
        below.plot(heat.places, mean, color=ACCENT)
        below.axhline(0, color=MUTED, linewidth=0.8)
        below.grid(axis="y", color=GRID)
        below.set_xlabel("position it is trained at")
        below.set_ylabel("mean")
        below.set_xlim(edges[0], edges[-1])
        below.locator_params(axis="y", nbins=4)
        bare(below, "left")

    label = "Change of the final loss on a batch, by the position it is trained at."
    tall = max(2.0, 0.16 * len(rows)) + 2.2
    return drawing("heat", label, draw, tall)


def _edges(places: np.ndarray) -> np.ndarray:
    middle = (places[1:] + places[:-1]) / 2
    if not len(middle):
        return np.array([places[0] - 0.5, places[0] + 0.5])
    return np.concatenate([[places[0] - 0.5], middle, [places[-1] + 0.5]])


def _box(x: float, y: float, width: float, height: float) -> Path:
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
    return Path(corners, [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY])
