import math
from itertools import combinations

import torch
from hypothesis import given
from hypothesis import strategies as st

from orderscope.sketching import Coordinates, draw_coordinates
from tasks_tiny import generator


def test_totals_are_unbiased_over_all_samples():
    """Horvitz-Thompson: the mean of the estimate over every possible sample of coordinates is the sum, exactly."""
    values = torch.randn(7, generator=generator(0), dtype=torch.float64)
    for m in range(1, 8):
        every = [Coordinates(torch.tensor(s), 7) for s in combinations(range(7), m)]
        mean = sum(float(c.total(c.take(values))) for c in every) / len(every)
        assert math.isclose(mean, float(values.sum()), rel_tol=1e-12)


def test_totals_are_unbiased_over_the_draws():
    values = torch.randn(3, 400, generator=generator(1), dtype=torch.float64)
    squares = values[0] * values[1]  # an inner product is a total too
    drawn = [draw_coordinates(400, 50, seed) for seed in range(500)]
    for row in (values[2], squares):
        found = torch.stack([c.total(c.take(row)) for c in drawn])
        assert abs(found.mean() - row.sum()) < 4 * found.std() / len(drawn) ** 0.5
        # without replacement: variance P^2 / m (1 - m / P) s^2, within what 500 draws can tell
        expected = 400 * (400 / 50 - 1) * row.var()
        assert 0.75 < found.var() / expected < 1.3


@given(st.integers(1, 500), st.integers(1, 600), st.integers(0, 10**6))
def test_a_draw(size, carried, seed):
    c = draw_coordinates(size, carried, seed)
    assert c.carried == min(size, carried)
    assert c.weight == size / c.carried
    x = torch.arange(size)
    taken = c.take(x)
    assert len(taken) == c.carried
    assert torch.equal(taken, taken.unique())  # ascending, each once
    assert torch.equal(taken, draw_coordinates(size, carried, seed).take(x))
    if carried >= size:
        assert c.indices is None
        assert c.total(x.double()) == x.sum()
