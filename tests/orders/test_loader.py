"""A loader that plays an order, broken off anywhere, goes on exactly where training was."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

import orderscope as osc
from orderscope.orders import loader as loader_module

ORDER = np.random.default_rng(0).permutation(30).reshape(5, 6)
DATA = torch.arange(30) * 10


def ids(batches) -> list[list[int]]:
    return [(batch // 10).tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 3, 5])
def test_goes_on_with_workers(workers: int, taken: int):
    loader = osc.OrderLoader(DATA, ORDER, num_workers=workers)
    seen, state = [], loader.state_dict()
    for batch in loader:
        if len(seen) == taken:
            break
        seen.append(batch)
        state = loader.state_dict()
    again = osc.OrderLoader(DATA, ORDER, num_workers=workers)
    again.load_state_dict(state)
    assert len(again) == 5
    rest = list(again)
    np.testing.assert_array_equal(ids(seen + rest), ORDER)
    np.testing.assert_array_equal(ids(again), ORDER)  # the pass after that is a whole one


@given(st.integers(0, 15), st.integers(1, 3), st.integers(1, 2))
@settings(deadline=None)
def test_inside_an_accumulation_the_step_comes_again(handed, micro_batches, world_size):
    options = {"micro_batches": micro_batches, "world_size": world_size}
    loaders = [osc.OrderLoader(DATA, ORDER, rank=rank, **options) for rank in range(world_size)]
    running = [iter(loader) for loader in loaders]
    handed = min(handed, 5 * micro_batches)
    for each in running:
        for _ in range(handed):
            next(each)
    states = [loader.state_dict() for loader in loaders]
    assert all(state == states[0] for state in states)
    taken = states[0]["next"]
    assert taken == handed // micro_batches
    alone = osc.OrderLoader(DATA, ORDER)  # on one rank, without accumulation
    alone.load_state_dict(states[0])
    np.testing.assert_array_equal(np.reshape(ids(alone), (-1, 6)), ORDER[taken:])


def test_a_state_after_a_resumed_part():
    loader = osc.OrderLoader(DATA, ORDER)
    loader.load_state_dict(osc.OrderSampler(ORDER).state_dict(taken=2))
    running = iter(loader)
    assert ids([next(running)]) == ORDER[2:3].tolist()
    assert loader.state_dict()["next"] == 3
    assert len(loader) == 5


def test_a_training_broken_off_ends_with_the_same_weights():
    def begin():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def train(model, adam, loader, steps):
        for done, (rows,) in enumerate(loader, start=1):
            adam.zero_grad()
            model(rows).square().mean().backward()
            adam.step()
            if done == steps:
                return loader.state_dict()
        return None

    data = TensorDataset(torch.randn(30, 3, generator=torch.Generator().manual_seed(1)))
    whole, adam = begin()
    train(whole, adam, osc.OrderLoader(data, ORDER), None)
    model, adam = begin()
    state = train(model, adam, osc.OrderLoader(data, ORDER, num_workers=2), 3)
    saved = (model.state_dict(), adam.state_dict(), state)
    model, adam = begin()
    model.load_state_dict(saved[0])
    adam.load_state_dict(saved[1])
    loader = osc.OrderLoader(data, ORDER, num_workers=2)
    loader.load_state_dict(saved[2])
    train(model, adam, loader, None)
    assert torch.equal(model.weight, whole.weight)


def test_examples():
    result = doctest.testmod(loader_module, extraglobs={"torch": torch})
    assert (result.failed, result.attempted) == (0, 2)


def test_errors():
    with pytest.raises(osc.OrderscopeError, match=r"OrderLoader\(shuffle=\)"):
        osc.OrderLoader(DATA, ORDER, shuffle=True)
    with pytest.raises(osc.OrderscopeError, match="a data set of 29 samples for an order with sample 29"):
        osc.OrderLoader(DATA[:29], ORDER)
    with pytest.raises(osc.OrderscopeError, match="state of a sampler of another order"):
        osc.OrderLoader(DATA, ORDER).load_state_dict(osc.OrderLoader(DATA, ORDER[::-1]).state_dict())
