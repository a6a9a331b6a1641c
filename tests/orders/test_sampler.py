import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from orderscope.errors import OrderscopeError
from orderscope.orders import OrderSampler

ORDER = np.random.default_rng(0).permutation(30).reshape(5, 6)


def test_a_loader_plays_the_order():
    loader = DataLoader(torch.arange(30) * 10, batch_sampler=OrderSampler(ORDER))
    assert len(loader) == 5
    for _ in range(2):
        np.testing.assert_array_equal(torch.stack(list(loader)), ORDER * 10)


@given(st.integers(1, 6))
def test_ranks_together_take_the_recorded_step(world_size):
    parts = [list(OrderSampler(ORDER, rank=r, world_size=world_size)) for r in range(world_size)]
    for step, shares in zip(ORDER, zip(*parts, strict=True), strict=True):
        assert np.concatenate(shares).tolist() == step.tolist()
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1


@given(st.integers(0, 5), st.integers(1, 3))
def test_resumes_anywhere_on_any_number_of_ranks(taken, world_size):
    sampler = OrderSampler(ORDER)
    steps = iter(sampler)
    for _ in range(taken):
        next(steps)
    state = sampler.state_dict()
    parts = []
    for rank in range(world_size):
        again = OrderSampler(ORDER, rank=rank, world_size=world_size)
        again.load_state_dict(state)
        assert len(again) == 5 - taken
        parts.append(list(again))
        assert len(again) == 5
        assert len(list(again)) == 5
    rest = [np.concatenate(shares) for shares in zip(*parts, strict=True)]
    np.testing.assert_array_equal(np.reshape(rest, (-1, 6)), ORDER[taken:])


def test_with_workers_the_steps_taken_are_told():
    sampler = OrderSampler(ORDER)
    list(sampler)
    again = OrderSampler(ORDER)
    again.load_state_dict(sampler.state_dict(taken=3))
    np.testing.assert_array_equal(list(again), ORDER[3:])


def test_errors():
    with pytest.raises(OrderscopeError, match="7 ranks for steps of 6 samples"):
        OrderSampler(ORDER, rank=0, world_size=7)
    with pytest.raises(OrderscopeError, match="rank 2 of 2"):
        OrderSampler(ORDER, rank=2, world_size=2)
    with pytest.raises(OrderscopeError, match=r"shape \[6\]"):
        OrderSampler(ORDER[0])
    with pytest.raises(OrderscopeError, match="sampler of another order"):
        OrderSampler(ORDER).load_state_dict(OrderSampler(ORDER[::-1]).state_dict())
    with pytest.raises(OrderscopeError, match="2 ranks in 4 micro-batches for steps of 6 samples"):
        OrderSampler(ORDER, world_size=2, micro_batches=4)
    with pytest.raises(OrderscopeError, match="micro_batches=0"):
        OrderSampler(ORDER, micro_batches=0)


@given(st.sampled_from([1, 2, 4]), st.integers(1, 3), st.booleans())
def test_micro_batches_of_all_ranks_are_the_recorded_step(world_size, micro_batches, dealt):
    order = np.random.default_rng(1).permutation(60).reshape(5, 12)
    if dealt:  # as accelerate does: batch k of one sampler goes to rank k modulo the number of ranks
        batches = list(OrderSampler(order, rank=None, world_size=world_size, micro_batches=micro_batches))
        parts = [batches[rank::world_size] for rank in range(world_size)]
    else:
        parts = [
            list(OrderSampler(order, rank=r, world_size=world_size, micro_batches=micro_batches))
            for r in range(world_size)
        ]
    for step, row in enumerate(order):
        ranks = [np.concatenate(part[step * micro_batches : (step + 1) * micro_batches]) for part in parts]
        assert np.concatenate(ranks).tolist() == row.tolist()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_any_number_of_workers_plays_the_same(workers):
    sampler = OrderSampler(ORDER, micro_batches=2)
    loader = DataLoader(torch.arange(30), batch_sampler=sampler, num_workers=workers)
    assert len(loader) == 10
    np.testing.assert_array_equal(torch.cat(list(loader)).view(5, 6), ORDER)


def test_a_step_is_taken_with_its_last_micro_batch():
    sampler = OrderSampler(ORDER, micro_batches=2)
    steps = iter(sampler)
    for taken in (0, 1, 1, 2):
        next(steps)
        assert sampler.state_dict()["next"] == taken
