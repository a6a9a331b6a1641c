"""The replay by numba, on short tables too, against the replay by the plain reference."""

import numpy as np
import pytest
import torch

from law_tasks import permuted_steps, simulated
from orderscope.engine import Batches, replay, units_of
from orderscope.engine.reduce import quantised, reduced
from orderscope_kernels.replay import OVERRIDE
from tasks_tiny import char

pytest.importorskip("numba")


@pytest.fixture(scope="module", params=[None, 0.3], ids=["free", "clipped"])
def recorded(request, tmp_path_factory):
    kw = char() | {"max_grad_norm": request.param}
    sim, task = simulated(kw, tmp_path_factory.mktemp("recorded"), anchors=3, probes=2, sample_anchors=2)
    orders = permuted_steps(task.order, 1, 3)
    rng = np.random.default_rng(0)
    regrouped = rng.permutation(task.order.reshape(-1)).reshape(1, *task.order.shape)
    return sim.window, units_of(sim.window, Batches(task.order), np.concatenate([orders, regrouped]))


def both(window, units, monkeypatch, **options):
    """Final weights by numba and by the reference, as displacements from the end of the recorded run."""
    found = []
    for name in ("numba", "reference"):
        monkeypatch.setenv(OVERRIDE, name)
        done = replay(window, units, **options)
        found.append(done.theta - window.final)
    return found


@pytest.mark.parametrize("members", [1, 3])
def test_both_ways_lead_to_the_same_weights(recorded, members, monkeypatch):
    window, units = recorded
    fast, plain = both(window, units, monkeypatch, members=members)
    # Products of bfloat16 are rounded at other places; Adam makes a step of what is next to nothing.
    assert float((fast - plain).norm() / plain.norm()) < 0.03


def test_learning_rates_of_single_orders(recorded, monkeypatch):
    window, units = recorded
    rates = np.linspace(1e-3, 1e-2, units.index.size).reshape(units.index.shape)
    fast, plain = both(window, units, monkeypatch, members=1, lr=rates)
    assert float((fast - plain).norm() / plain.norm()) < 0.03


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.03), (torch.int8, 0.15)])
def test_short_tables_cost_their_rounding(recorded, dtype, error, monkeypatch):
    window, units = recorded
    every = torch.arange(window.coords)
    whole, short = (reduced(window, every, energy=1.0, dtype=kind) for kind in (None, dtype))
    assert short.table.dtype == dtype
    monkeypatch.setenv(OVERRIDE, "numba")
    exact, rounded = (replay(w, units, members=1).theta - window.final for w in (whole, short))
    assert float((rounded - exact).norm() / exact.norm()) < error
    fast, plain = both(short, units, monkeypatch, members=1)
    assert float((fast - plain).norm() / plain.norm()) < error


def test_int8_tables_are_rounded_to_half_a_step_of_their_largest_entry():
    table = torch.randn(3, 4, 50)
    table[1, 2] = 0
    short, scale = quantised(table, torch.int8)
    assert scale is not None
    back = short.float() * scale[..., None]
    assert bool(((back - table).abs() <= 0.501 * scale[..., None]).all())
    assert int(short.abs().amax()) == 127
    assert not bool(back[1, 2].any())
