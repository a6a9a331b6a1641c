"""What the recorded run remembers: trained batches, batches to come and held-out data along the anchors, and gradients
by layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from orderscope.report.direction import LOSS
from orderscope.report.download import csv_link
from orderscope.report.figure import ACCENT, GRID, INK, MUTED, bare, drawing, series, tip
from orderscope.report.material import Material
from orderscope.report.section import Section
from orderscope.report.words import short, two
from orderscope.studies.memory import Memory

LAYERS = 40


def section(material: Material) -> Section:
    title = "Memorized or generalized"
    kept = material.memory
    if kept is None:
        return Section("memory", title, "Memory", {"found": False})
    return Section(
        "memory",
        title,
        "Memory",
        {
            "found": True,
            "words": _words(material),
            "figure": _figure(material),
            "layers": _layers(material),
            "csv": csv_link("memory", HEADER, _csv(kept)),
        },
    )


HEADER = ("what", "at_step_or_age", "change_of_loss")


def _csv(kept: Memory) -> Iterator[list[object]]:
    rows = (
        ("trained before", kept.steps, kept.seen),
        ("still to come", kept.steps, kept.unseen),
        (kept.metric, kept.steps, kept.held_out),
        ("by age, to others of its group", kept.ages, kept.remembered),
    )
    for what, at, values in rows:
        for step, value in zip(at, values, strict=True):
            yield [what, int(step), float(value)]


def _words(material: Material) -> str:
    kept = material.memory
    assert kept is not None
    trained, held_out = kept.seen[-1], kept.held_out[-1]
    said = (
        f"At the end the loss on trained batches is {LOSS.word(trained)} by {two(abs(trained))} than at the start, and "
        f"{short(kept.metric)} {material.direction(kept.metric).word(held_out)} by {two(abs(held_out))}."
    )
    if kept.generalized is None:
        said += " Held-out data never gains half of what the batches trained before do: mostly memorized."
    elif trained < 0:
        said += f" From step {kept.generalized} on held-out data gains at least half as much: it generalizes."
    if len(kept.ages):
        fresh, old = float(kept.remembered[0]), float(kept.remembered[-1])
        said += (
            f" A batch just trained on does {LOSS.word(fresh)} by {two(abs(fresh))} than others of its group; "
            f"{int(kept.ages[-1])} steps later {LOSS.word(old)} by {two(abs(old))}."
        )
    return said


def _figure(material: Material) -> object:
    kept = material.memory
    assert kept is not None

    def draw(figure: Figure, narrow: bool) -> None:
        along, after = figure.subplots(2, 1) if narrow else figure.subplots(1, 2)
        rows = ((kept.seen, INK, "trained before"), (kept.unseen, MUTED, "still to come"),
                (kept.held_out, ACCENT, short(kept.metric, 20)))  # fmt: skip
        for values, color, name in rows:
            along.plot(kept.steps, values, color=color, label=name)
            for step, value in zip(kept.steps, values, strict=True):
                tip(along.plot(step, value, "o", color=color, markersize=4.5)[0], f"{name}, step {step}: {value:+.3g}")
        along.axhline(0, color=GRID, linewidth=0.8)
        along.set_xlabel("steps trained")
        along.set_title("change of loss since the start", loc="left", color=MUTED, fontsize=10)
        along.legend(frameon=False, fontsize=9)
        for age, value in zip(kept.ages, kept.remembered, strict=True):
            tip(after.plot(age, value, "o", color=ACCENT, markersize=4)[0], f"{age} steps later: {value:+.3g}")
        after.axhline(0, color=GRID, linewidth=0.8)
        after.set_xlabel("steps since it was trained")
        after.set_title("loss to others of its group", loc="left", color=MUTED, fontsize=10)
        bare(along, "left")
        bare(after, "left")

    return drawing(
        "memory", "Loss on trained, coming and held-out data, and forgetting after exposure.", draw, 3.0, 5.4
    )


def _layers(material: Material) -> object:
    """Root mean square gradient of each parameter at the last anchor, one line a group."""
    kept = material.memory
    assert kept is not None
    norms = kept.norms[-1]
    rows = [i for i in range(len(kept.layers)) if np.isfinite(norms[i]).any()][:LAYERS]
    if not rows:
        return ""

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        for group, name in enumerate(kept.groups[:6]):
            axes.plot(norms[rows, group], np.arange(len(rows)), "o-", color=series(group), markersize=4, linewidth=0.8,
                      label=short(name, 16))  # fmt: skip
        axes.set_yticks(range(len(rows)), [short(kept.layers[i], 12 if narrow else 28) for i in rows], fontsize=8)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("root mean square gradient at the end")
        axes.grid(axis="x", color=GRID)
        if len(kept.groups) > 1:
            axes.legend(frameon=False, fontsize=9)
        bare(axes, "left", "bottom")

    return drawing("layers", "Gradient size by parameter and group.", draw, 1.0 + 0.17 * len(rows))
