import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orderscope.engine import AnchorSpace
from tasks_tiny import generator

UNITS = 3


def space(shared, own, coords, seed=0, **options):
    g = generator(seed)
    states = torch.randn(shared + UNITS * own + 1, coords, generator=g, dtype=torch.float64)
    first, second = states[:shared], states[shared:-1].view(UNITS, own, coords)
    return AnchorSpace.of(first, second, states[-1], **options)


def anchors_of(space, unit):
    return space.states(int(unit))


sizes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 12), st.integers(0, 10**6))


@given(sizes)
def test_weights_sum_to_one_and_leave_the_remainder(size):
    """So a gradient that is affine in the weights is exact with exact curvature, whatever the weights are."""
    shared, own, coords, seed = size
    anchors = space(shared, own, coords, seed)
    theta = 3 * torch.randn(5, coords, generator=generator(seed + 1), dtype=torch.float64)
    unit = torch.arange(5) % UNITS
    weights, remainder, outside = anchors.weights(theta, unit)
    assert weights.shape == (5, shared + own)
    torch.testing.assert_close(weights.sum(1), torch.ones(5, dtype=torch.float64))
    hessian = torch.randn(coords, coords, generator=generator(seed + 2), dtype=torch.float64)
    for row in range(5):
        states = anchors_of(anchors, unit[row])
        torch.testing.assert_close(weights[row] @ states + remainder[row], theta[row], rtol=1e-8, atol=1e-8)
        interpolated = weights[row] @ (states @ hessian) + remainder[row] @ hessian
        torch.testing.assert_close(interpolated, theta[row] @ hessian, rtol=1e-7, atol=1e-7)
    assert bool((outside >= 0).all())


@given(sizes, st.data())
def test_anchors_that_are_not_allowed_do_not_weigh_in(size, data):
    shared, own, coords, seed = size
    anchors = space(shared, own, coords, seed)
    count = shared + own
    allowed = torch.tensor([data.draw(st.lists(st.booleans(), min_size=count, max_size=count)) for _ in range(4)])
    allowed[:, data.draw(st.integers(0, count - 1))] = True
    theta = torch.randn(4, coords, generator=generator(seed + 1), dtype=torch.float64)
    unit = torch.arange(4) % UNITS
    weights, remainder, _ = anchors.weights(theta, unit, allowed)
    assert not bool(weights[~allowed].any())
    torch.testing.assert_close(weights.sum(1), torch.ones(4, dtype=torch.float64))
    for row in range(4):
        rebuilt = weights[row] @ anchors_of(anchors, unit[row]) + remainder[row]
        torch.testing.assert_close(rebuilt, theta[row], rtol=1e-7, atol=1e-7)


@given(sizes, st.data())
def test_a_state_that_is_an_anchor_takes_that_anchor_alone(size, data):
    shared, own, coords, seed = size
    anchors = space(shared, own, coords, seed)
    unit = data.draw(st.integers(0, UNITS - 1))
    k = data.draw(st.integers(0, shared + own - 1))
    state = anchors_of(anchors, unit)[k].clone()
    other = state + torch.randn(coords, generator=generator(seed + 3), dtype=torch.float64)
    weights, remainder, outside = anchors.weights(torch.stack([other, state]), torch.tensor([unit, unit]))
    assert weights[1].tolist() == [float(i == k) for i in range(shared + own)]
    assert not bool(remainder[1].any())
    assert outside[1] == 0
    blocked = torch.ones(1, shared + own, dtype=torch.bool)
    if shared + own > 1:
        blocked[0, k] = False
        weights, remainder, _ = anchors.weights(state[None], torch.tensor([unit]), blocked)
        assert weights[0, k] == 0
        assert bool(remainder.any())


def test_of_two_anchors_in_one_place_the_units_own_is_taken():
    """Its gradient has the bits of training; a shared one may be a mean of single samples' gradients."""
    state = torch.ones(4)
    anchors = AnchorSpace.of(torch.stack([state, torch.zeros(4)]), state.expand(UNITS, 1, 4).clone(), torch.zeros(4))
    weights, _, _ = anchors.weights(state[None], torch.tensor([1]))
    assert weights[0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("own", [0, 1])
def test_without_a_penalty_the_span_of_the_anchors_is_reproduced(own):
    anchors = space(4, 2, 30, ridge=0.0)
    states = anchors_of(anchors, own)
    inside = torch.tensor([[0.3, -0.2, 0.5, 0.1, 0.7, -0.4]], dtype=torch.float64) @ states
    weights, remainder, outside = anchors.weights(inside, torch.tensor([own]))
    torch.testing.assert_close(weights @ states, inside, rtol=1e-4, atol=1e-4)  # the solver's jitter of 1e-6
    assert remainder.norm() < 1e-4 * inside.norm()
    assert outside < 1e-4


def test_near_anchors_weigh_more():
    line = torch.tensor([[1.0, 0.0], [2.0, 0.0], [10.0, 0.0]], dtype=torch.float64)
    anchors = AnchorSpace.of(line, line[:1].expand(1, 1, 2) + 5, torch.zeros(2, dtype=torch.float64))
    weights, _, _ = anchors.weights(torch.tensor([[1.5, 0.1]], dtype=torch.float64), torch.tensor([0]))
    assert weights[0, :2].sum() > 0.95


def test_other_units_anchors_do_not_matter():
    first = space(2, 2, 6)
    states = torch.stack([first.states(unit) for unit in range(UNITS)])
    shared, own = states[0, :2], states[:, 2:]
    moved = AnchorSpace.of(shared, own, first.start)
    own = own.clone()
    own[1:] += 1
    other = AnchorSpace.of(shared, own, first.start)
    theta = torch.randn(3, 6, generator=generator(9), dtype=torch.float64)
    unit = torch.zeros(3, dtype=torch.int64)
    for a, b in zip(moved.weights(theta, unit), other.weights(theta, unit), strict=True):
        assert torch.equal(a, b)
