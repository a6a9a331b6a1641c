"""Searches among schedules of groups: shares of groups over time.

A schedule has groups x segments numbers, so it overfits the searched rows less than an order, which has thousands.
"""

from __future__ import annotations

import math

import numpy as np

from orderscope.search.readable import SEGMENTS, played
from orderscope.search.setting import Setting
from orderscope.search.strategy import Orders, Strategy

ROUND, ROUNDS = 24, 12  # schedules drawn in a round, and most rounds
OF_SAMPLES = (8, 2)  # the same if samples move, since scoring such an order costs as much as training it
ELITE = 4  # the best of a round, one in `ELITE`, give the next mean
PATIENCE, LEAST = 2, 0.1  # ends if `PATIENCE` rounds gain less than this share of the gain over the recorded order
SPREAD, SHRINK = 1.0, 0.85  # standard deviation of the first draws of log densities, and its factor after each round
GROUPS = 8  # most groups whose shares are searched


class GroupSchedule(Strategy):
    """The cross-entropy method on log densities, one for each group and quarter of the run: draw schedules around a
    mean, move the mean to that of the best ones, and reduce the spread.

    Source: Rubinstein, "The cross-entropy method for combinatorial and continuous optimization", 1999.
    """

    name, source = "group schedule", "shares of groups over the quarters of the run, by the cross-entropy method"

    def orders(self, setting: Setting) -> Orders:
        codes, count = codes_of(setting)
        if not 1 < count <= GROUPS:
            if count > GROUPS:
                setting.note(f"{self.name}: {count} groups; shares are searched for at most {GROUPS}")
            return
        segments = min(SEGMENTS, setting.steps)
        drawing, rounds = OF_SAMPLES if moves_samples(setting) else (ROUND, ROUNDS)
        mean, spread = np.zeros((segments, count)), np.full((segments, count), SPREAD)
        kept, bounds, best = np.zeros((0, segments, count)), np.zeros(0), [math.inf]
        recorded = setting.ledger.entry(setting.order)
        while len(best) <= rounds:
            drawn = mean + spread * setting.rng.standard_normal((drawing, segments, count))
            if not len(kept):
                drawn[0] = 0.0  # an even spread
            scores = yield np.stack([order_of(setting, codes, table) for table in drawn])
            drawn, bounds = np.concatenate([kept, drawn]), np.concatenate([bounds, scores.bound])
            chosen = np.argsort(bounds, kind="stable")[: max(2, drawing // ELITE)]
            kept, bounds = drawn[chosen], bounds[chosen]
            mean = kept.mean(0)
            spread = np.maximum(SHRINK * spread * 0.5 + 0.5 * kept.std(0), 0.05)
            best.append(float(bounds[0]))
            if recorded is not None and len(best) > PATIENCE + 1:
                gained = best[-PATIENCE - 1] - best[-1]
                if gained <= LEAST * max(0.0, recorded.bound - best[-1]):
                    return


def codes_of(setting: Setting) -> tuple[np.ndarray, int]:
    """Group of each item that a schedule moves, and the number of groups. The items are samples if batches mix groups
    and samples may leave their batches, else recorded steps."""
    if moves_samples(setting):
        used, codes = np.unique(setting.sim.window.group_codes, return_inverse=True)
        return codes, len(used)
    used, codes = np.unique(setting.labels, return_inverse=True)
    return codes, len(used)


def moves_samples(setting: Setting) -> bool:
    """Whether schedules move single samples: batches mix groups, and samples may leave them."""
    return setting.regroup and bool(((setting.sim.window.fractions > 0).sum(1) > 1).any())


def order_of(setting: Setting, codes: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """The recorded order with its groups placed at densities exp(logs), [steps, batch].

    Args:
        setting: the setting, for the recorded order.
        codes: group of each item that moves, see `codes_of`.
        logs: logarithms of the densities, [segments, groups].
    """
    density = np.exp(logs - logs.max(0))
    if not moves_samples(setting):
        return setting.order[played(codes, density)]
    flat = setting.order.reshape(-1)
    return flat[played(codes[flat], density)].reshape(setting.order.shape)
