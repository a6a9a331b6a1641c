"""The proposed order, what it gains, and its regret against random retraining at equal cost."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from orderscope.answers.stored import because, number_of
from orderscope.report import moved
from orderscope.report.download import csv_link, npy_link
from orderscope.report.figure import ACCENT, GRID, INK, MUTED, SURFACE, bare, drawing, tip
from orderscope.report.gain import change, confirmed, gained, predicted_change
from orderscope.report.material import Material, confirmed_runs
from orderscope.report.section import Section
from orderscope.report.strip import legend
from orderscope.report.words import count, figures, plain, short, two
from orderscope.search.notes import REFINED, elsewhere_words, folded, kept_words, part_words, worth_showing
from orderscope.text import number

ROWS = 12


def section(material: Material) -> Section:
    title = "A better order"
    if material.proposal is None:
        return Section("proposal", title, "A better order", {"found": False, "metric": short(material.metric)})
    facts = material.proposal.facts
    searched = facts.get("searched", True)
    grouped = material.group_names if material.grouped else []
    return Section(
        "proposal",
        title,
        "A better order",
        {
            "found": True,
            "searched": searched,
            "metric": short(facts["metric"]),
            "verdict": verdict(material, facts),
            "parts": [_sentence(said) for said in _parts(facts)],
            "simple": _simple(facts.get("simple")),
            "kept": _sentence(kept_words(facts)),
            "sort": _sort(facts.get("sort")),
            "words": words(material, facts) if searched else "",
            "regret": regret(material) if searched else "",
            "notes": [plain(note) for note in folded([str(note) for note in facts["notes"]])],
            "rows": [_row(row) for row in material.proposal.table[:ROWS]],
            "more": max(0, len(material.proposal.table) - ROWS),
            "scored": count(int(facts["scored"]), "order"),
            "moved": moved.words(material.order, material.proposal.order),
            "picture": moved.picture(material.order, material.proposal.order, material.group_codes, grouped)
            if searched
            else "",
            "legend": legend(material.group_names),
            "figure": _figure(facts),
            "front": _front(facts),
            "csv": csv_link("proposal", HEADER, ([row[name] for name in HEADER] for row in material.proposal.table)),
            "order": order_link(material),
        },
    )


def _parts(facts: dict[str, Any]) -> list[str]:
    """What is gained on each part of the held-out rows, and what to expect on others."""
    found = [f"{REFINED} gained:"] if facts.get("refined") else []
    found += [part_words(part) for part in facts.get("parts") or []]
    return [*found, *filter(None, [elsewhere_words(facts)])]


HEADER = ("name", "source", "predicted", "error", "confirmed")


def order_link(material: Material) -> Markup:
    """The proposed order as a file; empty where there is none, or it is too large for a page."""
    if material.proposal is None or not material.proposal.facts.get("searched", True):
        return Markup("")
    return npy_link("proposed-order", material.proposal.order, "the proposed order as .npy")


def verdict(material: Material, facts: dict[str, Any]) -> str:
    """What there was for a proposal to find, in words.

    Args:
        material: what the page is about.
        facts: of the proposal, see `StoredProposal`.
    """
    effect = facts.get("effect")
    if not effect or not effect.get("shuffled"):
        return plain(str(facts.get("verdict") or ""))
    name = short(facts["metric"])
    ratio = (
        "" if effect["ratio"] is None else f", {number(effect['ratio'], 2)} times what the choice of held-out rows does"
    )
    noise = "" if effect["noise"] is None else f" (±{two(effect['noise'])})"
    said = f"Shuffled orders, which is what a search chooses from, differ by ±{two(effect['sigma'])} in {name}"
    said += f", as predicted{ratio}{noise}."
    recorded = material.effects.get(facts["metric"])
    if recorded is not None and recorded.runs > 1:
        said += f" The recorded runs, some with their groups in blocks, differ by ±{two(recorded.sigma)}."
    return said


def words(material: Material, facts: dict[str, Any]) -> str:
    """What a proposal gains, predicted and true, in words.

    Args:
        material: what the page is about.
        facts: of the proposal, see `StoredProposal`.
    """
    value, width = figures(facts["predicted"], number_of(facts["error"]))
    said = f"Predicted: {short(facts['metric'])} {value} {width}, {predicted_change(facts)} to the recorded order"
    if facts["confirmed"] is None:
        inside = f"; no detectable effect: {because(facts)}" if facts["undetectable"] else ""
        return f"{said}{inside}. It was not trained to confirm it."
    luck = f", but {because(facts)}" if facts["undetectable"] else ""
    return f"{said}. Truly trained: {confirmed(facts)}, {change(facts)}: {gained(material, facts)}{luck}."


def regret(material: Material) -> str:
    """The proposal beside the best of as many random orders as its cost in runs would have trained."""
    assert material.proposal is not None
    facts = material.proposal.facts
    if facts["best_of_n"] is None or facts["cost"] is None:
        return ""
    got = facts["confirmed"] if facts["confirmed"] is not None else facts["predicted"]
    runs = f"{facts['cost']:.0f}"
    behind = got - facts["best_of_n"]
    better = behind > 0 if facts["maximize"] else behind < 0
    ahead = "the proposal is ahead by" if better else "the proposal is behind by"
    trained = confirmed_runs(material.proposal)
    spent = f"recording cost {number(material.recording, 3)} of them"
    if material.searched:
        spent += f", the search {number(material.searched, 3)}, confirming {trained}"
    return (
        f"Everything spent on it equals {runs} runs ({spent}). The best of {runs} random orders, all truly trained, "
        f"would be expected at {number(facts['best_of_n'], 5)}: {ahead} {two(abs(behind))}."
    )


def _simple(simple: dict[str, Any] | None) -> dict[str, Any]:
    """The nearest schedule of groups; empty where there is none that keeps some of the gain."""
    if not simple or not worth_showing(simple):
        return {}
    return {
        "rows": [[short(str(name)), *(f"{100 * row[g] / len(simple['density']):.0f}" for row in simple["density"])]
                 for g, name in enumerate(simple["groups"])],
        "parts": list(range(1, 1 + len(simple["density"]))),
    }  # fmt: skip


def _sort(sort: dict[str, Any] | None) -> str:
    """The nearest sort, in a sentence; empty where there is none that keeps some of the gain."""
    if not sort or not worth_showing(sort):
        return ""
    return f"The order is close to a sort by {plain(sort['by'])}: the rank correlation is {sort['correlation']:.2f}."


def _sentence(words: str) -> str:
    end = "" if words.endswith(":") else "."
    return plain(words[:1].upper() + words[1:] + end if words else "")


def _row(row: dict[str, Any]) -> dict[str, str]:
    value, error = figures(row["predicted"], number_of(row["error"]))
    return {
        "name": plain(row["name"]),
        "source": plain(row["source"]),
        "value": value,
        "error": error,
        "confirmed": "" if row["confirmed"] is None else number(row["confirmed"], 5),
    }


def _figure(facts: dict[str, Any]) -> object:
    random = facts["random"] or {}
    mean, spread = random.get("mean"), random.get("std")
    lines = [("recorded order", facts["reference"], 0.0, "tick")]
    if mean is not None and spread is not None:
        lines.append(("random orders, ±1 σ", mean, spread, "band"))
    if facts["best_of_n"] is not None:
        lines.append((f"best of {facts['cost']:.0f} random", facts["best_of_n"], 0.0, "open"))
    lines.append(("proposal, predicted", facts["predicted"], number_of(facts["error"]), "open"))
    if facts["confirmed"] is not None:
        lines.append(("proposal, trained", facts["confirmed"], 0.0, "full"))

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        axes.axvline(facts["reference"], color=INK, linewidth=1, zorder=1)
        for row, (name, x, width, kind) in enumerate(reversed(lines)):
            if kind == "band":
                axes.barh(row, 2 * width, left=x - width, height=0.5, color=GRID, zorder=2)
                axes.plot([x, x], [row - 0.25, row + 0.25], color=MUTED, linewidth=2, zorder=3)
            elif kind == "tick":
                axes.plot([x, x], [row - 0.28, row + 0.28], color=INK, linewidth=3, zorder=3)
            else:
                if width > 0:
                    axes.plot([x - width, x + width], [row, row], color=ACCENT, alpha=0.5, linewidth=2, zorder=3)
                (dot,) = axes.plot(x, row, "o", color=ACCENT, markersize=8, markeredgewidth=1.6, zorder=4,
                                   markerfacecolor=ACCENT if kind == "full" else SURFACE)  # fmt: skip
                value, error = figures(x, width)
                tip(dot, f"{name}: {value} {error if width > 0 else ''}")
        axes.set_yticks(range(len(lines)), [name for name, *_ in reversed(lines)], color=INK)
        axes.set_ylim(-0.6, len(lines) - 0.4)
        axes.set_xlabel(short(facts["metric"], 24))
        axes.locator_params(axis="x", nbins=4 if narrow else 8)
        bare(axes, "left")

    label = "The proposal beside the recorded order and random ones."
    return drawing("proposal", label, draw, 0.9 + 0.4 * len(lines))


def _front(facts: dict[str, Any]) -> object:
    """The first two metrics of the orders that none is better than in all; empty where one metric was asked for."""
    points = facts.get("front") or []
    names = list(points[0]["metrics"])[:2] if points else []
    if len(names) < 2:
        return ""
    found = [[row["metrics"][name] for name in names] for row in points]
    true = [([row["metrics"][n] for n in names], [row["true"][n] for n in names]) for row in points if row["true"]]

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        axes.plot(*zip(*found, strict=True), "o-", color=ACCENT, markerfacecolor=SURFACE, markersize=5, linewidth=1)
        for row in points:
            x, y = (row["metrics"][name] for name in names)
            (ring,) = axes.plot(x, y, "o", color=ACCENT, markerfacecolor=SURFACE, markersize=5)
            tip(
                ring,
                f"{plain(row['name'])}: {short(names[0], 24)} {number(x, 5)}, "
                f"{short(names[1], 24)} {number(y, 5)}, predicted",
            )
        for predicted, trained in true:
            axes.plot(*zip(predicted, trained, strict=True), color=MUTED, linewidth=0.8)
            axes.plot(*trained, "o", color=ACCENT, markersize=7)
        axes.set_xlabel(short(names[0], 24))
        axes.set_ylabel(short(names[1], 24))
        axes.grid(color=GRID)
        axes.locator_params(nbins=4 if narrow else 6)
        bare(axes, "left", "bottom")

    return drawing("front", "Orders that no other is better than in all metrics.", draw, 3.2)
