"""Small changes of a permutation, and of an order."""

from __future__ import annotations

import numpy as np


def swapped(perm: np.ndarray, i: int, j: int) -> np.ndarray:
    """Entries i and j exchanged.

    Args:
        perm: a permutation, int64 [n].
        i: a position.
        j: another.

    Example:
        >>> swapped(np.arange(4), 0, 2)
        array([2, 1, 0, 3])
    """
    out = perm.copy()
    out[[i, j]] = out[[j, i]]
    return out


def moved(perm: np.ndarray, first: int, length: int, to: int) -> np.ndarray:
    """The block of `length` entries from `first` on taken out and put in so that it starts at `to`.

    Args:
        perm: a permutation, int64 [n].
        first: where the block begins.
        length: of the block.
        to: where it begins afterwards.

    Example:
        >>> moved(np.arange(6), 1, 2, 3)
        array([0, 3, 4, 1, 2, 5])
    """
    block = perm[first : first + length]
    rest = np.concatenate([perm[:first], perm[first + length :]])
    return np.concatenate([rest[:to], block, rest[to:]])


def neighbour(perm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A permutation with a random change: a swap, a move of one entry, or a move of a block of up to a quarter, with
    equal chances.

    Args:
        perm: a permutation, int64 [n].
        rng: random numbers.
    """
    steps = len(perm)
    if steps < 2:
        return perm.copy()
    kind = rng.integers(3)
    if kind == 0:
        i, j = rng.choice(steps, 2, replace=False)
        return swapped(perm, i, j)
    length = 1 if kind == 1 else int(rng.integers(1, max(2, steps // 4) + 1))
    length = min(length, steps - 1)
    first, to = rng.choice(steps - length + 1, 2, replace=False)
    return moved(perm, int(first), length, int(to))


def neighbours(perm: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Random neighbours of a permutation, [count, n].

    Args:
        perm: a permutation, int64 [n].
        count: how many.
        rng: random numbers.
    """
    return np.stack([neighbour(perm, rng) for _ in range(count)])


def crossed(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Order crossover: a stretch of the first parent in place, the rest in the sequence of the second.

    Args:
        first: a permutation, int64 [n].
        second: another of the same items, int64 [n].
        rng: random numbers.

    Source: Davis, "Applying adaptive algorithms to epistatic domains", IJCAI 1985.
    """
    low, high = np.sort(rng.choice(len(first) + 1, 2, replace=False))
    child = np.empty_like(first)
    child[low:high] = first[low:high]
    outside = np.r_[0:low, high : len(first)]
    child[outside] = second[~np.isin(second, first[low:high])]
    return child
