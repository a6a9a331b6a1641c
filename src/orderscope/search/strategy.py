"""The interface of a strategy: it yields orders, receives their scores, and yields better ones.

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

# Weight of the prediction error in the bound that candidates are ranked by. It is small, because errors grow with the
# predicted effect and the candidates are confirmed by training anyway.
CAUTION = 0.2
PENALTY = 1.0  # standard errors over rows added to the bound, against overfitting of the searched rows


@dataclass(frozen=True)
class Scores:
    """Scores of orders. Lower is better: a metric that is maximised is negated.

    Args:
        value: estimated objective, [n]; infinite for an order that was not scored or diverges.
        error: half-width of its 90 % interval, [n].
        spread: standard error over the searched rows of the difference to the reference, [n] or 0.
    """

    value: np.ndarray
    error: np.ndarray
    spread: np.ndarray | float = 0.0

    @property
    def bound(self) -> np.ndarray:
        """The value that candidates are ranked by, value + `CAUTION` * error + `PENALTY` * spread, [n]: a cautious
        estimate of the value on other rows."""
        finite = np.where(np.isfinite(self.error), self.error, 0.0)  # an unknown error is unknown for all orders
        return self.value + CAUTION * finite + PENALTY * np.asarray(self.spread)

    def __getitem__(self, rows: slice) -> Scores:
        return Scores(self.value[rows], self.error[rows], np.broadcast_to(self.spread, self.value.shape)[rows])


Orders = Generator[np.ndarray, Scores, None]


class Strategy(ABC):
    """One way to search for a better order.

    Attributes:
        name: its name in the table and in `strategies=`.
        source: the origin of the idea, such as a paper.
        weight: its share of the budget that the others leave; 0 for a strategy that yields few orders only.
        guided: whether it starts from the best order of the others; it then runs after those that do not.
        near: whether it stays near its start, so that it can refine a good order.
        blind: whether it uses scores only and starts from random orders. Such a strategy is left out, unless the user
            names it, if strategies that use the metric's gradient can run.
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
        `Scores`. The generator may be closed at any yield, when the strategy's share of the budget or the time is
        used up."""


STRATEGIES: dict[str, Strategy] = {}
Kind = TypeVar("Kind", bound=Strategy)


def register(kind: type[Kind]) -> type[Kind]:
    """Class decorator that registers a strategy under its name.

    Raises:
        OrderscopeError: another strategy has the name.
    """
    if kind.name in STRATEGIES and type(STRATEGIES[kind.name]).__qualname__ != kind.__qualname__:
        raise OrderscopeError(f"a second strategy named {kind.name!r}", "names used once", "choose another name")
    STRATEGIES[kind.name] = kind()
    return kind


def chosen(names: list[str] | tuple[str, ...] | None) -> list[Strategy]:
    """The strategies of these names, all by default.

    Raises:
        OrderscopeError: for an unknown name.
    """
    for name in names or ():
        if name not in STRATEGIES:
            raise OrderscopeError(
                f"strategy {name!r}", "one of " + ", ".join(STRATEGIES), "correct the name, or register the strategy"
            )
    return list(STRATEGIES.values()) if names is None else [STRATEGIES[name] for name in dict.fromkeys(names)]
