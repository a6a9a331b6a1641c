"""What a proposal gains, told in the same figures wherever the page speaks of it."""

from __future__ import annotations

import math
from typing import Any

from orderscope.report.material import Material
from orderscope.report.words import figures, signed


def number(value: float | None) -> float:
    return math.nan if value is None else value


def won(facts: dict[str, Any]) -> float:
    """The proposal's value, as trained where it was, minus that of the recorded order."""
    got = facts["predicted"] if facts["confirmed"] is None else facts["confirmed"]
    return got - facts["reference"]


def change(facts: dict[str, Any]) -> str:
    """The difference to the recorded order with its sign."""
    return signed(won(facts), number(facts["error"]))


def predicted_change(facts: dict[str, Any]) -> str:
    """The same, as predicted."""
    return signed(facts["predicted"] - facts["reference"], number(facts["error"]))


def confirmed(facts: dict[str, Any]) -> str:
    """The trained value with as many figures as the prediction has."""
    return figures(facts["confirmed"], number(facts["error"]))[0]


def gained(material: Material, facts: dict[str, Any]) -> str:
    """`better by 0.012`, or how it is otherwise."""
    word = material.direction(facts["metric"]).word(won(facts))
    size = signed(abs(won(facts)), number(facts["error"])).lstrip("+")
    return f"{word} by {size}" if won(facts) else word


def because(facts: dict[str, Any]) -> str:
    """What makes a proposal undetectable, in words."""
    return str(facts.get("why") or "it is no more than luck would bring at the same cost")
