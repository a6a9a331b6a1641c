"""The proxy as an estimator, and the choice between it and the carried replay."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import orderscope as osc
import tasks_tiny
from orderscope.baselines import proxy
from orderscope.engine.calibration import Bearing, errs_less, fit_calibration
from orderscope.simulation import effort
from orderscope.store import RunStore, pack
from orderscope.store.names import PROXY
from orderscope.studies.validation import unseen_orders

PROBES = 5


@pytest.fixture(scope="module")
def task() -> osc.Task:
    return osc.Task(**tasks_tiny.classifier(steps=12))


@pytest.fixture(scope="module")
def recorded(task: osc.Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("effort") / "run"
    osc.record(task, path, probes=PROBES)
    return path


@pytest.fixture
def run(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "run"))


@pytest.fixture
def sim(run: Path, task: osc.Task) -> osc.Simulator:
    return osc.Simulator(run, task)


def test_at_full_effort_it_is_retraining(sim: osc.Simulator, task: osc.Task) -> None:
    orders = unseen_orders(sim, 8, 0)  # regrouped ones among them
    names = list(sim.reference)
    found = sim.predict(orders, "proxy", effort=1, metrics=names)
    for name, true in osc.retrain(task, orders).metrics.items():
        np.testing.assert_allclose(found.metrics[name], true, atol=1e-4)
        assert (found.error[name] < 0.2 * sim.sigma_order(name)).all(), (name, found.error[name], sim.sigma_order(name))
    assert found.estimator == "proxy"


def test_a_few_samples_are_not_all(sim: osc.Simulator) -> None:
    orders = unseen_orders(sim, 3, 0)
    few, more = (sim.predict(orders, "proxy", effort=e) for e in (0.25, 0.5))
    assert (few.metrics["eval"] != more.metrics["eval"]).all()
    assert np.isfinite(few.metrics["eval"]).all()
    assert (few.error["eval"] > 0).all()


def test_every_metric_is_told_also_callables(sim: osc.Simulator) -> None:
    names = list(sim.reference)
    assert set(names) > set(sim.losses)
    found = sim.predict(unseen_orders(sim, 2, 0), "proxy", metrics=names)
    assert list(found.metrics) == names
    assert all(np.isfinite(found.error[name]).all() for name in names)


def test_it_says_the_same_twice_and_in_parts(run: Path, task: osc.Task) -> None:
    first, second = osc.Simulator(run, task), osc.Simulator(run, task)
    orders = unseen_orders(first, 4, 0)
    a, b = first.predict(orders, "proxy"), second.predict(orders, "proxy")
    np.testing.assert_array_equal(a.metrics["eval"], b.metrics["eval"])
    parts = [second.predict(order, "proxy").metrics["eval"][0] for order in orders]
    np.testing.assert_allclose(parts, a.metrics["eval"], rtol=1e-5)


def test_recorded_orders_are_known(sim: osc.Simulator) -> None:
    found = sim.predict(np.concatenate([sim.order[None], sim.run_orders]), "proxy")
    np.testing.assert_array_equal(found.metrics["eval"], [sim.reference["eval"], *sim.run_truth["eval"]])
    assert not found.error["eval"].any()


def test_the_cost_is_counted_and_the_runs_are_trained_once(run: Path, task: osc.Task, monkeypatch) -> None:
    sim = osc.Simulator(run, task)
    orders = unseen_orders(sim, 3, 0)
    share = 1 / task.batch_size
    assert sim.predict(orders, "proxy", effort=share).cost == pytest.approx((3 + 1 + PROBES) * share)
    assert sim.predict(orders, "proxy", effort=share).cost == pytest.approx(3 * share)
    assert osc.Simulator(run, task).predict(orders, "proxy", effort=share).cost == pytest.approx(3 * share)
    assert RunStore.open(run).names(PROXY) == [f"{PROXY}0001-000"]
    assert sim.predict(orders).cost == 0


def test_runs_that_are_added_are_trained_too(run: Path, task: osc.Task) -> None:
    share = 1 / task.batch_size
    sim = osc.Simulator(run, task)
    orders = unseen_orders(sim, 3, 0)
    sim.predict(orders[:1], "proxy", effort=share)
    osc.validate(sim, orders=2)
    sim = osc.Simulator(run, task)
    assert len(sim.runs) == PROBES + 2
    assert sim.predict(orders[:1], "proxy", effort=share).cost == pytest.approx((1 + 2) * share)


def test_a_packed_run_is_asked_as_a_directory(run: Path, task: osc.Task, tmp_path: Path) -> None:
    orders = unseen_orders(osc.Simulator(run, task), 2, 0)
    pack(run, tmp_path / "run.h5")
    a, b = (osc.Simulator(path, task).predict(orders, "proxy") for path in (tmp_path / "run.h5", run))
    np.testing.assert_array_equal(a.metrics["eval"], b.metrics["eval"])


def test_regrouped_orders_are_not_trusted(sim: osc.Simulator) -> None:
    """No recorded run tells what the few samples of another batch do."""
    rng = np.random.default_rng(0)
    orders = np.stack(
        [sim.order[rng.permutation(len(sim.order))], rng.permutation(sim.order.ravel()).reshape(sim.order.shape)]
    )
    found = sim.predict(orders, "proxy", effort=1)
    assert found.trusted.tolist() == [True, False]


def test_other_learning_rates(sim: osc.Simulator, task: osc.Task) -> None:
    orders, lr = unseen_orders(sim, 2, 0), 0.5 * sim.window.dynamics.hyper["lr"][:, 0]
    found = sim.predict(orders, "proxy", effort=1, lr=lr)
    np.testing.assert_allclose(found.metrics["eval"], osc.retrain(task, orders, lr=lr).metrics["eval"], atol=1e-4)


def test_the_task_is_needed(run: Path) -> None:
    sim = osc.Simulator(run)
    for options in ({"estimator": "proxy"}, {"estimator": "auto"}, {"effort": 0.5}):
        with pytest.raises(osc.OrderscopeError, match="without its task"):
            sim.predict(sim.order, **options)


@pytest.mark.parametrize("estimator", ["carried", "impulse"])
def test_an_effort_is_for_the_proxy(sim: osc.Simulator, estimator: str) -> None:
    with pytest.raises(osc.OrderscopeError, match=r"effort=0\.5"):
        sim.predict(sim.order, estimator, effort=0.5)


def test_auto_takes_what_errs_less_on_the_runs(sim: osc.Simulator) -> None:
    orders = unseen_orders(sim, 2, 0)
    off = 5 * np.resize([1, -1], PROBES)
    worse = replace(sim.left_out, values={name: values + off for name, values in sim.left_out.values.items()})
    wrong = osc.Simulator(sim.path, sim.task)
    wrong.left_out = worse
    full = wrong.predict(orders, effort=1)
    assert full.estimator == "proxy"
    np.testing.assert_array_equal(full.metrics["eval"], sim.predict(orders, "proxy", effort=1).metrics["eval"])
    poor = sim.predict(orders, "auto", effort=1e-9)
    assert poor.estimator == "carried"
    np.testing.assert_array_equal(poor.metrics["eval"], sim.predict(orders).metrics["eval"])


def test_clearly_less_is_more_than_chance() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=8)
    at = Bearing(np.ones(8), np.zeros((8, 8)), np.zeros(8), np.zeros(8, dtype=bool))
    good, poor = (fit_calibration(true + size * rng.normal(size=8), true, 0.0, at) for size in (0.01, 0.5))
    slightly = replace(good, predicted=true + 1.01 * (good.predicted - true) * np.array([1, -1] * 4))
    assert errs_less([good], [poor])
    assert not errs_less([poor], [good])
    assert not errs_less([good], [good])
    assert not errs_less([good, poor], [poor, good])
    assert not errs_less([poor], [slightly])
    assert not errs_less([], [])


def test_where_the_replay_is_inaccurate_a_quarter_less_is_enough() -> None:
    true = np.arange(8.0)
    fitted = fit_calibration(
        true, true, 0.0, Bearing(np.ones(8), np.zeros((8, 8)), np.zeros(8), np.zeros(8, dtype=bool))
    )
    other, same, less = (
        replace(fitted, predicted=true + errors) for errors in (np.full(8, 1.0), [0.1] * 7 + [7.3], [0.1] * 7 + [4.3])
    )
    assert not errs_less([less], [other])
    assert errs_less([less], [other], much=True)
    assert not errs_less([same], [other], much=True)


def test_the_proxy_is_judged_so_where_left_out_runs_are_told_badly(sim: osc.Simulator) -> None:
    said: list[bool] = []
    inaccurate, accurate = replace_left(sim, 0.8), replace_left(sim, 0.2)
    for each in (inaccurate, accurate):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(effort, "errs_less", lambda *_, much: said.append(much) or False)
            assert each.predict(each.order, "auto", effort=0.5).estimator == "carried"
    assert said == [True, False]


def replace_left(sim: osc.Simulator, left: float) -> osc.Simulator:
    """The same run, whose left-out runs err by that share of a constant guess's error."""
    other = osc.Simulator(sim.path, sim.task)
    other.calibration = {name: replace(sim.calibration[name], left=left) for name in sim.losses}
    return other


