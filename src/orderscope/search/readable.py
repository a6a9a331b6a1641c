"""Orders that can be told in a few words: shares of groups over time, and sorts.

A schedule is a table [segments, groups]: at what density the items of each group are drawn in each part of the run,
relative to an even spread. It has a few numbers where an order has thousands, so it learns little of the rows it was
found on, and it can be played on other samples and on longer runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

SEGMENTS = 4
CLOSE = 0.7  # least rank correlation of a sort
CHANCE = 3.0  # the same, in standard deviations of that of shuffled items


@dataclass(frozen=True)
class Schedule:
    """Shares of groups over time.

    Args:
        groups: their names.
        density: of each group's items, how many fall into each part of the run, over an even spread, float64
            [segments, groups]; the mean over the segments is 1.
    """

    groups: tuple[str, ...]
    density: np.ndarray

    def order(self, reference: np.ndarray, codes: np.ndarray, *, regroup: bool) -> np.ndarray:
        """The schedule played on an order [steps, batch]: the items of each group in their recorded sequence.

        Args:
            reference: the order it is played on, [steps, batch].
            codes: group of each item as a place in `groups`: of each sample id where `regroup`, else of each step.
            regroup: whether the items are samples; otherwise recorded steps.
        """
        if not regroup:
            return reference[played(codes, self.density)]
        flat = reference.reshape(-1)
        return flat[played(codes[flat], self.density)].reshape(reference.shape)

    def words(self) -> list[str]:
        """One line a group, percent of its items in each part of the run."""
        share = 100 * self.density / len(self.density)
        return [f"{name}: {' '.join(f'{x:.0f}' for x in share[:, g])}" for g, name in enumerate(self.groups)]


def played(codes: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Items sorted so that each group's are spread by its density over time, int64 [items].

    The i-th of n items of a group comes when (i + 1/2) / n of the density's integral has passed.

    Args:
        codes: group of each item, [items].
        density: [segments, groups], each column with a positive sum.

    Example:
        >>> played(np.array([0, 0, 1, 1]), np.array([[2.0, 0.0], [0.0, 2.0]]))
        array([0, 1, 2, 3])
        >>> played(np.array([0, 0, 1, 1]), np.array([[0.0, 2.0], [2.0, 0.0]]))
        array([2, 3, 0, 1])
    """
    segments = len(density)
    times = np.zeros(len(codes))
    for g in range(density.shape[1]):
        mine = np.flatnonzero(codes == g)
        passed = np.concatenate([[0.0], np.cumsum(density[:, g]) / density[:, g].sum()])
        rising = passed + np.arange(segments + 1) * 1e-12  # np.interp needs it where a density is 0
        times[mine] = np.interp((np.arange(len(mine)) + 0.5) / max(1, len(mine)), rising, np.arange(segments + 1))
    return np.argsort(times, kind="stable")


def nearest_schedule(
    order: np.ndarray, codes: np.ndarray, groups: Sequence[str], segments: int = SEGMENTS
) -> Schedule | None:
    """Where an order has the samples of each group, as a schedule; None where there is one group only.

    Args:
        order: [steps, batch].
        codes: group of each sample id.
        groups: their names.
        segments: stretches of equal length that the run is cut into.
    """
    used = np.unique(codes[order])
    if len(used) < 2:
        return None
    segments = min(segments, len(order))
    at = np.repeat(np.arange(len(order)) * segments // len(order), order.shape[1])
    own = codes[order.reshape(-1)]
    counts = np.stack([np.bincount(at[own == g], minlength=segments) for g in used], axis=1).astype(float)
    room = np.bincount(at, minlength=segments)[:, None] / order.size
    density = counts / counts.sum(0) / room
    return Schedule(tuple(str(groups[g]) for g in used), density / density.mean(0))


@dataclass(frozen=True)
class Sort:
    """A number that an order goes by.

    Args:
        signal: what it is a number of.
        falling: from the largest to the smallest.
        correlation: size of the rank correlation of position and number.
    """

    signal: str
    falling: bool
    correlation: float

    def __str__(self) -> str:
        return f"{self.signal}, {'falling' if self.falling else 'rising'}"


def nearest_sort(signals: Mapping[str, np.ndarray], positions: np.ndarray) -> Sort | None:
    """The signal that items in a sequence are closest to being sorted by; None where they are close to none.

    Args:
        signals: name -> number of each item, [items].
        positions: of each item, [items]; several may share one.

    Example:
        >>> steps = np.arange(30)
        >>> str(nearest_sort({"length": -steps.astype(float), "loss": np.sin(steps)}, steps))
        'length, falling'
        >>> nearest_sort({"loss": np.sin(steps)}, steps)
    """
    found = []
    for name, values in signals.items():
        if np.isfinite(values).all() and np.ptp(values) > 0 and np.ptp(positions) > 0:
            ranks = rankdata(values), rankdata(positions)
            found.append((float(np.corrcoef(*ranks)[0, 1]), name))
    if not found:
        return None
    value, name = max(found, key=lambda each: abs(each[0]))
    if abs(value) < max(CLOSE, CHANCE / max(1, len(positions) - 1) ** 0.5):
        return None
    return Sort(name, value < 0, abs(value))
