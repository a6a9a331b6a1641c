"""Predicted against true."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from orderscope.report.download import csv_link
from orderscope.report.figure import ACCENT, GRID, INK, SURFACE, drawing, tip
from orderscope.report.material import Material
from orderscope.report.predicted import Pairs
from orderscope.report.section import Section
from orderscope.report.words import count, figures, short, two
from orderscope.text import number


def section(material: Material) -> Section:
    panels = [_panel(material, metric) for metric in material.metrics if material.pairs[metric]]
    return Section(
        "truth",
        "Predicted against true",
        "Predicted and true",
        {"panels": panels, "validated": bool(material.validations)},
    )


def _panel(material: Material, metric: str) -> dict[str, Any]:
    titles = {"probes": "all true runs, each left out", "unseen": "unseen orders, before training"}  # fmt: skip
    rows = []
    for pairs in material.pairs[metric]:
        found = pairs.agreement
        rows.append(
            {
                "kind": titles[pairs.kind],
                "n": len(pairs.true),
                "pearson": _ratio(found["pearson"]),
                "mae_ratio": _ratio(found["mae_ratio"]),
                "coverage": _inside(pairs),
            }
        )
    return {
        "metric": short(metric),
        "rows": rows,
        "skilled": material.skilled[metric],
        "words": _words(material, metric),
        "figure": _figure(material, metric),
        "csv": csv_link(f"predicted-and-true-{material.metrics.index(metric)}", HEADER, _csv(material, metric)),
    }


HEADER = ("kind", "metric", "predicted", "error", "true")


def _csv(material: Material, metric: str) -> Iterator[list[object]]:
    for pairs in material.pairs[metric]:
        for values in zip(pairs.predicted, pairs.error, pairs.true, strict=True):
            yield [pairs.kind, metric, *map(float, values)]


def _inside(pairs: Pairs) -> str:
    """How many true values lie inside their interval, of how many that have one."""
    known = np.isfinite(pairs.error)
    inside = (np.abs(pairs.predicted - pairs.true) <= pairs.error)[known]
    return f"{int(inside.sum())} of {len(inside)}" if len(inside) else ""


def _words(material: Material, metric: str) -> str:
    best = material.pairs[metric][-1]
    mean = best.agreement["mae"]
    sigma = material.effects[metric].sigma
    what = "unseen orders" if best.kind == "unseen" else "left-out runs"
    share = f", {100 * mean / sigma:.0f} % of σ" if sigma > 0 else ""
    return f"Over {count(len(best.true), what[:-1])} the prediction was off by {two(mean)} on average{share}."


def _ratio(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else ""


def _figure(material: Material, metric: str) -> object:
    reference = material.reference[metric]

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        everything = [reference]
        for pairs in material.pairs[metric]:
            unseen = pairs.kind == "unseen"
            if np.isfinite(pairs.error).any():
                axes.errorbar(
                    pairs.true, pairs.predicted, yerr=np.nan_to_num(pairs.error), fmt="none", color=ACCENT, alpha=0.35,
                    linewidth=1.2, zorder=2,
                )  # fmt: skip
            for i, (true, predicted, error) in enumerate(zip(pairs.true, pairs.predicted, pairs.error, strict=True)):
                (dot,) = axes.plot(
                    true, predicted, "o" if unseen else "D", color=ACCENT, markersize=6 if unseen else 5.5,
                    markerfacecolor=ACCENT if unseen else SURFACE, markeredgewidth=1.4, zorder=3,
                )  # fmt: skip
                value, width = figures(float(predicted), float(error))
                kind = "unseen order" if unseen else "run left out"
                tip(dot, f"{kind} {i}: {value} {width if width != 'none' else ''} predicted, {number(true, 5)} trained")
            everything += [*pairs.true, *pairs.predicted]
        axes.plot(reference, reference, "+", color=INK, markersize=11, markeredgewidth=2, zorder=4)
        low, high = min(everything), max(everything)
        room = 0.08 * (high - low or 1.0)
        low, high = low - room, high + room
        axes.plot([low, high], [low, high], color=GRID, linewidth=1.4, zorder=1)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_aspect("equal")
        axes.locator_params(nbins=4 if narrow else 6)
        axes.set_xlabel("truly trained")
        axes.set_ylabel("predicted")

    label = f"Predicted beside true {short(metric)}; on the diagonal they agree."
    return drawing(f"truth-{material.metrics.index(metric)}", label, draw, 4.0, 3.7)
