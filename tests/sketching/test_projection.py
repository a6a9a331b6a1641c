import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orderscope.errors import OrderscopeError
from orderscope.sketching import projection as module
from orderscope.sketching.projection import KINDS, WIDTH, Projection
from orderscope_kernels.projection import SPARSE
from tasks_tiny import generator

kinds = pytest.mark.parametrize("kind", KINDS)


def vectors(rows, size, seed=0):
    return torch.randn(rows, size, generator=generator(seed), dtype=torch.float64)


@kinds
def test_inner_products_are_kept_in_the_mean(kind):
    """E[Px . Py] = x . y. A ratio that is off by a constant would mean entries of the wrong variance; one that is off
    for overlapping coordinates alone, entries that are not independent."""
    size, rank, draws = 300, 32, 400
    x, y = vectors(2, size)
    y = y + 0.5 * x
    products = torch.stack([
        p[0] @ p[1] for p in (Projection(size, rank, kind, seed).project(torch.stack([x, y])) for seed in range(draws))
    ])  # fmt: skip
    error = products.std() / draws**0.5
    assert abs(products.mean() - x @ y) < 4 * error  # one seed in 16,000 would miss by chance; the seeds are fixed
    # Var[Px . Py] <= (|x|^2 |y|^2 + (x . y)^2) / k for all three kinds; 1.3 for the 5 % error of 400 draws
    assert products.var() <= 1.3 * (x.norm() ** 2 * y.norm() ** 2 + (x @ y) ** 2) / rank


@kinds
def test_giving_back_is_unbiased_but_noise(kind):
    """E[P^T P x] = x, while one P^T P x is off by about sqrt(size / k) |x|: why weights are not rebuilt from it."""
    size, rank, draws = 200, 20, 500
    x = vectors(1, size)[0]
    back = [p.back(p.project(x)) for p in (Projection(size, rank, kind, seed) for seed in range(draws))]
    mean = torch.stack(back).mean(0)
    typical = (size / rank) ** 0.5 * x.norm()
    assert (mean - x).norm() < 1.5 * typical / draws**0.5
    for one in back[:5]:
        assert 0.6 * typical < (one - x).norm() < 1.5 * typical


@given(st.sampled_from(list(KINDS)), st.integers(1, 3000), st.integers(1, 40), st.integers(0, 1000))
def test_back_is_the_adjoint(kind, size, rank, seed):
    """Px . y = x . P^T y for every sample, not only in the mean."""
    p = Projection(size, rank, kind, seed)
    x, y = vectors(1, size, seed)[0], vectors(1, rank, seed + 1)[0]
    torch.testing.assert_close(p.project(x) @ y, x @ p.back(y), rtol=1e-9, atol=1e-9)


@kinds
def test_shapes_and_linearity(kind):
    p = Projection(50, 7, kind)
    x = vectors(6, 50).view(2, 3, 50)
    assert p.project(x).shape == (2, 3, 7)
    assert p.back(p.project(x)).shape == (2, 3, 50)
    torch.testing.assert_close(p.project(2 * x[0] - x[1]), 2 * p.project(x)[0] - p.project(x)[1])
    assert p.project(x.float()).dtype == torch.float32


@kinds
def test_same_seed_same_bits(kind, monkeypatch):
    """Whether blocks are kept or made anew, and whatever was projected before."""
    size = WIDTH + 5
    x = vectors(2, size)
    first = Projection(size, 16, kind, seed=3)
    expected = first.project(x)
    assert torch.equal(first.project(x), expected)
    monkeypatch.setattr(module, "KEEP_BYTES", 0)
    forgetful = Projection(size, 16, kind, seed=3)
    forgetful.project(x[:1])
    assert torch.equal(forgetful.project(x), expected)
    assert not torch.equal(Projection(size, 16, kind, seed=4).project(x), expected)


@pytest.mark.parametrize("kind", ["rademacher", "sparse"])
def test_columns_have_length_one_on_both_sides_of_a_block(kind):
    p = Projection(WIDTH + 3, 24, kind)
    units = torch.zeros(4, WIDTH + 3)
    for row, i in enumerate((0, WIDTH - 1, WIDTH, WIDTH + 2)):
        units[row, i] = 1
    images = p.project(units)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(4))
    assert len({tuple(row) for row in images.tolist()}) == 4


def test_sparse_columns_have_few_entries():
    p = Projection(100, 64, "sparse")
    assert ((p.project(torch.eye(100)) != 0).sum(1) == SPARSE).all()


def test_what_makes_no_sense_is_refused():
    with pytest.raises(OrderscopeError, match=r"projection 'fourier'.*gaussian, rademacher, sparse"):
        Projection(10, 2, "fourier")
    with pytest.raises(OrderscopeError, match="10 coordinates to 0"):
        Projection(10, 0)
