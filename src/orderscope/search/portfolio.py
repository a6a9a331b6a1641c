"""Runs strategies within a budget and a time limit, and keeps the best order of each."""

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

RULES = 0.5  # largest share of the budget for strategies that do not start from the best order of others
IDLE = 16  # most rounds in a row in which strategies yield only orders that were scored before
HOPE = 3  # a strategy is stopped if its gap to the best order exceeds this many times the gain of its last round
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Found:
    """An order with its score; lower is better.

    Args:
        strategy: the strategy that found it.
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
        """The value that orders are ranked by, see `Scores.bound`."""
        return float(Scores(np.array(self.value), np.array(self.error), self.spread).bound)


@dataclass
class Running:
    """A strategy in progress: it yields orders, and receives their scores.

    Args:
        strategy: the strategy.
        generator: yields orders and receives their scores.
        rng: the strategy's random numbers.
        orders: the orders that it yielded last, [n, steps, batch].
        bounds: the best bound after each of its rounds.
    """

    strategy: Strategy
    generator: Orders
    rng: np.random.Generator
    orders: np.ndarray
    bounds: list[float] = field(default_factory=list)

    def hopeless(self, best: float) -> bool:
        """Whether more than `HOPE` rounds with the gain of the last one are needed to reach the bound `best`."""
        return len(self.bounds) > 1 and self.bounds[-1] - best > HOPE * (self.bounds[-2] - self.bounds[-1])


@dataclass
class Portfolio:
    """A set of strategies that share a budget.

    Args:
        setting: the setting that the strategies read.
        seed: seed of their random numbers.
        progress: called as `progress("search", orders scored, budget)`.
        values: strategy name -> finite scores of all its orders.
        late: whether the deadline passed.
        best: strategy name -> its best order.
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
        """Run strategies: first the rules, interleaved; then those that start from the best order of others; then those
        with a weight, which share what is left of the budget.

        Args:
            picked: the strategies to run.

        Returns:
            Whether the user interrupted it.
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
        """Advance strategies in lockstep, so that their orders are scored in one call."""
        ledger = self.setting.ledger
        if ledger.late or share < 1:
            return
        end = ledger.scored + share
        live = [running for s in strategies if (running := self._started(s, share)) is not None]
        idle = 0
        try:
            while live and idle < IDLE and ledger.scored < end and not ledger.late:
                before = ledger.scored
                names = [a.strategy.name for a in live for _ in a.orders]
                orders = np.concatenate([a.orders for a in live])
                scores = ledger(orders, names, most=end - ledger.scored)
                parts = pairwise(np.cumsum([0, *(len(a.orders) for a in live)]).tolist())
                results = [scores[i:j] for i, j in parts]
                for running, result in zip(live, results, strict=True):
                    self.values.setdefault(running.strategy.name, []).extend(result.value[np.isfinite(result.value)])
                    self._keep(running.strategy, running.orders, result)
                self._report()
                idle = 0 if ledger.scored > before else idle + 1
                self.setting.share = end - ledger.scored
                live = [running for running, result in zip(live, results, strict=True) if self._next(running, result)]
        except Spent:
            pass
        finally:
            for running in live:
                running.generator.close()

    def _started(self, strategy: Strategy, share: int) -> Running | None:
        setting = self.setting
        setting.rng = np.random.default_rng([self.seed, zlib.crc32(strategy.name.encode())])
        setting.share = share
        generator = strategy.orders(setting)
        orders = next(generator, None)
        if orders is None:
            return None
        return Running(strategy, generator, setting.rng, self._fitted(orders, strategy))

    def _next(self, running: Running, scores: Scores) -> bool:
        """Send a strategy its scores, and fetch its next orders. Whether it yielded any."""
        running.bounds.append(min([*running.bounds[-1:], *scores.bound.tolist()]))
        if running.hopeless(self._least):
            running.generator.close()
            return False
        self.setting.rng = running.rng
        try:
            orders = running.generator.send(scores)
        except StopIteration:
            return False
        running.orders = self._fitted(orders, running.strategy)
        return True

    def _fitted(self, orders: np.ndarray, strategy: Strategy) -> np.ndarray:
        return self.setting.fitted(self.setting.ledger.checked(orders, strategy.name))

    def _keep(self, strategy: Strategy, orders: np.ndarray, scores: Scores) -> None:
        name, spread = strategy.name, np.broadcast_to(scores.spread, scores.value.shape).tolist()
        columns = zip(orders, scores.value.tolist(), scores.error.tolist(), spread, strict=True)
        finite = [Found(strategy, order, *score) for order, *score in columns if math.isfinite(score[0])]
        if name in self.best:
            finite.append(self.best[name])
        if finite:
            self.best[name] = min(finite, key=lambda f: f.bound)

    def _report(self) -> None:
        if self.progress is not None:
            self.progress("search", self.setting.ledger.scored, self.setting.ledger.budget)
