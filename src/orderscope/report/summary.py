"""The sentence on top, and the few figures under it."""

from __future__ import annotations

import math
from typing import Any

from orderscope.answers.stored import because
from orderscope.report.gain import change, confirmed, gained
from orderscope.report.material import PROPOSED, Material
from orderscope.report.predicted import Pairs
from orderscope.report.words import count, plain, short, signed, true_change, two
from orderscope.text import number


def headline(material: Material) -> str:
    """How much order matters, in one sentence."""
    effect, what = material.effects[material.metric], material.metric_words(material.metric)
    if effect.runs < 2:
        return f"How much order moves the {what} is not known: no probes were recorded."
    said = f"Order moves the {what} by about ±{two(effect.sigma)}"
    source = "the choice of held-out rows" if effect.noise == effect.held_out else "noise"
    if effect.verdict == "unknown":
        return f"{said}."
    if effect.noise == 0:
        return f"{said}; noise does not move it at all."
    if effect.verdict == "order matters":
        ratio = effect.sigma / effect.noise
        times = number(ratio, 2) if ratio < 1000 else "more than a thousand"
        return f"{said}, {times} times what {source} accounts for."
    return f"{said}, but {source} alone accounts for ±{two(effect.noise)}."


def story(material: Material) -> list[str]:
    """What predictions were worth here, and what was found with them."""
    return [line for line in (_trust(material), _extremes(material), _found(material)) if line]


def tiles(material: Material) -> list[dict[str, str]]:
    """The figures of the page: value, what it is, a remark."""
    effect = material.effects[material.metric]
    noise = (
        "from the choice of held-out rows" if effect.noise == effect.held_out else "the same order, batches reshuffled"
    )
    known = math.isfinite(effect.noise)
    found = [
        _tile(f"±{two(effect.sigma)}" if effect.runs > 1 else "unknown", "effect of order",
              f"1 σ over {count(effect.runs, 'true run')}" if effect.runs > 1 else "no probes were recorded"),
        _tile(f"±{two(effect.noise)}" if known else "unknown", "noise", noise if known else ""),
    ]  # fmt: skip
    best = _best_pairs(material)
    if best is not None:
        scores = best.agreement
        if math.isfinite(scores["pearson"]):
            kind = "unseen order" if best.kind == "unseen" else "left-out run"
            value = f"{scores['pearson']:.2f}".replace("-", "−")
            found.append(_tile(value, "predicted with true", f"correlation over {count(len(best.true), kind)}"))
    proposal = material.proposal
    if proposal is not None:
        how = "predicted" if proposal.facts["confirmed"] is None else "truly trained"
        found.append(_tile(change(proposal.facts), "best proposed order", f"{how}, to the recorded order"))
    return found


def _tile(value: str, what: str, remark: str) -> dict[str, str]:
    return {"value": value, "what": what, "remark": remark}


def _best_pairs(material: Material) -> Pairs | None:
    pairs = material.pairs[material.metric]
    return pairs[-1] if pairs else None


def _trust(material: Material) -> str:
    best = _best_pairs(material)
    if best is None:
        return "No probes were recorded, so predictions have no error bars and are not to be trusted."
    if not material.skilled[material.metric]:
        name = short(material.metric)
        return f"Predictions of {name} were no better than a constant on the probes, and are not to be trusted."
    scores, what = best.agreement, "unseen orders" if best.kind == "unseen" else "true runs, each left out"
    near = f"a mean error of {two(scores['mae'])}"
    with_correlation = f" and a correlation of {scores['pearson']:.2f}" if math.isfinite(scores["pearson"]) else ""
    return f"Over {len(best.true)} {what}, predictions made without training had {near}{with_correlation}."


def _extremes(material: Material) -> str:
    """The asked order that moves the metric most, if any does beyond its error."""
    reference = material.reference[material.metric]
    moved: list[Any] = [
        asked
        for asked in material.asked
        if asked.told(material.metric) and asked.detectable(material.metric, reference) and asked.label != PROPOSED
    ]
    if not moved:
        return ""
    most = max(moved, key=lambda asked: abs(asked.difference(material.metric, reference)))
    difference, error = most.difference(material.metric, reference), most.errors[material.metric]
    word = material.direction(material.metric).word(difference)
    size = _size(difference, error, true=material.metric in most.true)
    return f"Of the orders shown below, “{plain(most.label)}” moves it most: {word} by {size}."


def _size(difference: float, error: float, *, true: bool) -> str:
    return (true_change if true else signed)(abs(difference), error).lstrip("+")


def _found(material: Material) -> str:
    if material.proposal is None or not material.proposal.facts.get("searched", True):
        return ""
    facts = material.proposal.facts
    if facts["confirmed"] is not None:
        told = f"The proposed order was trained to confirm it: {confirmed(facts)}, {gained(material, facts)}"
        return f"{told}, but {because(facts)}." if facts["undetectable"] else f"{told}."
    if facts["undetectable"]:
        return f"The best order found has no detectable effect: {because(facts)}."
    return f"The best order found is predicted to be {gained(material, facts)}; it was not trained to confirm it."
