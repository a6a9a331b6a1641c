"""What a strategy may look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from orderscope.engine import Window
from orderscope.engine.metrics import Expansion, load_expansions
from orderscope.orders import step_groups
from orderscope.search.adjoint import (
    Narrow,
    Sensitivity,
    Slope,
    expanded_slope,
    metric_slope,
    narrow,
    sample_effects,
    sensitivity,
    step_effects,
)
from orderscope.search.ledger import Ledger
from orderscope.search.linear import Effects
from orderscope.simulator import Simulator
from orderscope.threads import one_thread


@dataclass
class Setting:
    """The run, what is to be improved, and what was found so far.

    Args:
        sim: the simulator.
        window: what is replayed for precise scores and sweeps.
        metric: name of the metric.
        sign: 1 where less of it is better, -1 where more is.
        regroup: whether samples may leave their recorded batches.
        ledger: every order scored so far.
        rng: random numbers of the strategy that is running.
        share: how many orders it may still have scored.
    """

    sim: Simulator
    window: Window
    metric: str
    sign: float
    regroup: bool
    ledger: Ledger
    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    share: int = 0
    _sweeps: dict[bytes, Sensitivity] = field(default_factory=dict)

    @property
    def order(self) -> np.ndarray:
        """The reference order, int64 [steps, batch]."""
        return self.sim.order

    @property
    def steps(self) -> int:
        return len(self.sim.order)

    @cached_property
    def labels(self) -> list[str]:
        """Group of each reference step; one name for all where the task has no groups."""
        names = self.sim.description["group_names"]
        return step_groups(self.order, [names[code] for code in self.sim.window.group_codes])

    @cached_property
    def expansion(self) -> Expansion | None:
        """Second-order expansion of the metric; None where it has none, as metrics that are no losses."""
        window = self.sim.window
        stored = load_expansions(self.sim.store, window.final, self.sim.reference, window.dynamics.weight)
        return stored.get(self.metric)

    def best(self, *, whole: bool = True) -> np.ndarray:
        """The best order so far by its bound, the reference at least.

        Args:
            whole: only of those that keep the recorded batches together.
        """
        entries = self.ledger.ranked()
        found = (e.order for e in entries if not whole or self.steps_of(e.order) is not None)
        return next(found, self.order)

    def steps_of(self, order: np.ndarray) -> np.ndarray | None:
        """The recorded step of each batch of an order, [steps]; None where samples were regrouped."""
        return self.ledger.steps_of(order)

    def step_effects(self, steps: np.ndarray) -> Effects:
        """The local model around a permutation of recorded steps; items are recorded steps."""
        found = self._sweep(self.order[steps])
        return self._effects(found.value, step_effects(self._narrow.window, found), steps)

    def sample_effects(self, order: np.ndarray) -> tuple[Effects, np.ndarray]:
        """The local model around an order of samples, and the sample id of each of its items."""
        found = self._sweep(order)
        ids, items = np.unique(order, return_inverse=True)
        return self._effects(found.value, sample_effects(self._narrow.window, found, ids), items.reshape(-1)), ids

    def _sweep(self, order: np.ndarray) -> Sensitivity:
        key = order.tobytes()
        if key not in self._sweeps:
            with one_thread():
                self._sweeps[key] = sensitivity(self.window, self._narrow, order, self._slope)
        return self._sweeps[key]

    @cached_property
    def _narrow(self) -> Narrow:
        assert self.expansion is not None
        return narrow(self.window, self.expansion, self.sim.plan.seed + 1)  # other coordinates than the quick score

    @cached_property
    def _slope(self) -> Slope:
        """By the real model where it can be run."""
        assert self.expansion is not None
        if self.sim.task is not None and self.sim.exact:
            return metric_slope(self.sim.task, self.metric)
        return expanded_slope(self.expansion)

    def _effects(self, value: float, effects: np.ndarray, base: np.ndarray) -> Effects:
        return Effects(self.sign * value, effects[..., 0], effects[..., 1:], base, self.sign)
