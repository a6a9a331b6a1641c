"""What a run remembers, against what is known of it."""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import pytest
import torch

import orderscope as osc
import tasks_tiny
from law_tasks import simulated
from orderscope.studies.memory import batch_losses, forgetting, generalized, memory, seen_and_unseen
from orderscope.training import load_run


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> osc.Simulator:
    return simulated(tasks_tiny.char(steps=12), tmp_path_factory.mktemp("memory"), anchors=4, probes=2)[0]


def test_examples() -> None:
    assert doctest.testmod(importlib.import_module("orderscope.studies.memory")).failed == 0


def test_losses_at_the_start_are_the_models(sim: osc.Simulator) -> None:
    task = sim.task
    assert task is not None
    first = batch_losses(sim, load_run(sim.store, "reference").theta()[:1])[0]
    model = task.build_model()
    with torch.no_grad():
        true = [float(task.loss(model, task.batch(ids)).double().mean()) for ids in sim.order]
    np.testing.assert_allclose(first, true, rtol=1e-5)


def test_a_run_remembers_what_it_was_trained_on(sim: osc.Simulator) -> None:
    found = memory(sim)
    np.testing.assert_array_equal(found.steps, [0, 2, 5, 9, 12])
    assert np.isnan(found.seen[0])
    assert np.isnan(found.unseen[-1])
    assert found.seen[-1] < 0
    assert found.held_out[-1] == pytest.approx(
        sim.reference["eval"] - load_run(sim.store, "reference").metrics[0]["eval"]
    )
    assert found.remembered.mean() < 0  # lower than others of the group that are still to come
    assert found.metric == "eval"


def test_gradients_by_layer_and_group(sim: osc.Simulator) -> None:
    found, window = memory(sim), sim.window
    assert found.norms.shape == (4, len(found.layers), 3)
    first = int(np.prod(sim.description["parameters"][0]["shape"]))
    mine = window.fractions.argmax(1) == 1
    expected = window.table[mine, 2, :first].double().pow(2).mean().sqrt()
    assert found.norms[2, 0, 1] == pytest.approx(float(expected), rel=1e-6)


def test_forgetting_is_beyond_what_others_gain() -> None:
    """Everything falls by 1 a step; a trained batch lies 2 lower, and 1 of that is lost after two steps."""
    steps = np.array([0, 2, 4])
    losses = np.zeros((3, 6))
    losses[1], losses[2] = -2.0, -4.0
    losses[1, :2] -= 2.0
    losses[2, 2:4] -= 2.0
    losses[2, :2] -= 1.0
    ages, remembered = forgetting(losses, steps, np.zeros(6, dtype=int))
    np.testing.assert_array_equal(ages, [0, 1, 2, 3])
    np.testing.assert_allclose(remembered, [-2.0, -2.0, -1.0, -1.0])
    seen, unseen = seen_and_unseen(losses, steps)
    np.testing.assert_allclose(seen[1:], [-4.0, -5.5])
    np.testing.assert_allclose(unseen, [0.0, -2.0, -4.0])


def test_generalization_must_last() -> None:
    steps, seen = np.array([0, 1, 2, 3]), np.array([np.nan, -1.0, -1.0, -1.0])
    assert generalized(steps, seen, np.array([0.0, -0.6, -0.1, -0.7])) == 3
    assert generalized(steps, seen, np.array([0.0, -0.6, -0.6, -0.1])) is None
    assert generalized(steps, seen, np.array([0.0, -0.6, -0.6, -0.7])) == 1


def test_wrong_questions(sim: osc.Simulator) -> None:
    with pytest.raises(osc.OrderscopeError, match="without its task"):
        memory(osc.Simulator(sim.path))
    with pytest.raises(osc.OrderscopeError, match="metric 'bleu'"):
        memory(sim, "bleu")
