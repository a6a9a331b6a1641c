"""Reference and other orders, as curves with bands."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from orderscope.report.direction import Direction
from orderscope.report.download import csv_link
from orderscope.report.figure import GRID, INK, MUTED, apart, bare, drawing, hover, series, tip
from orderscope.report.material import PROPOSED, Material
from orderscope.report.predicted import Asked
from orderscope.report.section import Section
from orderscope.report.strip import legend, strip
from orderscope.report.words import figures, plain, short, signed, true_change, truth
from orderscope.text import number


def section(material: Material) -> Section:
    return Section(
        "orders",
        "What other orders would have done",
        "Other orders",
        {
            "panels": [_panel(material, metric) for metric in material.metrics] if material.asked else [],
            "legend": legend(material.group_names),
            "reference_strip": strip(material.order, material.group_codes, material.group_names, "recorded order"),
            "left_out": material.left_out,
            "trained": any(asked.true for asked in material.asked),
        },
    )


def mark(material: Material, index: int) -> str:
    """The sign of an order in figures and table: its number from 1, P for the proposal.

    Args:
        material: what the page is about.
        index: of the order among those asked about.
    """
    return "P" if material.asked[index].label == PROPOSED else str(index + 1)


def verdict(asked: Asked, metric: str, reference: float, direction: Direction) -> tuple[str, str]:
    """An order's effect on a metric in words, and the kind of statement that is, which gives its colour.

    Args:
        asked: the order with its prediction.
        metric: its name.
        reference: the metric of the recorded order.
        direction: which way is better.
    """
    if not asked.told(metric):
        return "not trusted", "warn"
    if not asked.detectable(metric, reference):
        return "no detectable effect", "quiet"
    change = asked.difference(metric, reference)
    return direction.word(change), direction.kind(change)


def _panel(material: Material, metric: str) -> dict[str, Any]:
    rows = [_row(material, i, metric) for i in range(len(material.asked))]
    return {
        "metric": short(metric),
        "reference": number(material.reference[metric], 5),
        "rows": rows,
        "figure": _figure(material, metric),
        "csv": csv_link(f"orders-{material.metrics.index(metric)}", HEADER, _csv(material, metric)),
    }


HEADER = ("order", "metric", "predicted", "error", "trained", "difference", "verdict")


def _csv(material: Material, metric: str) -> Iterator[list[object]]:
    reference = material.reference[metric]
    yield ["reference", metric, None, None, reference, 0.0, "as recorded"]
    for asked in material.asked:
        words, _ = verdict(asked, metric, reference, material.direction(metric))
        yield [asked.label, metric, asked.values[metric], asked.errors[metric], asked.true.get(metric),
               asked.difference(metric, reference), words]  # fmt: skip


def _row(material: Material, index: int, metric: str) -> dict[str, Any]:
    asked, reference = material.asked[index], material.reference[metric]
    value, error = figures(asked.values[metric], asked.errors[metric])
    words, kind = verdict(asked, metric, reference, material.direction(metric))
    return {
        "mark": mark(material, index),
        "color": index,
        "label": plain(asked.label),
        "strip": strip(asked.order, material.group_codes, material.group_names, asked.label),
        "value": value,
        "error": error if math.isfinite(asked.errors[metric]) else "",
        "difference": (true_change if metric in asked.true else signed)(
            asked.difference(metric, reference), asked.errors[metric]
        ),
        "true": truth(asked.true[metric], asked.errors[metric]) if metric in asked.true else "",
        "held": {None: "", True: "within the error", False: "outside the error"}[asked.held(metric)],
        "words": words,
        "kind": kind,
    }


def _figure(material: Material, metric: str) -> object:
    """Left the curves, right where they end: the differences there are small beside those on the way."""
    steps = material.steps
    reference = material.reference_curves[metric]
    asked = material.asked

    def draw(figure: Figure, narrow: bool) -> None:
        if narrow:
            along, end = figure.subplots(2, 1, height_ratios=[1.5, 0.25 + 0.2 * len(asked)])
        else:
            along, end = figure.subplots(1, 2, width_ratios=[1.55, 1])
        along.plot(steps, reference, color=INK, marker="o", markersize=3.5, linewidth=2, zorder=5)
        hover(along, steps, reference, f"recorded order: {short(metric)} {number(reference[-1], 5)} at the end")
        end.axvline(0, color=INK, linewidth=1.4, zorder=1)
        ends = [reference[-1]]
        for i, order in enumerate(asked):
            curve, error, color = order.curves[metric], order.errors[metric], series(i)
            curve = np.append(curve[:-1], order.values[metric])
            difference = order.values[metric] - reference[-1]
            along.plot(steps, curve, color=color, zorder=4)
            ends.append(float(curve[-1]))
            said = _said(order, metric)
            hover(along, steps, curve, said)
            if math.isfinite(error):
                width = error * steps / steps[-1]
                along.fill_between(steps, curve - width, curve + width, color=color, alpha=0.15, linewidth=0, zorder=1)
                end.plot(
                    [difference - error, difference + error], [i, i], color=color, alpha=0.55, linewidth=2, zorder=2
                )
            tip(end.plot(difference, i, "o", color=color, markersize=6, zorder=3)[0], said)
            if metric in order.true:
                true = order.true[metric] - reference[-1]
                ring = end.plot(true, i, "o", color=color, markerfacecolor="none", markersize=10, markeredgewidth=1.4,
                                zorder=4)  # fmt: skip
                tip(ring[0], said)
        _label_ends(along, steps, ends, [(INK, "–"), *((series(i), mark(material, i)) for i in range(len(asked)))])
        along.grid(axis="y", color=GRID)
        along.set_axisbelow(True)
        along.set_xlabel("steps trained")
        along.set_title(short(metric, 24), loc="left", color=MUTED, fontsize=10)
        end.set_ylim(len(asked) - 0.5, -0.5)
        signs = [mark(material, i) for i in range(len(asked))]
        named = [f"{short(order.label, 20)}  {sign}" for order, sign in zip(asked, signs, strict=True)]
        end.set_yticks(range(len(asked)), signs if narrow else named, fontweight="bold" if narrow else "normal")
        for i, label in enumerate(end.get_yticklabels()):
            label.set_color(series(i))
        end.locator_params(axis="x", nbins=5)
        end.set_title("at the end, to the recorded order", loc="left", color=MUTED, fontsize=10)
        bare(along, "left")
        bare(end, "left")

    label = f"{plain(metric)} while training, in the recorded order and in {len(asked)} others."
    return drawing(f"curves-{material.metrics.index(metric)}", label, draw, 3.4, 3.6 + 0.24 * len(asked))


def _said(order: Asked, metric: str) -> str:
    """An order's values, for who points at it."""
    value, error = figures(order.values[metric], order.errors[metric])
    told = f"{plain(order.label)}: {short(metric)} {value} {error} predicted"
    return told if metric not in order.true else f"{told}, {number(order.true[metric], 5)} trained"


def _label_ends(axes: Any, steps: np.ndarray, ends: list[float], names: list[tuple[str, str]]) -> None:
    """The sign of each curve beside its end, none over another."""
    low, high = axes.get_ylim()
    room = axes.figure.get_size_inches()[1] * 72 * (0.75 if len(axes.figure.axes) > 1 else 0.8)
    room *= axes.get_position().height / 0.77
    place = [(value - low) / (high - low) * room for value in ends]
    for value, at, moved, (color, name) in zip(ends, place, apart(place, 9.5, 5.0), names, strict=True):
        axes.annotate(name, (steps[-1], value), xytext=(7, moved - at), textcoords="offset points", color=color,
                      fontweight="bold", va="center", annotation_clip=False)  # fmt: skip
