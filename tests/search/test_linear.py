"""The best arrangement under a local model."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orderscope.search.linear import Effects, assigned, conditional_gradient, exchange_path, move_path, nearest

SEEDS = st.integers(0, 10**6)


def made(seed: int, steps: int = 5, batch: int = 1, rank: int = 3, sign: float = 1.0) -> Effects:
    rng = np.random.default_rng(seed)
    items = steps * batch
    return Effects(
        value=1.0,
        linear=rng.normal(size=(steps, items)),
        curved=rng.normal(size=(steps, items, rank)),
        base=rng.permutation(items),
        sign=sign,
    )


@given(SEEDS, st.sampled_from([1.0, -1.0]))
def test_values_are_the_formula(seed: int, sign: float) -> None:
    effects = made(seed, steps=3, batch=2, sign=sign)
    arrangement = np.random.default_rng(seed + 1).permutation(6)
    linear, curved = 0.0, np.zeros(3)
    for slot in range(6):
        t = slot // 2
        linear += effects.linear[t, arrangement[slot]] - effects.linear[t, effects.base[slot]]
        curved += effects.curved[t, arrangement[slot]] - effects.curved[t, effects.base[slot]]
    expected = 1.0 + sign * (linear + 0.5 * curved @ curved)
    assert effects.values(arrangement[None])[0] == pytest.approx(expected)
    assert effects.values(effects.base[None])[0] == 1.0


@given(SEEDS)
def test_costs_are_the_derivative(seed: int) -> None:
    effects = made(seed)
    other = np.random.default_rng(seed + 1).permutation(5)
    z = effects.displaced(other)
    step = 1e-6
    t, x = 2, 3
    more = effects.linear[t, x] * step + z @ effects.curved[t, x] * step
    assert effects.costs(z)[t, x] * step == pytest.approx(more)


@settings(max_examples=20)
@given(SEEDS)
def test_assignment_is_the_best_of_all_permutations(seed: int) -> None:
    effects = made(seed)
    costs = effects.costs(np.zeros(3))
    at = np.arange(5)
    best = min(costs[at, list(p)].sum() for p in permutations(range(5)))
    assert costs[at, assigned(effects, costs)].sum() == pytest.approx(best)


@given(SEEDS, st.integers(1, 3), st.sampled_from([1.0, -1.0]))
def test_paths_fall_and_keep_the_items(seed: int, batch: int, sign: float) -> None:
    effects = made(seed, steps=6, batch=batch, sign=sign)
    path = exchange_path(effects, effects.base)
    values = effects.values(np.stack([effects.base, *path]))
    assert (np.diff(values) < 0).all()
    for arrangement in path:
        assert (np.sort(arrangement) == np.sort(effects.base)).all()


@given(SEEDS)
def test_at_the_end_of_an_exchange_path_of_steps_no_swap_of_first_order_helps(seed: int) -> None:
    """With batches of one an exchange is a swap; without curvature the first order is all there is."""
    effects = made(seed, rank=0)
    end = [effects.base, *exchange_path(effects, effects.base)][-1]
    value = effects.values(end[None])[0]
    for i in range(5):
        for j in range(i):
            tried = end.copy()
            tried[[i, j]] = tried[[j, i]]
            assert effects.values(tried[None])[0] >= value - 1e-9


@given(SEEDS)
def test_moves_fall_and_near_ones_come_best_first(seed: int) -> None:
    effects = made(seed)
    rng = np.random.default_rng(seed)
    path = move_path(effects, effects.base, rng)
    assert (np.diff(effects.values(np.stack([effects.base, *path]))) < 0).all()
    near = nearest(effects, 6, rng)
    assert (np.diff(effects.values(near)) >= 0).all()
    assert (np.sort(near, axis=1) == np.arange(5)).all()


@given(SEEDS)
def test_conditional_gradient_without_curvature_is_the_assignment(seed: int) -> None:
    effects = made(seed, rank=0)
    best = assigned(effects, effects.costs(np.zeros(0)))
    corners = conditional_gradient(effects)
    assert effects.values(np.stack(corners)).min() == pytest.approx(effects.values(best[None])[0])


@settings(max_examples=20)
@given(SEEDS)
def test_conditional_gradient_is_near_the_best_of_all_permutations(seed: int) -> None:
    """Polished by exchanges, on five steps, it reaches at least half of what all permutations reach."""
    effects = made(seed)
    everything = effects.values(np.array(list(permutations(range(5))))).min()
    corners = conditional_gradient(effects)
    ends = [[c, *exchange_path(effects, c)][-1] for c in (*corners, effects.base)]
    found = effects.values(np.stack(ends)).min()
    assert 1.0 - found >= 0.5 * (1.0 - everything)


def test_samples_that_come_several_times_are_kept() -> None:
    rng = np.random.default_rng(0)
    base = np.array([0, 1, 2, 0, 1, 1])
    effects = Effects(0.0, rng.normal(size=(3, 3)), rng.normal(size=(3, 3, 2)), base)
    for found in (*exchange_path(effects, base), *conditional_gradient(effects)):
        assert sorted(found) == sorted(base)
