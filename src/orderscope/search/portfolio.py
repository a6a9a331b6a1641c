"""Runs strategies within a budget and a time, and keeps the best of each."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from orderscope.search.ledger import Spent
from orderscope.search.setting import Setting
from orderscope.search.strategy import Orders, Scores, Strategy

RULES = 0.5  # of the budget, at most, for strategies that do not start from the best of others
IDLE = 16  # times in a row that strategies may ask for nothing new
HOPE = 3  # a search is ended where the best of all is this many times the gain of its last round ahead
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Found:
    """An order with its score; lower is better.

    Args:
        strategy: that found it.
        order: sample ids, [steps, batch].
        value: its score.
        error: half-width of the interval around it.
        spread: standard error of the score over the searched rows.
    """

    strategy: Strategy
    order: np.ndarray
    value: float
    error: float
    spread: float

    @property
    def bound(self) -> float:
        return float(Scores(np.array(self.value), np.array(self.error), self.spread).bound)


@dataclass
class Asked:
    """A strategy at work: it yields orders, and is sent their scores.

    Args:
        strategy: the strategy.
        asking: the generator that yields orders.
        rng: its random numbers.
        orders: what it yielded last, [n, steps, batch].
        bounds: the best bound after each of its rounds.
    """

    strategy: Strategy
    asking: Orders
    rng: np.random.Generator
    orders: np.ndarray
    bounds: list[float] = field(default_factory=list)

    def hopeless(self, best: float) -> bool:
        """Whether at the pace of its last round it would not come near the best of all for long."""
        return len(self.bounds) > 1 and self.bounds[-1] - best > HOPE * (self.bounds[-2] - self.bounds[-1])


@dataclass
class Portfolio:
    """Strategies side by side.

    Args:
        setting: what they look at.
        seed: of their random numbers.
        progress: called as `progress("search", orders scored, budget)`.
        values: scores of all orders of each strategy.
        late: whether time ran out.
        best: the best order of each strategy by its name.
    """

    setting: Setting
    seed: int
    progress: Progress | None = None
    values: dict[str, list[float]] = field(default_factory=dict)
    late: bool = False
    best: dict[str, Found] = field(default_factory=dict)

    @property
    def _least(self) -> float:
        ranked = self.setting.ledger.ranked()
        return ranked[0].bound if ranked else math.inf

    def run(self, picked: list[Strategy]) -> bool:
        """Rules come first and side by side, then those that start from the best of others, then those that can use any
        budget and share what is left.

        Returns:
            Whether it was interrupted from the keyboard.
        """
        ledger = self.setting.ledger
        rules = [s for s in picked if not s.weight and not s.guided]
        guided = [s for s in picked if not s.weight and s.guided]
        hungry = sorted((s for s in picked if s.weight), key=lambda s: s.guided)
        try:
            self._report()
            self._together(rules, math.ceil(ledger.left * (RULES if guided or hungry else 1)))
            for strategy in guided:
                self._together([strategy], ledger.left)
            for i, strategy in enumerate(hungry):
                share = strategy.weight / sum(s.weight for s in hungry[i:])
                self._together([strategy], math.ceil(share * ledger.left))
            self.late = ledger.late
        except KeyboardInterrupt:
            return True
        return False

    def _together(self, strategies: list[Strategy], share: int) -> None:
        """Ask strategies side by side, so that their orders are scored in one call."""
        ledger = self.setting.ledger
        if ledger.late or share < 1:
            return
        end = ledger.scored + share
        live = [asked for s in strategies if (asked := self._started(s, share)) is not None]
        idle = 0
        try:
            while live and idle < IDLE and ledger.scored < end and not ledger.late:
                before = ledger.scored
                names = [a.strategy.name for a in live for _ in a.orders]
                orders = np.concatenate([a.orders for a in live])
                scores = ledger(orders, names, most=end - ledger.scored)
                parts = pairwise(np.cumsum([0, *(len(a.orders) for a in live)]).tolist())
                told = [scores[i:j] for i, j in parts]
                for asked, own in zip(live, told, strict=True):
                    self.values.setdefault(asked.strategy.name, []).extend(own.value[np.isfinite(own.value)])
                    self._keep(asked.strategy, asked.orders, own)
                self._report()
                idle = 0 if ledger.scored > before else idle + 1
                self.setting.share = end - ledger.scored
                live = [asked for asked, own in zip(live, told, strict=True) if self._next(asked, own)]
        except Spent:
            pass
        finally:
            for asked in live:
                asked.asking.close()

    def _started(self, strategy: Strategy, share: int) -> Asked | None:
        setting = self.setting
        setting.rng = np.random.default_rng([self.seed, zlib.crc32(strategy.name.encode())])
        setting.share = share
        asking = strategy.orders(setting)
        orders = next(asking, None)
        if orders is None:
            return None
        return Asked(strategy, asking, setting.rng, self._fitted(orders, strategy))

    def _next(self, asked: Asked, scores: Scores) -> bool:
        """Whether it asks for more."""
        asked.bounds.append(min([*asked.bounds[-1:], *scores.bound.tolist()]))
        if asked.hopeless(self._least):
            asked.asking.close()
            return False
        self.setting.rng = asked.rng
        try:
            orders = asked.asking.send(scores)
        except StopIteration:
            return False
        asked.orders = self._fitted(orders, asked.strategy)
        return True

    def _fitted(self, orders: np.ndarray, strategy: Strategy) -> np.ndarray:
        return self.setting.fitted(self.setting.ledger.checked(orders, strategy.name))

    def _keep(self, strategy: Strategy, orders: np.ndarray, scores: Scores) -> None:
        name, spread = strategy.name, np.broadcast_to(scores.spread, scores.value.shape).tolist()
        columns = zip(orders, scores.value.tolist(), scores.error.tolist(), spread, strict=True)
        found = [Found(strategy, order, *score) for order, *score in columns if math.isfinite(score[0])]
        if name in self.best:
            found.append(self.best[name])
        if found:
            self.best[name] = min(found, key=lambda f: f.bound)

    def _report(self) -> None:
        if self.progress is not None:
            self.progress("search", self.setting.ledger.scored, self.setting.ledger.budget)
