from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import orderscope as osc
from law_tasks import branching, double, untabled
from orderscope.sketching import SketchStage, draw_coordinates, from_bfloat16
from orderscope.sketching.gradients import (
    batch_gradient,
    gpu_share,
    join,
    micro_batch_size,
    point,
    sample_gradients,
    set_parameters,
)
from orderscope.sketching.plan import SketchPlan
from orderscope.sketching.stage import stored_split
from orderscope.store import RunStore
from orderscope.store.names import SPLIT
from orderscope.training.loop import start, train
from orderscope.training.state import capture
from tasks_tiny import char, classifier, linear

TASKS = {
    "linear": lambda: double(linear()),
    "classifier": lambda: double(classifier(frozen=True, counting=True)),
    "char": lambda: double(char()),
    "branching": lambda: double(branching()),
}


def at_start(kw):
    task = osc.Task(**kw)
    session = start(task)
    return task, point(task, task.build_model(), capture(session))


def one_by_one(task, at, ids):
    """The slow and obvious way."""
    rows = []
    for i in ids:
        losses = task.loss(at.model, task.batch([i]))
        grads = torch.autograd.grad(losses[0], at.layout.of_model(at.model), allow_unused=True)
        parts = [
            torch.zeros_like(p) if g is None else g for g, p in zip(grads, at.layout.of_model(at.model), strict=True)
        ]
        rows.append(at.layout.flatten(parts))
    return torch.stack(rows)


def gathered(task, at, ids, coordinates, micro_batch):
    chunks = sample_gradients(at, task.batch, ids, coordinates, micro_batch=micro_batch)
    rows = torch.empty(len(ids), coordinates.carried, dtype=at.layout.dtype)
    for first, parts in zip(range(0, len(ids), micro_batch), chunks, strict=True):
        join(parts, rows[first : first + micro_batch])
    return rows


@pytest.mark.parametrize("name", TASKS)
def test_single_gradients_are_those_of_single_samples(name):
    task, at = at_start(TASKS[name]())
    ids = task.order.reshape(-1)[:7]
    whole = draw_coordinates(at.layout.size, at.layout.size, 0)
    some = draw_coordinates(at.layout.size, 5, 0)
    expected = one_by_one(task, at, ids)
    rows = gathered(task, at, ids, whole, 3)
    torch.testing.assert_close(rows, expected, rtol=1e-9, atol=1e-12)  # float64: another order of summation
    assert torch.equal(gathered(task, at, ids, some, 3), some.take(rows))
    mean = batch_gradient(at, task.loss, task.batch(ids), whole)
    torch.testing.assert_close(rows.mean(0), mean, rtol=1e-9, atol=1e-12)


@settings(max_examples=15)
@given(st.integers(1, 20), st.integers(1, 20))
def test_the_micro_batch_does_not_matter(one, other):
    """Only the blocking of matrix products differs: float64 rounding."""
    task, at = at_start(double(char()))
    ids = task.order.reshape(-1)[:13]
    whole = draw_coordinates(at.layout.size, at.layout.size, 0)
    first, second = (gathered(task, at, ids, whole, n) for n in (one, other))
    assert first.shape == (13, at.layout.size)
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_gradient_has_the_bits_of_the_training_loop(name):
    task, at = at_start(TASKS[name]())
    whole = draw_coordinates(at.layout.size, at.layout.size, 0)
    session = start(task)
    seen = []

    class Watch:
        def gradient(self, step, losses):
            seen.append([p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in session.parameters])

        def norm(self, step, value):
            pass

    for step in range(3):
        set_parameters(at.model, at.layout, session.layout.flatten(session.parameters))
        mine = batch_gradient(at, task.loss, task.batch(task.order[step]), whole)
        train(task, session, task.order, step, step + 1, Watch())
        assert torch.equal(mine, at.layout.flatten(seen[-1]))


def test_taking_gradients_leaves_the_model_as_it_is():
    task, at = at_start(double(classifier(counting=True)))
    before = {n: t.clone() for n, t in at.model.state_dict().items()}
    gathered(task, at, task.order[0], draw_coordinates(at.layout.size, 4, 0), 2)
    for name, tensor in at.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(p.grad is None for p in at.model.parameters())


def test_micro_batches_fit_the_memory_they_are_given():
    assert micro_batch_size(35_000) == 128
    assert micro_batch_size(10**9, memory=1) == 1
    assert micro_batch_size(1000, memory=12_000 * 5) == 5
    assert micro_batch_size(115_200, outputs=40 * 49_152) == 10  # a language model with adapters
    assert micro_batch_size(35_000, outputs=32 * 128) == 128


def test_a_gpu_takes_more_samples_at_once(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 << 30))
    assert gpu_share(torch.device("cuda")) == 5 << 30
    assert gpu_share(torch.device("cpu")) == 0


def test_any_split_of_a_whole_sketch_gives_the_same_table(tmp_path):
    """Units made with room for two samples at once, against those made with room for all."""
    task = osc.Task(**char())
    with untabled():
        osc.record(task, tmp_path / "run", anchors=2, probes=1, sample_anchors=2)
    with RunStore.open(tmp_path / "run") as store:
        plan = SketchPlan.read(store)
        assert stored_split(store).kind == "softmax"
        assert SPLIT in store
        tight = SketchStage(task, store, plan, memory=2 * 12 * task.layout.size)
        assert tight.micro_batch == 2
        for unit in plan.units():
            arrays, _ = tight.compute(unit)
            stored = store.read(unit)
            assert arrays.keys() == stored.keys()
            for key, array in arrays.items():
                if array.dtype == np.uint16:  # one unit in the last place of bfloat16, where float32 rounding tips it
                    torch.testing.assert_close(
                        from_bfloat16(array).float(), from_bfloat16(stored[key]).float(), rtol=2**-7, atol=1e-8
                    )
                else:  # float32: blocking of products over at most 36 samples
                    np.testing.assert_allclose(array, stored[key], rtol=1e-4, atol=1e-7)
