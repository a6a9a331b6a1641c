"""How much order matters here, beside the noise."""

from __future__ import annotations

import math
from collections.abc import Iterator

from matplotlib.figure import Figure

from orderscope.answers.effect import Effect
from orderscope.report.download import csv_link
from orderscope.report.figure import ACCENT, GRID, INK, MUTED, SURFACE, bare, drawing, tip
from orderscope.report.material import Material
from orderscope.report.section import Section
from orderscope.report.words import count, short, two
from orderscope.text import number


def section(material: Material) -> Section:
    rows = [_row(material.effects[name]) for name in material.metrics]
    return Section(
        "matters",
        "How much order matters here",
        "Effect of order",
        {
            "rows": rows,
            "figure": _figure(material),
            "floor": any(math.isfinite(e.floor) for e in _effects(material)),
            "csv": csv_link("effect-of-order", HEADER, _csv(material)),
        },
    )


HEADER = ("metric", "recorded", "sigma_order", "noise_floor", "held_out_noise", "rows", "runs", "verdict")


def _csv(material: Material) -> Iterator[list[object]]:
    for e in _effects(material):
        yield [e.metric, e.reference, e.sigma, e.floor, e.held_out, e.rows, e.runs, e.verdict]


def _effects(material: Material) -> list[Effect]:
    return [material.effects[name] for name in material.metrics]


def _row(effect: Effect) -> dict[str, str]:
    ratio = effect.sigma / effect.noise if effect.noise else math.inf
    return {
        "metric": short(effect.metric),
        "reference": number(effect.reference, 5),
        "sigma": two(effect.sigma),
        "floor": two(effect.floor),
        "held_out": two(effect.held_out) if math.isfinite(effect.held_out) else "",
        "ratio": f"{ratio:.1f}" if ratio < 1000 else "> 1000" if effect.sigma else "",
        "verdict": effect.verdict,
    }


def _figure(material: Material) -> object:
    shown = [effect for effect in _effects(material) if effect.sigma > 0]
    if not shown:
        return None
    unseen = {
        name: [v for check in material.validations for v in check.true.get(name, ())] for name in material.metrics
    }

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        for row, effect in enumerate(reversed(shown)):
            noise = effect.noise / effect.sigma if math.isfinite(effect.noise) else 0.0
            axes.barh(row, 2, left=-1, height=0.64, color=GRID, alpha=0.7, zorder=1)
            axes.barh(row, 2 * noise, left=-noise, height=0.64, color=MUTED, alpha=0.35, zorder=2)
            for values, filled in ((material.probes[effect.metric], False), (unseen[effect.metric], True)):
                for i, value in enumerate(values):
                    (dot,) = axes.plot(
                        (float(value) - effect.reference) / effect.sigma, row, "o", color=ACCENT, markersize=6,
                        markerfacecolor=ACCENT if filled else SURFACE, markeredgewidth=1.4, zorder=4,
                    )  # fmt: skip
                    kind = "unseen order" if filled else "probe"
                    tip(dot, f"{kind} {i}: {short(effect.metric)} {number(value, 5)}, trained")
            axes.plot([0, 0], [row - 0.32, row + 0.32], color=INK, linewidth=2, zorder=3)
        axes.set_yticks(range(len(shown)), [short(e.metric, 14 if narrow else 24) for e in reversed(shown)], color=INK)
        axes.set_ylim(-0.6, len(shown) - 0.4)
        long = "true final value minus that of the recorded order, in standard deviations over orders"
        axes.set_xlabel("difference to the recorded order, in σ" if narrow else long)
        bare(axes, "left")

    label = f"True final values of {count(shown[0].runs - 1, 'other order')} beside the recorded one, for every metric."
    return drawing("matters", label, draw, 0.9 + 0.42 * len(shown))
