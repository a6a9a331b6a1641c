"""The curvature operator against the matrix it stands for."""

import pytest
import torch

from orderscope.engine.curvature import Curvature, factor_products
from tasks_tiny import generator


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


A, B = normal(3, 7), normal(5, 7, seed=1)
MATRIX = 0.25 * A.T @ A + 2 * B.T @ B
JOINED = Curvature.joined([(0.25, Curvature.of(A)), (0.0, Curvature.of(1e9 * A)), (2.0, Curvature.of(B))], 7)
X, Y = normal(4, 7, seed=2), normal(6, 7, seed=3)


def test_products_with_rows_are_those_with_the_matrix():
    torch.testing.assert_close(X @ JOINED, X @ MATRIX)
    torch.testing.assert_close(X[0] @ JOINED, X[0] @ MATRIX)
    torch.testing.assert_close(JOINED.products(X, Y), X @ MATRIX @ Y.T)
    torch.testing.assert_close(JOINED.square(X), (X @ MATRIX * X).sum(1))
    torch.testing.assert_close(JOINED.factor.T @ JOINED.factor, MATRIX)


def test_a_sum_of_sums_is_the_sum():
    twice = Curvature.joined([(3.0, JOINED), (1.0, Curvature.of(A))], 7)
    torch.testing.assert_close(X @ twice, X @ (3 * MATRIX + A.T @ A))


def test_a_sum_of_none_is_zero():
    none = Curvature.joined([(0.0, JOINED)], 7)
    assert not (X @ none).any()
    assert not none.products(X, Y).any()
    assert not none.square(X).any()
    assert none.factor.shape == (0, 7)


def test_a_short_factor_rounds_the_rows_but_not_the_square():
    """Products are in the factor's type, of 8 bits: two roundings of the rows and one of each product."""
    short = Curvature.of(A.bfloat16())
    wide = A.bfloat16().double()
    assert (X @ short).dtype == torch.float64
    true = X @ wide.T @ wide
    torch.testing.assert_close(X @ short, true, rtol=0, atol=3 * 2**-8 * float(true.abs().max()))
    torch.testing.assert_close(short.square(X), (X @ wide.T).square().sum(-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("energy", [0.8, 0.95, 1.0])
def test_compressed_it_keeps_that_share_of_the_trace_of_the_mean(energy):
    rows = normal(40, 12, seed=4) * torch.logspace(0, -2, 12)
    whole = float(rows.square().sum()) * 3 / len(rows)  # of the mean of outer products, times P / m = 3
    kept = float(Curvature.compressed(rows, energy, 3.0).factor.double().square().sum())
    assert energy * whole * (1 - 1e-6) <= kept <= whole * (1 + 1e-6)


def test_products_of_many_rows_are_the_same_as_at_once():
    rows = normal(9000, 7, seed=5).bfloat16()
    torch.testing.assert_close(factor_products(rows, B), rows.double() @ B.T)
