import numpy as np
import pytest

import orderscope as osc
from law_tasks import permuted_steps, simulated
from orderscope.engine.metrics import evaluated
from tasks_tiny import classifier


def test_the_real_model_is_the_metric_of_its_weights():
    task = osc.Task(**classifier())
    orders = permuted_steps(task.order, 1, 2)
    truth = osc.retrain(task, orders, keep_parameters=True)
    found = evaluated(task)(truth.parameters, ("eval", "accuracy"))
    for name, values in truth.metrics.items():
        assert np.array_equal(found[name], values)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return simulated(classifier(), tmp_path_factory.mktemp("metrics"), anchors=1, probes=3)


def test_only_what_is_no_held_out_loss_runs_the_model(recorded, monkeypatch):
    sim, task = recorded
    asked = []
    monkeypatch.setattr("orderscope.simulation.simulator.evaluated", lambda task, each: lambda theta, names: (
        asked.append((names, len(theta))) or evaluated(task)(theta, names)
    ))  # fmt: skip
    fresh, orders = osc.Simulator(sim.path, task), permuted_steps(task.order, 1, 2)
    assert set(fresh.predict(orders).metrics) == {"eval"}
    assert not asked
    assert set(fresh.predict(orders, metrics=["eval", "accuracy"]).metrics) == {"eval", "accuracy"}
    assert asked == [(("accuracy",), 2), (("accuracy",), 3)]  # the orders; then the true runs, to calibrate
    asked.clear()
    fresh.predict(orders, precise=True)
    assert asked == [(("eval",), 2), (("eval",), 3)]


def test_the_real_model_and_what_is_known_agree(recorded):
    sim, task = recorded
    orders = permuted_steps(task.order, 1, 4)
    plain, precise = sim.predict(orders), sim.predict(orders, precise=True)
    true = osc.retrain(task, orders).metrics["eval"]
    spread = np.abs(true - sim.reference["eval"]).max()
    np.testing.assert_allclose(plain.metrics["eval"], precise.metrics["eval"], rtol=0, atol=0.1 * spread)
    assert np.abs(precise.metrics["eval"] - true).mean() < 0.3 * spread