def test_without_other_runs_there_is_no_interval(task: osc.Task, tmp_path: Path) -> None:
    osc.record(task, tmp_path / "run", probes=0)
    sim = osc.Simulator(tmp_path / "run", task)
    found = sim.predict(sim.order[::-1], "proxy")
    assert np.isinf(found.error["eval"]).all()
    assert not found.trusted.any()
    assert sim.predict(sim.order[::-1], "auto").estimator == "carried"


def test_what_is_stored_and_lacks_a_metric_is_trained_again(sim: osc.Simulator, run: Path, task: osc.Task) -> None:
    share = 1 / task.batch_size
    orders = unseen_orders(sim, 1, 0)
    whole = sim.predict(orders, "proxy", effort=share)
    with RunStore.create(run) as store:
        name = store.names(PROXY)[-1]
        arrays, attrs = store.read(name), store.attrs(name)
        arrays["values"], attrs["names"] = arrays["values"][:1], attrs["names"][:1]
        store.write(store.next_name(f"{PROXY}0001-"), arrays, attrs)
    again = osc.Simulator(run, task).predict(orders, "proxy", effort=share)
    assert again.cost == whole.cost
    np.testing.assert_array_equal(again.metrics["eval"], whole.metrics["eval"])
    assert proxy.EFFORT == 0.125
    assert effort.ProxyEstimator(sim, None).effort == max(1, round(task.batch_size / 8)) / task.batch_size
