"""What a strategy is: it yields orders, sees their scores, and yields better ones.

from orderscope.search import Strategy, register

@register
class Palindrome(Strategy):
    name, source = "palindrome", "an idea"

    def orders(self, setting):
        steps = np.arange(len(setting.order))
        scores = yield setting.order[np.stack([steps[::-1], np.r_[steps[::2], steps[1::2]]])]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np

from orderscope.errors import OrderscopeError

if TYPE_CHECKING:
    from orderscope.search.setting import Setting

CAUTION = 0.2  # candidates are confirmed by training, so hope costs little; errors grow with the effect claimed
PENALTY = 1.0  # standard errors over rows that a candidate is charged: what a search gains on its rows alone


@dataclass(frozen=True)
class Scores:
    """How good orders are estimated to be. Lower is better, also where the metric is to be maximized.

    Args:
        value: estimated metric, turned round where it is to be maximized, [n]; infinite where it could not be told.
        error: half-width of a 90 % interval around it, [n].
        spread: standard error, over the rows that are searched, of the difference to the reference, [n] or 0.
    """

    value: np.ndarray
    error: np.ndarray
    spread: np.ndarray | float = 0.0

    @property
    def bound(self) -> np.ndarray:
        """What candidates are ranked by, value + `CAUTION` * error + `PENALTY` * spread, [n]: what the value may well
        be at worst, on other rows."""
        finite = np.where(np.isfinite(self.error), self.error, 0.0)  # an unknown error is the same for all
        return self.value + CAUTION * finite + PENALTY * np.asarray(self.spread)

    def __getitem__(self, rows: slice) -> Scores:
        return Scores(self.value[rows], self.error[rows], np.broadcast_to(self.spread, self.value.shape)[rows])


Orders = Generator[np.ndarray, Scores, None]


class Strategy(ABC):
    """One way of looking for a better order.

    Attributes:
        name: what it is called in the table and in `strategies=`.
        source: where the idea is from.
        weight: its share of the budget that others leave; 0 for a strategy that asks for few orders only.
        guided: whether it starts from the best of the others, so that it runs after those that do not.
        near: whether it stays near where it starts, so that it can improve an order that is good already.
        blind: whether it knows scores alone and starts from chance, so that it is left out where a search led by the
            metric's gradient can be made, unless it is named.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    weight: ClassVar[float] = 0.0
    guided: ClassVar[bool] = False
    near: ClassVar[bool] = False
    blind: ClassVar[bool] = False

    @abstractmethod
    def orders(self, setting: Setting) -> Orders:
        """Yield candidate orders, int64 [n, steps, batch], rearrangements of `setting.order`; `yield` returns their
        `Scores`. It may be ended at any yield, when its share of the budget or the time is spent."""


STRATEGIES: dict[str, Strategy] = {}
Kind = TypeVar("Kind", bound=Strategy)


def register(kind: type[Kind]) -> type[Kind]:
    """Class decorator: make a strategy known by its name.

    Raises:
        OrderscopeError: the name is taken.
    """
    if kind.name in STRATEGIES and type(STRATEGIES[kind.name]).__qualname__ != kind.__qualname__:
        raise OrderscopeError(f"a second strategy named {kind.name!r}", "names used once", "choose another name")
    STRATEGIES[kind.name] = kind()
    return kind


def chosen(names: list[str] | tuple[str, ...] | None) -> list[Strategy]:
    """The strategies of these names, all by default.

    Raises:
        OrderscopeError: naming an unknown one.
    """
    for name in names or ():
        if name not in STRATEGIES:
            raise OrderscopeError(
                f"strategy {name!r}", "one of " + ", ".join(STRATEGIES), "correct the name, or register the strategy"
            )
    return list(STRATEGIES.values()) if names is None else [STRATEGIES[name] for name in dict.fromkeys(names)]
