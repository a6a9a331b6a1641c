"""Searches led by the local model: one sweep says what every batch or sample would do at every position.

The model is good near its base and too hopeful far away, so a path is followed only as far as replaying it agrees, and
the model is made anew where that was (a trust region).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from orderscope.search.linear import LARGEST, Effects, assigned, conditional_gradient, exchange_path, move_path, nearest
from orderscope.search.setting import Setting
from orderscope.search.strategy import Orders, Strategy, register

ROUNDS = 16
LEAST = 0.01  # of the gain so far: a round that brings less is the last
LENGTH = 48  # points of the first path
SHARES = (1 / 8, 1 / 4, 1 / 2, 1)  # of a path, at which it is scored
NEAREST = 24  # neighbours that are scored where a path of steps leads nowhere
Points = list[tuple[int, np.ndarray]]  # how far along a path, and the arrangement there
Search = Callable[[Effects, int, np.random.Generator], Points]
OrderOf = Callable[[np.ndarray], np.ndarray]
Model = Callable[[np.ndarray], tuple[Effects, OrderOf]]


@register
class Regroup(Strategy):
    """Samples exchanged between positions under the model of single samples: recorded batches are not kept."""

    name, source = "regroup", "exchanges of samples under the adjoint model"
    guided = precise = True

    def orders(self, setting: Setting) -> Orders:
        yield from _samples_led(setting, _exchanges)


@register
class Descent(Strategy):
    """Swaps, moves and block moves under the model of steps."""

    name, source = "descent", "swaps, moves and block moves under the adjoint model"
    guided = precise = True

    def orders(self, setting: Setting) -> Orders:
        yield from _steps_led(setting, _descent)


@register
class Assignment(Strategy):
    """The least sum over positions of first-order effects, around the reference: exact, and blind to what positions do
    to each other."""

    name, source = "assignment", "linear assignment of steps to positions, effects from one adjoint sweep"
    guided = precise = True

    def orders(self, setting: Setting) -> Orders:
        if setting.expansion is not None and setting.steps <= LARGEST:
            effects = setting.step_effects(np.arange(setting.steps))
            best = assigned(effects, effects.costs(np.zeros(effects.curved.shape[2])))
            yield setting.order[_between(effects.base, best)]


@register
class ConditionalGradient(Strategy):
    """Iterated assignment: conditional gradient on the polytope of assignments, its corners polished by exchanges."""

    name, source = "conditional gradient", "iterated assignment of steps, arXiv 2504.16430 for its metagradients"
    guided = precise = True

    def orders(self, setting: Setting) -> Orders:
        if setting.steps <= LARGEST:
            yield from _steps_led(setting, _corners)


@register
class RegroupByAssignment(Strategy):
    """Conditional gradient over assignments of samples to positions, its corners polished by exchanges."""

    name, source = "regroup by assignment", "iterated assignment of samples to positions"
    guided = precise = True

    def orders(self, setting: Setting) -> Orders:
        if setting.order.size <= LARGEST:
            yield from _samples_led(setting, _corners)


def _steps_led(setting: Setting, search: Search) -> Orders:
    if setting.expansion is None:
        return
    start = setting.best()
    base = setting.steps_of(start)
    assert base is not None

    def model(steps: np.ndarray) -> tuple[Effects, OrderOf]:
        return setting.step_effects(steps), lambda arrangement: setting.order[arrangement]

    yield from _trust_region(setting, base, setting.order[base], model, search)


def _samples_led(setting: Setting, search: Search) -> Orders:
    if setting.expansion is None or not setting.regroup:
        return
    start = setting.best(whole=False)

    def model(order: np.ndarray) -> tuple[Effects, OrderOf]:
        effects, ids = setting.sample_effects(order)
        return effects, lambda arrangement: ids[arrangement].reshape(order.shape)

    yield from _trust_region(setting, start, start, model, search)


def _trust_region(setting: Setting, base: np.ndarray, order: np.ndarray, model: Model, search: Search) -> Orders:
    """Score some arrangements that the model likes, go on from the best, and go as far again as that was; where none is
    better less far, down to a length of 0, and then no more.

    Args:
        base: what `model` is made around; an order, or its recorded steps.
        order: the order it stands for.
        model: base -> local model, and how an arrangement of its items becomes an order.
    """
    first = bound = float((yield order[None]).bound[0])
    length = LENGTH
    for _ in range(ROUNDS):
        if setting.ledger.late:
            return
        effects, order_of = model(base)
        points = search(effects, length, setting.rng)
        if not points:
            return
        orders = np.stack([order_of(arrangement) for _, arrangement in points])
        scores = yield orders
        k = int(scores.bound.argmin())
        if scores.bound[k] >= bound:
            if not length:
                return
            length = points[0][0] if points[0][0] > 1 else 0
            continue
        gained, bound = bound - float(scores.bound[k]), float(scores.bound[k])
        base, length = orders[k] if base.ndim == 2 else points[k][1], 2 * points[k][0]
        if gained < LEAST * (first - bound):
            return


def _exchanges(effects: Effects, length: int, rng: np.random.Generator) -> Points:
    return _along(exchange_path(effects, effects.base, length))


def _descent(effects: Effects, length: int, rng: np.random.Generator) -> Points:
    """A path, or where that leads nowhere the nearest neighbours."""
    path = exchange_path(effects, effects.base, length)
    path += move_path(effects, path[-1] if path else effects.base, rng, length - len(path))
    return _along(path) or [(1, near) for near in nearest(effects, NEAREST, rng)]


def _corners(effects: Effects, length: int, rng: np.random.Generator) -> Points:
    """Half way to the best corner, that corner, and both polished."""
    corners = conditional_gradient(effects)
    best = corners[int(effects.values(np.stack(corners)).argmin())]
    half = _between(effects.base, best)[1]
    polished = [path[-1] for start in (half, best) if (path := exchange_path(effects, start, length))]
    return [(1, arrangement) for arrangement in (half, best, *polished)]


def _along(path: list[np.ndarray]) -> Points:
    """Points of a path, the nearest first."""
    at = sorted({max(1, round(share * len(path))) for share in SHARES}) if path else []
    return [(i, path[i - 1]) for i in at]


def _between(base: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Arrangements a quarter, a half and all of the way from base to goal, slot after slot, [3, slots]."""
    out = []
    for share in (0.25, 0.5, 1.0):
        now = base.copy()
        for slot in np.linspace(0, len(base) - 1, round(share * len(base))).astype(int):
            if now[slot] != goal[slot]:
                other = np.flatnonzero((now == goal[slot]) & (goal != goal[slot]))[0]
                now[[slot, other]] = now[[other, slot]]
        out.append(now)
    return np.stack(out)
