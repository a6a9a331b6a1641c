"""Searches among orders that can be told in a few words: shares of groups over time.

A schedule has groups x segments numbers. What so few numbers can learn of the searched rows is little, so that their
gain holds on others better than that of an order of thousands.
"""

from __future__ import annotations

import numpy as np

from orderscope.search.readable import SEGMENTS, played
from orderscope.search.setting import Setting
from orderscope.search.strategy import Orders, Strategy

ROUND = 24
ELITE = 6
ROUNDS = 12
SPREAD, SHRINK = 1.0, 0.85  # of the logarithms of densities: how far the first ones are drawn, and the later ones
GROUPS = 8


class GroupSchedule(Strategy):
    """The cross-entropy method on logarithms of densities, one number for each group and quarter of the run: draw some
    around a mean, move the mean to that of the best, draw nearer.

    Source: Rubinstein, "The cross-entropy method for combinatorial and continuous optimization", 1999.
    """

    name, source = "group schedule", "shares of groups over the quarters of the run, by the cross-entropy method"

    def orders(self, setting: Setting) -> Orders:
        codes, count = codes_of(setting)
        if not 1 < count <= GROUPS:
            if count > GROUPS:
                setting.note(f"{self.name}: {count} groups, more than the {GROUPS} whose shares are searched")
            return
        segments = min(SEGMENTS, setting.steps)
        mean, spread = np.zeros((segments, count)), np.full((segments, count), SPREAD)
        best, kept = np.inf, np.zeros((0, segments, count))
        bounds = np.zeros(0)
        for _ in range(ROUNDS):
            drawn = mean + spread * setting.rng.standard_normal((ROUND, segments, count))
            if not len(kept):
                drawn[0] = 0.0  # an even spread
            scores = yield np.stack([order_of(setting, codes, table) for table in drawn])
            drawn, bounds = np.concatenate([kept, drawn]), np.concatenate([bounds, scores.bound])
            chosen = np.argsort(bounds, kind="stable")[:ELITE]
            kept, bounds = drawn[chosen], bounds[chosen]
            mean = kept.mean(0)
            spread = np.maximum(SHRINK * spread * 0.5 + 0.5 * kept.std(0), 0.05)
            best = min(best, float(bounds[0]))


def codes_of(setting: Setting) -> tuple[np.ndarray, int]:
    """Group of each item that a schedule moves, and the number of groups: of samples where batches mix groups and
    samples may leave them, else of recorded steps."""
    if moves_samples(setting):
        used, codes = np.unique(setting.sim.window.group_codes, return_inverse=True)
        return codes, len(used)
    used, codes = np.unique(setting.labels, return_inverse=True)
    return codes, len(used)


def moves_samples(setting: Setting) -> bool:
    return setting.regroup and bool(((setting.sim.window.fractions > 0).sum(1) > 1).any())


def order_of(setting: Setting, codes: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """The recorded order with its groups drawn at densities exp(logs), [segments, groups].

    Args:
        setting: the run, for its order.
        codes: group of each item that moves, see `codes_of`.
        logs: logarithms of densities, [segments, groups].
    """
    density = np.exp(logs - logs.max(0))
    if not moves_samples(setting):
        return setting.order[played(codes, density)]
    flat = setting.order.reshape(-1)
    return flat[played(codes[flat], density)].reshape(setting.order.shape)
