import numpy as np
import pytest
import torch

import orderscope as osc
from orderscope.engine.completed import KnownStates, completed, known_states
from orderscope.training import load_run
from tasks_tiny import classifier, generator

G = generator(0)
CENTER, SPREAD = torch.randn(40, generator=G), torch.randn(3, 40, generator=G)
KNOWN = KnownStates(CENTER, SPREAD, ("a", "b", "b"), torch.arange(0, 40, 2))


def test_a_state_between_known_ones_is_found_but_for_the_ridge():
    state = CENTER + torch.tensor([0.5, -0.2, 0.3]) @ SPREAD
    whole, carried = KNOWN.interpolated(state[::2])
    assert float((whole - state).norm()) < 0.2 * float((state - CENTER).norm())
    torch.testing.assert_close(whole[::2], carried)


def test_the_reference_is_itself():
    whole, carried = KNOWN.interpolated(CENTER[::2])
    torch.testing.assert_close(whole, CENTER)
    torch.testing.assert_close(carried, CENTER[::2])


def test_a_run_that_is_left_out_is_not_used():
    state = CENTER + SPREAD[0]
    only = KnownStates(CENTER, SPREAD[1:], ("b", "b"), KNOWN.indices)
    torch.testing.assert_close(KNOWN.interpolated(state[::2], "a"), only.interpolated(state[::2]))
    nothing = KnownStates(CENTER, SPREAD[:1], ("a",), KNOWN.indices)
    torch.testing.assert_close(nothing.interpolated(state[::2], "a")[0], CENTER)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    task = osc.Task(**classifier())
    path = tmp_path_factory.mktemp("completed") / "run"
    osc.record(task, path, coords=task.layout.size // 2, probes=3)
    return osc.Simulator(path, task), task


def test_recorded_ends_are_told_nearly_and_left_out_not_from_themselves(recorded):
    sim, task = recorded
    known = known_states(sim.store, sim.plan)
    assert set(known.runs) == {"reference", *sim.runs}
    ends = torch.stack([load_run(sim.store, run).theta()[-1] for run in sim.runs])[:, known.indices]
    there = completed(task, known, sim.held_out)(ends, ("eval",))["eval"]
    true = sim.run_truth["eval"]
    assert np.abs(there - true).max() < 0.5 * np.abs(true - sim.reference["eval"]).max()
    left = completed(task, known, sim.held_out, sim.runs)(ends, ("eval",))["eval"]
    assert not np.allclose(left, there, rtol=1e-6, atol=0)


def test_where_known_states_do_not_fit_only_held_out_losses_are_answered(recorded, monkeypatch):
    sim, task = recorded
    assert set(sim.metric_names) == set(task.metrics)
    monkeypatch.setattr("orderscope.engine.completed.KNOWN_BYTES", 1)
    fresh = osc.Simulator(sim.path, task)
    assert fresh.metric_names == fresh.losses == ("eval",)
    with pytest.raises(osc.OrderscopeError, match="precise=True, but the model cannot be evaluated"):
        fresh.predict(sim.order, precise=True)
