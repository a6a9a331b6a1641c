"""Where in the run predictions go wrong: errors of predicted gradients by step, and what they add up to."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from orderscope.report.download import csv_link
from orderscope.report.figure import ACCENT, GRID, INK, MUTED, bare, drawing, hover, tip
from orderscope.report.material import Material
from orderscope.report.section import Section
from orderscope.report.words import count, listed, plain, short, two
from orderscope.studies.step_map import StepErrorMap, rms

HEADER = ("first_step", "last_step", "gradient_error", "without_curvature", "cosine", "effect", "mean_effect", "share")
SHOWN = 12  # most runs that are drawn


def section(material: Material) -> Section:
    title, found = "Where in the run predictions go wrong", material.step_errors
    if found is None or not found.runs:
        loss = material.facts["metrics"].get(material.metric) is not None
        named = f" --metric {shlex.quote(plain(material.metric))}" if loss else ""
        return Section("steps", title, "Steps", {"found": False, "named": named, "loss": loss})
    return Section(
        "steps",
        title,
        "Steps",
        {
            "found": True,
            "words": _words(found),
            "figure": _figure(found),
            "csv": csv_link("steps", HEADER, _csv(found)),
        },
    )


def _csv(found: StepErrorMap) -> Iterator[list[object]]:
    for part in found.segments:
        yield [part.start, part.stop - 1, part.gradient, part.interpolation, part.cosine, part.effect, part.mean,
               part.share]  # fmt: skip


def _words(found: StepErrorMap) -> str:
    runs = count(len(found.runs), "true run")
    text = (
        f"{runs}, each predicted without its own states: gradients are off by "
        f"{two(100 * float(np.nanmedian(found.gradient)))} % of their norm in the median, and by "
        f"{two(100 * float(np.nanmedian(found.interpolation)))} % without the curvature. "
    )
    most = max(found.segments, key=lambda part: -1.0 if math.isnan(part.share) else part.share)
    if math.isfinite(most.share):
        where = f"steps {most.start} to {most.stop - 1}" if most.stop > most.start + 1 else f"step {most.start}"
        text += (
            f"The largest part of the errors of {short(found.metric)}, {100 * most.share:.0f} %, comes from {where}. "
        )
    text += f"All steps add up to ±{two(rms(found.total))} over the runs; "
    text += f"the predicted final weights are wrong by ±{two(rms(found.weights))}"
    text += f", with a correlation of {found.agreement:.2f}." if math.isfinite(found.agreement) else "."
    if found.without:
        text += f" Not included: {listed([short(name) for name in found.without])}, whose batches were not recorded."
    return text


def _figure(found: StepErrorMap) -> object:
    steps = np.arange(found.steps)
    summed = np.nancumsum(found.effect, axis=1)

    def draw(figure: Figure, narrow: bool) -> None:
        along, added = figure.subplots(2, 1) if narrow else figure.subplots(1, 2)
        for values, color, name in (
            (found.interpolation, MUTED, "without curvature"),
            (found.gradient, ACCENT, "as predicted"),
        ):
            known = np.isfinite(values).any(axis=0)
            low, middle, high = 100 * np.nanquantile(values[:, known], (0.25, 0.5, 0.75), axis=0)
            along.fill_between(steps[known], low, high, color=color, alpha=0.16, linewidth=0)
            along.plot(steps[known], middle, color=color, label=name)
            hover(along, steps[known], middle, f"{name}: {two(float(np.median(middle)))} % in the median")
        along.set_ylim(bottom=0)
        along.set_xlabel("step")
        along.set_title("error of the gradient, %", loc="left", color=MUTED, fontsize=10)
        along.legend(frameon=False, fontsize=9)
        along.grid(axis="y", color=GRID)
        for run, curve, true in list(zip(found.runs, summed, found.weights, strict=True))[:SHOWN]:
            added.plot(steps, curve, color=MUTED, linewidth=0.9, alpha=0.8)
            hover(added, steps, curve, f"{plain(run)}: {curve[-1]:+.2g} by adding up, {true:+.2g} by the true run")
            mark = added.plot(found.steps - 1, true, "o", color=INK, markersize=3.5, clip_on=False, zorder=4)[0]
            tip(mark, f"{plain(run)}: {true:+.2g} by the true run")
        added.plot(steps, summed.mean(axis=0), color=ACCENT, zorder=3)
        added.axhline(0, color=GRID, linewidth=0.8)
        added.set_xlabel("step")
        added.set_title(f"effect on {short(found.metric, 20)}, added up", loc="left", color=MUTED, fontsize=10)
        bare(along, "left")
        bare(added, "left")

    label = f"Error of the predicted gradients by step, and what it adds up to in {plain(found.metric)}."
    return drawing("steps", label, draw, 3.0, 5.4)
