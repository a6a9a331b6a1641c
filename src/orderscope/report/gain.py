"""What a proposal gains, in the same figures wherever the page names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orderscope.answers.stored import number_of
from orderscope.report.material import Material
from orderscope.report.words import signed, true_change, truth


def won(facts: dict[str, Any]) -> float:
    """The proposal's value, as trained where it was, minus that of the recorded order."""
    got = facts["predicted"] if facts["confirmed"] is None else facts["confirmed"]
    return got - facts["reference"]


def change(facts: dict[str, Any]) -> str:
    """The difference to the recorded order with its sign."""
    return _size_of(facts)(won(facts), number_of(facts["error"]))


def predicted_change(facts: dict[str, Any]) -> str:
    """The same, as predicted."""
    return signed(facts["predicted"] - facts["reference"], number_of(facts["error"]))


def confirmed(facts: dict[str, Any]) -> str:
    """The trained value, with the prediction's decimals at least."""
    return truth(facts["confirmed"], number_of(facts["error"]))


def _size_of(facts: dict[str, Any]) -> Callable[[float, float], str]:
    return signed if facts["confirmed"] is None else true_change


def gained(material: Material, facts: dict[str, Any]) -> str:
    """What a proposal gains in words, as `better by 0.012`.

    Args:
        material: what the page is about, for which way is better.
        facts: of the proposal, see `StoredProposal`.
    """
    word = material.direction(facts["metric"]).word(won(facts))
    size = _size_of(facts)(abs(won(facts)), number_of(facts["error"])).lstrip("+")
    return f"{word} by {size}" if won(facts) else word
