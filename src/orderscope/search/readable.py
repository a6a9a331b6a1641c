"""Orders that can be described in a few words: shares of groups over time, and sorts by a number.

A schedule is a table [segments, groups]: the density at which the items of each group are placed in each part of the
run, relative to an even spread. It has a few numbers where an order has thousands, so it overfits the searched rows
little, and it can be applied to other samples and to longer runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

SEGMENTS = 4  # parts of equal length that a run is divided into
CLOSE = 0.7  # least rank correlation at which an order counts as a sort
CHANCE = 3.0  # the same threshold, in standard deviations of the rank correlation of shuffled items


@dataclass(frozen=True)
class Schedule:
    """Shares of groups over time.

    Args:
        groups: names of the groups.
        density: number of each group's items in each part of the run, divided by that of an even spread, float64
            [segments, groups]; the mean over the segments is 1.
    """

    groups: tuple[str, ...]
    density: np.ndarray

    def order(self, reference: np.ndarray, codes: np.ndarray, *, regroup: bool) -> np.ndarray:
        """The schedule applied to an order: the items of each group keep their recorded sequence.

        Args:
            reference: the order that it is applied to, [steps, batch].
            codes: group of each item as an index into `groups`: of each sample id if `regroup`, else of each step.
            regroup: whether the items are samples; otherwise recorded steps.

        Returns:
            The new order, [steps, batch].
        """
        if not regroup:
            return reference[played(codes, self.density)]
        flat = reference.reshape(-1)
        return flat[played(codes[flat], self.density)].reshape(reference.shape)

    def words(self) -> list[str]:
        """One line per group: the percentage of its items in each part of the run."""
        share = 100 * self.density / len(self.density)
        return [f"{name}: {' '.join(f'{x:.0f}' for x in share[:, g])}" for g, name in enumerate(self.groups)]


def played(codes: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Indices of the items in a sequence in which each group is spread by its density over time, int64 [items].

    The i-th of n items of a group comes when (i + 1/2) / n of the density's integral has passed.

    Args:
        codes: group of each item, [items].
        density: density of each group over time, [segments, groups], each column with a positive sum.

    Example:
        >>> played(np.array([0, 0, 1, 1]), np.array([[2.0, 0.0], [0.0, 2.0]]))
        array([0, 1, 2, 3])
        >>> played(np.array([0, 0, 1, 1]), np.array([[0.0, 2.0], [2.0, 0.0]]))
        array([2, 3, 0, 1])
    """
    segments = len(density)
    times = np.zeros(len(codes))
    for g in range(density.shape[1]):
        members = np.flatnonzero(codes == g)
        passed = np.concatenate([[0.0], np.cumsum(density[:, g]) / density[:, g].sum()])
        rising = passed + np.arange(segments + 1) * 1e-12  # np.interp needs increasing values also where a density is 0
        at = (np.arange(len(members)) + 0.5) / max(1, len(members))
        times[members] = np.interp(at, rising, np.arange(segments + 1))
    return np.argsort(times, kind="stable")


def nearest_schedule(
    order: np.ndarray, codes: np.ndarray, groups: Sequence[str], segments: int = SEGMENTS
) -> Schedule | None:
    """The schedule of groups that an order has; None if there is one group only.

    Args:
        order: sample ids, [steps, batch].
        codes: group of each sample id, [samples].
        groups: names of the groups.
        segments: number of parts of equal length that the run is divided into.
    """
    used = np.unique(codes[order])
    if len(used) < 2:
        return None
    segments = min(segments, len(order))
    at = np.repeat(np.arange(len(order)) * segments // len(order), order.shape[1])
    of_items = codes[order.reshape(-1)]
    counts = np.stack([np.bincount(at[of_items == g], minlength=segments) for g in used], axis=1).astype(float)
    room = np.bincount(at, minlength=segments)[:, None] / order.size
    density = counts / counts.sum(0) / room
    return Schedule(tuple(str(groups[g]) for g in used), density / density.mean(0))


@dataclass(frozen=True)
class Sort:
    """A sort that describes an order.

    Args:
        signal: name of the number that it sorts by.
        falling: whether it sorts from the largest to the smallest.
        correlation: absolute rank correlation of position and number.
    """

    signal: str
    falling: bool
    correlation: float

    def __str__(self) -> str:
        return f"{self.signal}, {'falling' if self.falling else 'rising'}"


def nearest_sort(signals: Mapping[str, np.ndarray], positions: np.ndarray) -> Sort | None:
    """The sort that a sequence of items is closest to; None if its rank correlation is too small.

    Args:
        signals: name -> number of each item, [items].
        positions: position of each item, [items]; several may share one.

    Example:
        >>> steps = np.arange(30)
        >>> str(nearest_sort({"length": -steps.astype(float), "loss": np.sin(steps)}, steps))
        'length, falling'
        >>> nearest_sort({"loss": np.sin(steps)}, steps)
    """
    correlations = []
    for name, values in signals.items():
        if np.isfinite(values).all() and np.ptp(values) > 0 and np.ptp(positions) > 0:
            ranks = rankdata(values), rankdata(positions)
            correlations.append((float(np.corrcoef(*ranks)[0, 1]), name))
    if not correlations:
        return None
    value, name = max(correlations, key=lambda each: abs(each[0]))
    if abs(value) < max(CLOSE, CHANCE / max(1, len(positions) - 1) ** 0.5):
        return None
    return Sort(name, value < 0, abs(value))
