"""The replay by numba, on a short table too, against the replay by the plain reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from law_tasks import permuted_steps, simulated
from orderscope.engine import Batches, Window, replay, units_of
from orderscope.engine.anchors import gram_of
from orderscope_kernels.replay import OVERRIDE
from tasks_tiny import char

pytest.importorskip("numba")


@pytest.fixture(scope="module", params=[None, 0.3], ids=["free", "clipped"])
def recorded(request, tmp_path_factory):
    kw = char() | {"max_grad_norm": request.param}
    sim, task = simulated(kw, tmp_path_factory.mktemp("recorded"), anchors=2, probes=2, sample_anchors=2)
    orders = permuted_steps(task.order, 1, 3)
    rng = np.random.default_rng(0)
    regrouped = rng.permutation(task.order.reshape(-1)).reshape(1, *task.order.shape)
    return sim, units_of(sim.window, Batches(task.order), np.concatenate([orders, regrouped]))


def both(window, units, monkeypatch, **options):
    """Final weights by numba and by the reference, as displacements from the end of the recorded run."""
    found = []
    for name in ("numba", "reference"):
        monkeypatch.setenv(OVERRIDE, name)
        done = replay(window, units, **options)
        found.append(done.theta - window.final)
    return found


def shortened(window: Window) -> Window:
    """With entries and displacements in bfloat16, as they are where tables are large."""
    spread = window.anchors.spread.bfloat16()
    gram = gram_of(spread, window.anchors.shared, window.units, window.dtype)
    anchors = type(window.anchors)(window.anchors.start, spread, window.anchors.shared, gram)
    crossed = spread.to(window.dtype) @ window.factor.to(window.dtype).T
    return replace(window, entries=window.entries.bfloat16(), anchors=anchors, crossed=crossed)


def test_both_ways_lead_to_the_same_weights(recorded, monkeypatch):
    sim, units = recorded
    fast, plain = both(sim.window, units, monkeypatch)
    # Products of bfloat16 are rounded at other places; Adam makes a step of what is next to nothing.
    assert float((fast - plain).norm() / plain.norm()) < 0.03


def test_learning_rates_of_single_orders(recorded, monkeypatch):
    sim, units = recorded
    rates = np.linspace(1e-3, 1e-2, units.index.size).reshape(units.index.shape)
    fast, plain = both(sim.window, units, monkeypatch, lr=rates)
    assert float((fast - plain).norm() / plain.norm()) < 0.03


@pytest.mark.parametrize("homes", [1, 2, None])
def test_samples_of_a_regrouped_batch_whose_own_batches_weigh_in(recorded, homes, monkeypatch):
    sim, units = recorded
    fast, plain = both(sim.window, units, monkeypatch, homes=homes)
    assert float((fast - plain).norm() / plain.norm()) < 0.03


def test_a_short_table_costs_its_rounding(recorded, monkeypatch):
    sim, units = recorded
    short = shortened(sim.window)
    monkeypatch.setenv(OVERRIDE, "numba")
    exact, rounded = (replay(w, units).theta - sim.window.final for w in (sim.window, short))
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.05
    fast, plain = both(short, units, monkeypatch)
    assert float((fast - plain).norm() / plain.norm()) < 0.03


def test_a_table_is_short_where_it_is_large(recorded, monkeypatch):
    """And then recorded runs still replay to themselves, but for rounding."""
    sim, _ = recorded
    assert sim.window.entries.dtype == sim.window.anchors.spread.dtype == torch.float32
    short = shortened(sim.window)
    orders = np.concatenate([sim.order[None], sim.probe_orders])
    units = units_of(short, Batches(sim.order), orders)
    moved = float((short.final - short.dynamics.start.theta).norm())
    ends = replay(sim.window, units).theta
    found = replay(short, units)
    assert not found.outside.any()  # every state is found to be an anchor
    assert float((found.theta - ends).norm(dim=1).max()) < 0.02 * moved
