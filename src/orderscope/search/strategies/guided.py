"""Searches with the local model: one adjoint sweep gives the effect of every batch or sample at every position.

The model is accurate near its base order and too optimistic far away. A path is therefore followed only as far as
replayed scores improve, and the model is rebuilt there (a trust region).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from orderscope.search.linear import LARGEST, Effects, assigned, conditional_gradient, exchange_path, move_path, nearest
from orderscope.search.setting import Setting
from orderscope.search.strategy import Orders, Strategy

ROUNDS = 16  # most rebuilds of the model
LEAST = 0.1  # a round that gains less than this share of the total gain over the start is the last
LENGTH = 64  # points of the first path
SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # shares of a path at which it is scored; one call scores them all
NEAREST = 24  # neighbours that are scored if the path of steps is empty
Points = list[tuple[int, np.ndarray]]  # distance along a path, and the arrangement there
Search = Callable[[Effects, int, np.random.Generator], Points]
OrderOf = Callable[[np.ndarray], np.ndarray]
Model = Callable[[np.ndarray], tuple[Effects, OrderOf] | None]


class Led(Strategy):
    """A trust-region search with the local model of recorded steps or of single samples.

    Attributes:
        search: the search within the model: (effects, length, random numbers) -> points.
        samples: whether it moves single samples; recorded batches are then not kept.
        largest: most slots for which it runs.
    """

    guided = True
    search: ClassVar[Search]
    samples: ClassVar[bool] = False
    largest: ClassVar[float] = math.inf

    def orders(self, setting: Setting) -> Orders:
        slots = setting.order.size if self.samples else setting.steps
        if self.samples and not setting.regroup:
            setting.note(f"{self.name}: recorded batches are kept together")
        elif slots > self.largest:
            setting.note(f"{self.name}: {slots} slots; assignments are solved for at most {self.largest}")
        else:
            yield from (_samples_led if self.samples else _steps_led)(setting, type(self).search)


def _steps_led(setting: Setting, search: Search) -> Orders:
    def model(order: np.ndarray) -> tuple[Effects, OrderOf] | None:
        steps = setting.steps_of(order)
        if steps is None:
            return None
        return setting.step_effects(steps), lambda arrangement: setting.order[arrangement]

    if setting.expansion is not None:
        yield from _trust_region(setting, setting.best(), model, search)


def _samples_led(setting: Setting, search: Search) -> Orders:
    def model(order: np.ndarray) -> tuple[Effects, OrderOf] | None:
        if setting.regrouping_vanishes():
            return None
        effects, ids = setting.sample_effects(order)
        return effects, lambda arrangement: ids[arrangement].reshape(order.shape)

    if setting.expansion is not None:
        yield from _trust_region(setting, setting.best(whole=False), model, search)


def _trust_region(setting: Setting, order: np.ndarray, model: Model, search: Search) -> Orders:
    """In each round score points that are good under the model, and continue from the best at twice its distance; if
    none is better, retry at the distance of the nearest, down to 0, then stop.

    Args:
        setting: the run and the orders scored so far.
        order: the order to start from, [steps, batch].
        model: order -> the local model around it, and a function from an arrangement of its items to an order; None for
            an order that has no model.
        search: (local model, length, random numbers) -> points at distances up to the length.
    """
    start, bound = (float(b) for b in (yield np.stack([setting.order, order])).bound)
    length = LENGTH
    for _ in range(ROUNDS):
        made = None if setting.ledger.late else model(order)
        if made is None:
            return
        effects, order_of = made
        points = search(effects, length, setting.rng)
        if not points:
            return
        orders = setting.fitted(np.stack([order_of(arrangement) for _, arrangement in points]))
        scores = yield orders
        k = int(scores.bound.argmin())
        if scores.bound[k] >= bound:
            if not length:
                return
            length = points[0][0] if points[0][0] > 1 else 0
            continue
        gained, bound = bound - float(scores.bound[k]), float(scores.bound[k])
        order, length = orders[k], 2 * points[k][0]
        if gained < LEAST * (start - bound):
            return


def _exchanges(effects: Effects, length: int, rng: np.random.Generator) -> Points:
    return _along(exchange_path(effects, effects.base, length))


def _descent(effects: Effects, length: int, rng: np.random.Generator) -> Points:
    """A path of exchanges and moves; the best neighbours of the base if the path is empty."""
    path = exchange_path(effects, effects.base, length)
    path += move_path(effects, path[-1] if path else effects.base, rng, length - len(path))
    return _along(path) or [(1, near) for near in nearest(effects, NEAREST, rng)]


def _corners(effects: Effects, length: int, rng: np.random.Generator) -> Points:
    """The point half way to the best corner, that corner, and both improved by exchanges; nothing at length 0, when
    these were tried before."""
    if not length:
        return []
    corners = conditional_gradient(effects)
    best = corners[int(effects.values(np.stack(corners)).argmin())]
    half = _between(effects.base, best)[1]
    polished = [path[-1] for start in (half, best) if (path := exchange_path(effects, start, length))]
    return [(1, arrangement) for arrangement in (half, best, *polished)]


def _along(path: list[np.ndarray]) -> Points:
    """Points of a path at the distances `SHARES`, the nearest first."""
    at = sorted({max(1, round(share * len(path))) for share in SHARES}) if path else []
    return [(i, path[i - 1]) for i in at]


def _between(base: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Arrangements with a quarter, a half and all of the slots changed from base to goal, [3, slots]."""
    out = []
    for share in (0.25, 0.5, 1.0):
        now = base.copy()
        for slot in np.linspace(0, len(base) - 1, round(share * len(base))).astype(int):
            if now[slot] != goal[slot]:
                other = np.flatnonzero((now == goal[slot]) & (goal != goal[slot]))[0]
                now[[slot, other]] = now[[other, slot]]
        out.append(now)
    return np.stack(out)


class Regroup(Led):
    """Exchanges of samples between positions, by the model of single samples."""

    name, source = "regroup", "exchanges of samples under the adjoint model"
    search, samples, near = _exchanges, True, True


class Assignment(Strategy):
    """The arrangement with the least sum of first-order effects around the best order so far: an exact optimum that
    ignores interactions between positions."""

    name, source = "assignment", "linear assignment of steps to positions, effects from one adjoint sweep"
    guided = True

    def orders(self, setting: Setting) -> Orders:
        steps = setting.steps_of(setting.best())
        if setting.expansion is not None and setting.steps <= LARGEST and steps is not None:
            effects = setting.step_effects(steps)
            best = assigned(effects, effects.costs(np.zeros(effects.curved.shape[2])))
            yield setting.order[_between(effects.base, best)]


class Descent(Led):
    """Swaps, moves and block moves, by the model of steps."""

    name, source = "descent", "swaps, moves and block moves under the adjoint model"
    search, near = _descent, True


class ConditionalGradient(Led):
    """Conditional gradient on the polytope of assignments of steps, its corners improved by exchanges."""

    name, source = "conditional gradient", "iterated assignment of steps, arXiv 2504.16430 for its metagradients"
    search, largest = _corners, LARGEST


class RegroupByAssignment(Led):
    """Conditional gradient on the polytope of assignments of samples, its corners improved by exchanges."""

    name, source = "regroup by assignment", "iterated assignment of samples to positions"
    search, samples, largest = _corners, True, LARGEST
