"""Recording, sketching and asking with a model that is not on the CPU: the same bits as there, nothing is mixed up."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map
from torch.utils.data import default_collate

import orderscope as osc
from elsewhere import ELSEWHERE, Away, Elsewhere, moved
from orderscope.baselines.fut import ReferencePath
from orderscope.sketching import SketchPlan
from orderscope.sketching.stage import SketchStage
from tasks_tiny import char, classifier

COUNTS = {"anchors": 2, "probes": 2, "jobs": 1}


def tokens():
    """Layers whose gradients are read off where few of their entries are carried."""

    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(16, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 16))

    return char() | {"model": build, "optimizer_state": None}


CASES = {
    "all carried": (char, {}),
    "some carried": (char, {"coords": 60}),
    "buffers, weights that are frozen": (lambda: classifier(frozen=True, counting=True), {"coords": 50}),
    "read off": (tokens, {"coords": 60}),
}


def away(parts):
    build = parts["model"]
    held_out = {name: rows for name, rows in parts["metrics"].items() if not callable(rows)}

    def collate(rows):
        return tree_map(lambda x: x.to(ELSEWHERE), default_collate(rows))

    return parts | {"model": lambda: moved(build()), "collate": collate, "metrics": held_out}


def here(parts):
    return parts | {"metrics": {name: rows for name, rows in parts["metrics"].items() if not callable(rows)}}


def test_tensors_elsewhere_do_not_mix_with_those_here():
    with Elsewhere():
        x = torch.ones(2, 3).to(ELSEWHERE)
        assert isinstance(x + torch.tensor(1.0), Away)
        assert isinstance(torch.zeros(3, device=ELSEWHERE), Away)
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        assert x.cpu().numpy().sum() == 6


@pytest.fixture(autouse=True)
def plain_attention():
    """Torch chooses the kernel by the device."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.mark.parametrize("case", CASES)
def test_a_run_recorded_elsewhere_has_the_same_bits(case, tmp_path):
    make, options = CASES[case]
    expected = osc.record(osc.Task(**here(make())), tmp_path / "here", **COUNTS, **options)
    with Elsewhere():
        task = osc.Task(**away(make()))
        found = osc.record(task, tmp_path / "away", **COUNTS, **options)
        sim = osc.Simulator(tmp_path / "away", task)
        order = sim.order[::-1].copy()
        told = sim.predict(order).metrics["eval"]
        true = osc.retrain(task, order).metrics["eval"]
        if case == "read off":
            stage = SketchStage(task, found, SketchPlan.read(found))
            assert {"0.weight", "2.weight"} <= set(stage.taps.places)
    assert list(found.names()) == list(expected.names())
    for name in expected.names():
        theirs = found.read(name)
        for key, values in expected.read(name).items():
            np.testing.assert_array_equal(theirs[key], values, err_msg=f"{name}: {key}")
    sim = osc.Simulator(tmp_path / "here", osc.Task(**here(make())))
    np.testing.assert_array_equal(told, sim.predict(order).metrics["eval"])
    assert np.isfinite(true).all()


def test_what_else_is_asked_elsewhere(tmp_path):
    with Elsewhere():
        task = osc.Task(**away(char()))
        osc.record(task, tmp_path / "run", **COUNTS)
        sim = osc.Simulator(tmp_path / "run", task)
        assert np.isfinite(osc.memory(sim).held_out).all()
        assert np.isfinite(osc.validate(sim, orders=2).mae_ratio["eval"])
        best = osc.propose(sim, metric="eval", budget=40, verify=1, anyway=True)
        assert np.isfinite(best.confirmed)
        path = ReferencePath(task, sim.window.dynamics)
        gradient, _ = path.gradient(0, task.order[0])
        assert type(gradient) is torch.Tensor
