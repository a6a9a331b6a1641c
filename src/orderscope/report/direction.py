"""Better and worse: which way a metric is to go."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Direction:
    """Which way is better.

    Args:
        sign: -1 where lower is better, +1 where higher is, 0 where that is not known.
    """

    sign: int

    def word(self, change: float) -> str:
        """`better`, `worse`, or `lower` and `higher` where that is not known; `the same` without a change."""
        if change == 0:
            return "the same"
        if not self.sign:
            return "lower" if change < 0 else "higher"
        return "better" if change * self.sign > 0 else "worse"

    def kind(self, change: float) -> str:
        """The style of the word."""
        return {"better": "good", "worse": "bad"}.get(self.word(change), "clear")


LOSS = Direction(-1)
