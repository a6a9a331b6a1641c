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
from orderscope.search.strategy import CAUTION, Orders, Scores, Strategy

RULES = 0.4  # of the time, at most, for strategies that do not start from the best of others
KEPT = 4  # orders of a quickly scored strategy that are scored precisely in the end
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Found:
    """An order with its precise score; lower is better."""

    strategy: Strategy
    order: np.ndarray
    value: float
    error: float

    @property
    def bound(self) -> float:
        return self.value + CAUTION * self.error


@dataclass
class Asked:
    """A strategy at work: it is asked for orders, and told their scores."""

    strategy: Strategy
    asking: Orders
    rng: np.random.Generator
    orders: np.ndarray


@dataclass
class Portfolio:
    """Strategies side by side.

    Args:
        setting: what they look at.
        seed: of their random numbers.
        limit: seconds they have in all.
        progress: called as `progress("search", orders scored, budget)`.
        best: the best order of each strategy, by its name.
        values: precise scores of all orders of each strategy.
        late: whether time ran out.
    """

    setting: Setting
    seed: int
    limit: float
    progress: Progress | None = None
    best: dict[str, Found] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    late: bool = False
    _quick: dict[str, list[Found]] = field(default_factory=dict)

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
        whole, ledger.deadline = ledger.deadline, ledger.deadline - (1 - RULES) * self.limit
        try:
            self._together(rules, ledger.left)
            ledger.deadline = whole
            for strategy in guided:
                self._together([strategy], ledger.left)
            for i, strategy in enumerate(hungry):
                share = strategy.weight / sum(s.weight for s in hungry[i:])
                spare = ledger.left - KEPT * (len(hungry) - len(self._quick))
                self._together([strategy], math.ceil(share * spare))
            self.late = ledger.late
            self._refine()
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
        precise = not any(s.weight for s in strategies)
        try:
            while live:
                names = [a.strategy.name for a in live for _ in a.orders]
                orders = np.concatenate([a.orders for a in live])
                scores = ledger(orders, names, precise=precise, most=end - ledger.scored)
                parts = pairwise(np.cumsum([0, *(len(a.orders) for a in live)]).tolist())
                told = [Scores(scores.value[i:j], scores.error[i:j]) for i, j in parts]
                for asked, own in zip(live, told, strict=True):
                    self._keep(asked.strategy, asked.orders, own, precise)
                self._report()
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
        return Asked(strategy, asking, setting.rng, setting.ledger.checked(orders, strategy.name))

    def _next(self, asked: Asked, scores: Scores) -> bool:
        self.setting.rng = asked.rng
        try:
            orders = asked.asking.send(scores)
        except StopIteration:
            return False
        asked.orders = self.setting.ledger.checked(orders, asked.strategy.name)
        return True

    def _keep(self, strategy: Strategy, orders: np.ndarray, scores: Scores, precise: bool) -> None:
        name = strategy.name
        finite = np.flatnonzero(np.isfinite(scores.value))
        if precise:
            self.values.setdefault(name, []).extend(scores.value[finite])
        found = [Found(strategy, orders[k], float(scores.value[k]), float(scores.error[k])) for k in finite]
        found.sort(key=lambda f: f.bound)
        if precise and found and (name not in self.best or found[0].bound < self.best[name].bound):
            self.best[name] = found[0]
        if not precise:
            best = {f.order.tobytes(): f for f in [*self._quick.get(name, []), *found]}
            self._quick[name] = sorted(best.values(), key=lambda f: f.bound)[:KEPT]

    def _refine(self) -> None:
        """Score the best of the quickly scored precisely, late or not: they must not be proposed on a quick score."""
        ledger = self.setting.ledger
        ledger.deadline = math.inf
        for name, found in self._quick.items():
            orders = np.stack([f.order for f in found])
            try:
                scores = ledger(orders, [name] * len(found))
            except Spent:
                continue
            self._keep(found[0].strategy, orders, scores, True)
            self._report()

    def _report(self) -> None:
        if self.progress is not None:
            self.progress("search", self.setting.ledger.scored, self.setting.ledger.budget)
