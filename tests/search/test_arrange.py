"""Small changes keep what is arranged."""

from __future__ import annotations

import doctest

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orderscope.search import arrange
from orderscope.search.arrange import crossed, moved, neighbours, swapped

SIZES = st.integers(1, 30)
SEEDS = st.integers(0, 10**6)


def test_examples() -> None:
    assert doctest.testmod(arrange).failed == 0


@given(SIZES, SEEDS)
def test_neighbours_are_permutations(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = neighbours(rng.permutation(n), 20, rng)
    assert (np.sort(found, axis=1) == np.arange(n)).all()


@given(st.integers(2, 30), SEEDS)
def test_neighbours_differ_from_where_they_come_from(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    start = rng.permutation(n)
    assert (neighbours(start, 20, rng) != start).any(axis=1).all()


@given(st.integers(2, 30), SEEDS)
def test_two_equal_swaps_are_the_identity(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    start = rng.permutation(n)
    i, j = rng.integers(n, size=2)
    assert (swapped(swapped(start, i, j), i, j) == start).all()


@given(st.integers(2, 30), SEEDS)
def test_a_moved_block_moved_back_is_the_identity(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    start = rng.permutation(n)
    length = int(rng.integers(1, n))
    first, to = rng.integers(n - length + 1, size=2)
    there = moved(start, first, length, to)
    assert (there[to : to + length] == start[first : first + length]).all()
    assert (moved(there, to, length, first) == start).all()


@given(st.integers(2, 30), SEEDS)
def test_a_child_has_a_stretch_of_one_parent_and_the_sequence_of_the_other(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mother, father = rng.permutation(n), rng.permutation(n)
    child = crossed(mother, father, rng)
    assert (np.sort(child) == np.arange(n)).all()
    rest = child[child != mother]
    assert (rest == father[np.isin(father, rest)]).all()
