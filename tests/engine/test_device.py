"""Where orders are replayed. Without a GPU Triton's kernels run in its interpreter."""

import os
from importlib.util import find_spec

import numpy as np
import pytest
import torch

import orderscope as osc
from law_tasks import permuted_steps, simulated
from orderscope.engine import Window
from orderscope.search.objective import Objective
from orderscope.search.scores import View
from orderscope_kernels.replay import OVERRIDE
from tasks_tiny import char

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are first imported
DEVICE = "cuda" if GPU else None


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    sim, task = simulated(char() | {"max_grad_norm": 0.3}, tmp_path_factory.mktemp("recorded"), anchors=2, probes=3)
    rng = np.random.default_rng(0)
    regrouped = rng.permutation(task.order.reshape(-1)).reshape(1, *task.order.shape)
    return sim, task, np.concatenate([permuted_steps(task.order, 1, 2), regrouped])


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("asked", ["scores", "predict"])
def test_tritons_kernels_answer_as_the_reference_does(recorded, asked, monkeypatch):
    sim, task, orders = recorded
    found = {}
    for name in ("reference", "triton"):
        monkeypatch.setenv(OVERRIDE, name)
        fresh = osc.Simulator(sim.path, task, device=DEVICE if name == "triton" else None)
        if asked == "scores":
            found[name] = tuple(told["eval"] for told in fresh.scores(orders, ["eval"]))
        else:
            told = fresh.predict(orders, metrics=["eval"])
            found[name] = told.metrics["eval"], told.error["eval"]
    # Products of bfloat16 are rounded at other places: a small part of what the orders differ by.
    close = 0.1 * found["reference"][0].std()
    for ours, theirs in zip(found["triton"], found["reference"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=close)


def test_a_window_moved_is_the_same_window(recorded):
    window = recorded[0].window
    moved = window.to(torch.device("meta"))
    tensors = [moved.table, moved.final, moved.norms, moved.anchors.spread, moved.anchors.gram, moved.factor,
               moved.crossed, moved.dynamics.start.theta, *moved.dynamics.start.moments.values()]  # fmt: skip
    assert {x.device.type for x in tensors} == {"meta"}
    assert moved.table.shape == window.table.shape
    assert window.anchors.spread.device.type == "cpu"


def test_positions_and_scores_are_replayed_there(recorded, monkeypatch):
    """A device that is not there stands in: what is moved to it stays on the CPU, but is seen."""
    sim, task, orders = recorded
    there, moved = osc.Simulator(sim.path, task), []
    there.device = torch.device("meta")
    monkeypatch.setattr(Window, "to", lambda window, device: moved.append(device) or window)
    objective = Objective({"eval": 1.0})
    expected = View(sim, objective)(orders)
    assert not moved
    found = View(there, objective)(orders)
    assert moved
    np.testing.assert_allclose(found.value, expected.value)
    expected = osc.positions(sim, [1], places=[0, 2])
    moved.clear()
    again = osc.Simulator(sim.path, task)
    again.device = torch.device("meta")
    np.testing.assert_allclose(osc.positions(again, [1], places=[0, 2]).value, expected.value)
    assert {device.type for device in moved} == {"meta"}


def test_a_device_that_is_not_there_is_told(recorded):
    sim, task, _ = recorded
    with pytest.raises(osc.OrderscopeError, match="device 'nothing'"):
        osc.Simulator(sim.path, task, device="nothing")
