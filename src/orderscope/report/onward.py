"""The recommended next step: a sentence and a command, derived from the run's results."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import Any

from orderscope.answers.stored import because
from orderscope.report.gain import change, gained
from orderscope.report.material import Material
from orderscope.report.words import short
from orderscope.text import plain

NOTHING = "nothing to look for"
MOST_KEPT = 0.8  # share of the gain that a schedule of groups has to keep to be named


@dataclass(frozen=True)
class Onward:
    """Args:
    what: in a few words.
    why: in a sentence.
    commands: to be called in a shell, or lines of Python; may be none.
    order: whether the proposed order itself is to be had beside.
    """

    what: str
    why: str
    commands: tuple[str, ...] = ()
    order: bool = False


def onward(material: Material) -> Onward:
    """The next step for the metric that the page shows first."""
    run, metric = shlex.quote(plain(material.path)), shlex.quote(plain(material.metric))
    name, effect = short(material.metric), material.effects[material.metric]
    if effect.runs < 2:
        return Onward(
            "Record it with probes.", "Without runs under other orders nothing has an error bar.",
            (f"orderscope record my_run.py:task --out {run}-probed --probes 8",),
        )  # fmt: skip
    proposal = material.proposal if material.proposal and material.proposal.facts["metric"] == material.metric else None
    searched = proposal is not None and proposal.facts.get("searched", True)
    if not searched and (proposal is not None or effect.verdict == NOTHING):
        need = effect.judged.rows_needed
        if proposal is not None:
            need = ((proposal.facts.get("effect") or {}).get("rows_needed")) or math.inf
        rows = f" About {need:,.0f} held-out rows would tell orders apart." if math.isfinite(need) else ""
        return Onward(
            "Keep the recorded order: there is nothing to look for.",
            f"The noise of the held-out rows hides any effect of order on {name}.{rows}",
        )
    if not material.skilled[material.metric]:
        return Onward(
            "Train more orders before relying on a prediction.",
            f"On the probes, predictions of {name} are no better than a constant. Each order that is trained sharpens "
            "them.", (f"orderscope validate {run} --orders 16 --metric {metric}",),
        )  # fmt: skip
    if proposal is None and not material.validations:
        return Onward(
            "Check the predictions.",
            "No order that the run has not seen was trained yet, so the error bars are unchecked, and the noise floor "
            "is unknown.", (f"orderscope validate {run} --metric {metric}",),
        )  # fmt: skip
    if proposal is None:
        return Onward(
            "Look for a better order.", f"Order moves {name}, and predictions of it hold.",
            (f"orderscope propose {run} --metric {metric} --out best.npy",),
        )  # fmt: skip
    facts = proposal.facts
    if facts["confirmed"] is None:
        return Onward(
            "Train the proposed order.",
            f"It is predicted to be {gained(material, facts)}; only training tells whether it is.",
            (f"orderscope propose {run} --metric {metric} --verify 3 --out best.npy",),
        )
    if not facts["undetectable"]:
        return Onward(
            "Use this order.",
            f"Truly trained, it is {gained(material, facts)}{_apart(facts)}.{_in_words(facts)}",
            ('osc.OrderSampler(numpy.load("proposed-order.npy"))',), order=True,
        )  # fmt: skip
    return Onward(
        "Keep the recorded order.",
        f"The best order found was trained: {change(facts)} in {name}, but {because(facts)}. A longer search, or more "
        f"held-out rows than these, may find more.",
        (f"orderscope propose {run} --metric {metric} --budget {4 * max(1, int(facts['scored'])):d} --out best.npy",),
    )


def _apart(facts: dict[str, Any]) -> str:
    parts = facts.get("parts") or []
    if not parts or parts[0]["gain"] <= 0:
        return ""
    if facts.get("refined"):
        return "; the order that it was made from is better on the held-out rows that its search never saw"
    return ", and better on the held-out rows that the search never saw"


def _in_words(facts: dict[str, Any]) -> str:
    kept = (facts.get("simple") or {}).get("kept")
    if kept is None or kept < MOST_KEPT:
        return ""
    return f" A schedule of groups keeps {100 * kept:.0f} % of that, see below."
