"""A local model of how the metric depends on who is where, and the best arrangement under it.

Items (recorded steps, or single samples) sit in slots; `batch` slots make a position. Near a base arrangement

    f(a) = value + sign * ( sum_s e(s) + 1/2 | sum_s c(s) |^2 ),    e(s) = linear[p(s), a_s] - linear[p(s), base_s]

and c likewise with `curved`: an item's effect on the final weights is linear in what it is replaced by, the metric is
quadratic in the final weights. The first part alone is a linear assignment; the second couples positions, because two
items that push the model the same way are worth less together. All functions here are pure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from orderscope.search.arrange import neighbours

SHARE = 8  # at most steps / SHARE exchanges between two points of a path
LARGEST = 1000  # slots of an assignment problem: it takes some tenths of a second


@dataclass(frozen=True)
class Effects:
    """The local model.

    Args:
        value: objective at the base; lower is better.
        linear: first-order effect of item x at position t, float64 [steps, items].
        curved: its effect in the metric's curved directions, [steps, items, rank].
        base: item in each slot, int64 [steps * batch].
        sign: -1 where the metric is to be maximized.
    """

    value: float
    linear: np.ndarray
    curved: np.ndarray
    base: np.ndarray
    sign: float = 1.0

    @property
    def positions(self) -> np.ndarray:
        """Position of each slot."""
        steps = len(self.linear)
        return np.repeat(np.arange(steps), len(self.base) // steps)

    def values(self, arrangements: np.ndarray) -> np.ndarray:
        """Objective of arrangements [k, slots] -> [k]."""
        at = self.positions
        linear = self.linear[at, arrangements].sum(-1) - self.linear[at, self.base].sum()
        curved = self.curved[at, arrangements].sum(-2) - self.curved[at, self.base].sum(-2)
        return self.value + self.sign * (linear + 0.5 * (curved**2).sum(-1))

    def displaced(self, arrangement: np.ndarray) -> np.ndarray:
        """Sum of c(s), [rank]."""
        at = self.positions
        return self.curved[at, arrangement].sum(0) - self.curved[at, self.base].sum(0)

    def costs(self, displaced: np.ndarray) -> np.ndarray:
        """Derivative of the objective with respect to having item x at position t, [steps, items]."""
        return self.sign * (self.linear + self.curved @ displaced)


def exchange_path(effects: Effects, start: np.ndarray, rounds: int = 48) -> list[np.ndarray]:
    """Descend by exchanging items of two positions, the best exchanges first; every arrangement on the way.

    For a pair of positions the item that gains most from moving is found for either direction; the pairs are then gone
    through in the order of their joint gain, each made if it still is one, curvature included.

    Args:
        effects: the local model that is descended on.
        start: where to begin, int64 [slots].
        rounds: most points of the path.
    """
    steps = len(effects.linear)
    batch = len(start) // steps
    now, z, path = start.copy(), effects.displaced(start), []
    most = max(1, steps // SHARE)
    for _ in range(rounds):
        cost = effects.costs(z)
        gains = cost[:, now] - cost[effects.positions, now]  # of slot s moving to position t, [steps, slots]
        by_position = gains.reshape(steps, steps, batch)
        best = by_position.argmin(2)  # [to, from] -> slot within from
        gain = np.take_along_axis(by_position, best[..., None], 2)[..., 0]
        joint = np.triu(gain + gain.T, 1)
        made, free = 0, np.ones(steps, dtype=bool)
        for pair in np.argsort(joint, axis=None):
            a, b = divmod(int(pair), steps)
            if joint[a, b] >= 0 or made == most:
                break
            if not (free[a] and free[b]):
                continue
            i, j = a * batch + best[b, a], b * batch + best[a, b]
            x, y = now[i], now[j]
            linear = effects.linear[a, y] + effects.linear[b, x] - effects.linear[a, x] - effects.linear[b, y]
            step = effects.curved[a, y] + effects.curved[b, x] - effects.curved[a, x] - effects.curved[b, y]
            change = effects.sign * (linear + step @ z + 0.5 * step @ step)
            if change < -1e-12 * max(1.0, abs(effects.value)):
                now[i], now[j] = y, x
                z = z + step
                free[[a, b]] = False
                made += 1
        if not made:
            break
        path.append(now.copy())
    return path


def move_path(effects: Effects, start: np.ndarray, rng: np.random.Generator, rounds: int = 48) -> list[np.ndarray]:
    """For one item a position: go to the best of many random swaps, moves and block moves while that helps.

    Args:
        effects: the local model: what each item changes at each position.
        start: where to begin, int64 [slots].
        rng: random numbers.
        rounds: most points of the path.
    """
    now, value, path = start, float(effects.values(start[None])[0]), []
    for _ in range(rounds):
        tried = neighbours(now, _many(effects), rng)
        values = effects.values(tried)
        best = int(values.argmin())
        if values[best] >= value - 1e-12 * max(1.0, abs(value)):
            break
        now, value = tried[best], float(values[best])
        path.append(now)
    return path


def nearest(effects: Effects, count: int, rng: np.random.Generator) -> np.ndarray:
    """For one item a position: the best of many swaps, moves and block moves of the base, [count, slots].

    Args:
        effects: the local model: what each item changes at each position.
        count: how many.
        rng: random numbers.
    """
    tried = np.unique(neighbours(effects.base, _many(effects), rng), axis=0)
    return tried[np.argsort(effects.values(tried), kind="stable")[:count]]


def _many(effects: Effects) -> int:
    """As many neighbours as are evaluated in some milliseconds."""
    return int(np.clip(2_000_000 // max(1, effects.curved.shape[2] * len(effects.base)), 64, 2000))


def assigned(effects: Effects, costs: np.ndarray) -> np.ndarray:
    """The arrangement of the base's items with the least sum of costs: a linear assignment.

    Args:
        effects: the quadratic model around a base order.
        costs: of each item at each position, [steps, items].
    """
    rows, columns = linear_sum_assignment(costs[effects.positions][:, effects.base])
    out = np.empty_like(effects.base)
    out[rows] = effects.base[columns]
    return out


def conditional_gradient(effects: Effects, rounds: int = 8) -> list[np.ndarray]:
    """Corners of the assignment polytope that the conditional-gradient method visits, the last one found first.

    Minimises the quadratic over mixtures of arrangements: each round solves the assignment for the gradient where it
    stands and goes the best way towards that corner.
    Source: Frank and Wolfe, "An algorithm for quadratic programming", 1956.

    Args:
        effects: the quadratic model around a base order.
        rounds: most rounds.
    """
    at, base = effects.positions, effects.base
    z = np.zeros(effects.curved.shape[2])
    linear = 0.0
    corners: list[np.ndarray] = []
    for _ in range(rounds):
        corner = assigned(effects, effects.costs(z))
        corners.append(corner)
        to_linear = effects.linear[at, corner].sum() - effects.linear[at, base].sum() - linear
        to_z = effects.displaced(corner) - z
        slope, bend = to_linear + z @ to_z, to_z @ to_z
        if effects.sign * slope >= -1e-12 * max(1.0, abs(effects.value)):
            break
        share = min(1.0, -slope / bend) if effects.sign > 0 and bend > 0 else 1.0
        linear, z = linear + share * to_linear, z + share * to_z
    return corners[::-1]
