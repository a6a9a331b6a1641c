import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import orderscope as osc
from law_tasks import branching, permuted_steps, simulated
from orderscope.engine import Batches, units_of
from tasks_tiny import classifier

steps, batch = st.integers(1, 6), st.integers(1, 4)


@given(steps, batch, st.integers(0, 10**6))
def test_recorded_batches_are_found_again(steps, batch, seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(steps * batch).reshape(steps, batch)
    taken = rng.permutation(steps)
    shuffled = np.stack([rng.permutation(row) for row in order[taken]])
    index, new = Batches(order).index(shuffled[None])
    assert index.tolist() == [taken.tolist()]
    assert new.shape == (0, batch)


@given(steps, batch, st.integers(0, 10**6))
def test_regrouped_batches_keep_their_samples(steps, batch, seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(steps * batch).reshape(steps, batch)
    orders = np.stack([rng.permutation(order.reshape(-1)).reshape(order.shape) for _ in range(3)])
    index, new = Batches(order).index(orders)
    for units, asked in zip(index, orders, strict=True):
        for unit, ids in zip(units, asked, strict=True):
            found = order[unit] if unit < steps else new[unit - steps]
            assert sorted(found) == sorted(ids)
    assert len({tuple(row) for row in new.tolist()}) == len(new)  # each once


def test_a_batch_that_was_trained_on_twice_is_one_unit():
    order = np.array([[1, 2], [3, 4], [2, 1]])
    index, _ = Batches(order).index(order[None])
    assert index.tolist() == [[0, 1, 0]]


def test_regrouping_needs_single_gradients(tmp_path):
    sim, task = simulated(classifier(), tmp_path, anchors=2, probes=0, sample_anchors=0)
    order = task.order.copy()
    order[0, 0], order[1, 0] = order[1, 0], order[0, 0]
    with pytest.raises(osc.OrderscopeError, match=r"2 batches whose samples.*sample_anchors=4"):
        sim.predict(order)
    assert np.isfinite(sim.predict(permuted_steps(task.order, 1)).metrics["eval"]).all()


def test_groups_and_missing_gradients_of_regrouped_batches(tmp_path):
    """A parameter gets a gradient where any of the samples gave it one."""
    kw = branching() | {"groups": [f"g{i // 3 % 2}" for i in range(24)]}
    sim, task = simulated(kw, tmp_path, anchors=2, probes=0, sample_anchors=2)
    order = task.order.copy()
    plain, extra = (next(s for s in range(8) if order[s, 0] // 3 % 2 == kind) for kind in (0, 1))
    order[plain, 0], order[extra, 0] = order[extra, 0], order[plain, 0]
    units = units_of(sim.window, Batches(task.order), order[None])
    new = units.index[0, [plain, extra]]
    assert (new >= len(order)).all()
    names = list(task.layout.names)
    head = names.index("extra.weight")
    assert units.has_grad is not None
    assert units.has_grad[torch.from_numpy(new), head].tolist() == [True, True]
    assert units.has_grad[plain, head].item() is False
    torch.testing.assert_close(units.fractions[torch.from_numpy(new)], torch.tensor([[2 / 3, 1 / 3], [1 / 3, 2 / 3]]))
