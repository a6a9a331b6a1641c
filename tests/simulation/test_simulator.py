"""Questions to a recorded run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import orderscope as osc
import tasks_tiny
from law_tasks import simulated
from orderscope.store import pack
from orderscope.studies.validation import unseen_orders


@pytest.fixture(scope="module")
def task() -> osc.Task:
    return osc.Task(**tasks_tiny.classifier(steps=12))


@pytest.fixture(scope="module")
def run(task: osc.Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulator") / "run"
    osc.record(task, path)
    return path


@pytest.fixture(scope="module")
def sim(task: osc.Task, run: Path) -> osc.Simulator:
    return osc.Simulator(run, task)


@pytest.fixture(scope="module")
def char(tmp_path_factory: pytest.TempPathFactory) -> osc.Simulator:
    """One group a batch."""
    return simulated(tasks_tiny.char(steps=12), tmp_path_factory.mktemp("char"))[0]


def shuffles(sim: osc.Simulator, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([sim.order[rng.permutation(len(sim.order))] for _ in range(count)])


def test_the_reference_is_told_exactly_with_hardly_any_error(sim: osc.Simulator) -> None:
    prediction = sim.predict(sim.order, metrics=list(sim.reference))
    for name, value in sim.reference.items():
        assert prediction.metrics[name] == value
        assert prediction.error[name] == 0
    assert prediction.outside == 0
    assert not prediction.detectable("eval")[0]


def test_recorded_probes_are_told_exactly(sim: osc.Simulator) -> None:
    """They are known; and their states are anchors of their batches, so that a replay leads where they led."""
    found = sim.predict(sim.probe_orders, metrics=list(sim.truth))
    for name, true in sim.truth.items():
        np.testing.assert_array_equal(found.metrics[name], true)
        assert not found.error[name].any()
    assert not found.outside.any()
    assert found.detectable("eval").all()
    whole = sim.regrouped(sim.probe_orders) == 0
    replayed = sim.replay_of(sim.probe_orders[whole])
    told = sim.metric_model(replayed.theta, ["eval"], precise=True)["eval"]
    np.testing.assert_allclose(told, sim.truth["eval"][whole], rtol=0, atol=1e-7)


def test_under_other_rates_a_known_order_is_not_told_as_it_was(sim: osc.Simulator) -> None:
    rates = sim.window.dynamics.hyper["lr"][:, 0] / 2
    prediction = sim.predict(sim.order, lr=rates)
    assert prediction.metrics["eval"] != sim.reference["eval"]
    assert prediction.error["eval"] > 0


def test_left_out_runs_are_told_without_themselves(sim: osc.Simulator) -> None:
    out = sim.left_out
    assert out.runs == sim.runs == sim.probes
    assert (out.outside > 0).all()
    assert (out.values["eval"] != sim.run_truth["eval"]).all()
    calibration = sim.calibration["eval"]
    np.testing.assert_array_equal(calibration.true, sim.run_truth["eval"])
    assert calibration.farthest == out.outside.max()


def test_a_kind_of_order_that_intervals_did_not_hold_is_not_trusted(
    sim: osc.Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regrouped samples are a kind of their own."""
    regrouped = np.random.default_rng(3).permutation(sim.order.ravel()).reshape(sim.order.shape)
    orders = np.stack([shuffles(sim, 1)[0], regrouped])
    fitted = sim.calibration["eval"]
    assert fitted.held[1] in (0, 1)  # one probe regroups
    for held, expected in (
        ((1.0, float("nan")), [True, True]),
        ((0.5, 1.0), [False, True]),
        ((1.0, 0.5), [True, False]),
    ):
        calibrations = {"eval": replace(fitted, held=held, farthest=9.0, left=0.5, quantile=1e3)}
        monkeypatch.setitem(sim.__dict__, "calibration", calibrations)
        np.testing.assert_array_equal(sim.predict(orders).trusted, expected)


def test_predictions_follow_the_truth(task: osc.Task, sim: osc.Simulator) -> None:
    orders = shuffles(sim, 24)
    true = osc.retrain(task, orders).metrics["eval"]
    found = sim.predict(orders, metrics=["eval"]).metrics["eval"]
    assert np.corrcoef(found, true)[0, 1] > 0.9
    assert np.abs(found - true).mean() < 0.4 * np.abs(true - np.median(true)).mean()


def test_parameters_are_near_the_true_ones(task: osc.Task, sim: osc.Simulator) -> None:
    (order,) = shuffles(sim, 1, seed=5)
    truth = osc.retrain(task, np.stack([order, sim.order]), keep_parameters=True).parameters
    assert truth is not None
    found = sim.parameters(order)
    assert set(found) == set(task.layout.names)
    error = (task.layout.flatten(found) - truth[0]).norm() / (truth[1] - truth[0]).norm()
    assert error < 0.5


def test_a_trajectory_begins_at_the_start_and_ends_at_the_prediction(sim: osc.Simulator) -> None:
    (order,) = shuffles(sim, 1)
    along = sim.trajectory(order, metrics=["eval"])
    assert along.steps[0] == 0
    assert along.steps[-1] == len(sim.order)
    assert along.metrics["eval"][0] == pytest.approx(along.reference["eval"][0], abs=1e-9)
    assert along.metrics["eval"][-1] == pytest.approx(sim.predict(order).metrics["eval"][0], abs=1e-6)


def test_the_recorded_rates_change_nothing_and_others_do(sim: osc.Simulator) -> None:
    orders = shuffles(sim, 2)
    rates = sim.window.dynamics.hyper["lr"][:, 0]
    plain = sim.predict(orders, metrics=["eval"]).metrics["eval"]
    np.testing.assert_allclose(sim.predict(orders, lr=rates, metrics=["eval"]).metrics["eval"], plain, atol=1e-6)
    halved = sim.predict(orders, lr=np.stack([rates, rates / 2]), metrics=["eval"]).metrics["eval"]
    assert halved[0] == pytest.approx(plain[0], abs=1e-6)
    assert abs(halved[1] - plain[1]) > 1e-4


def test_other_rates_follow_the_truth(sim: osc.Simulator) -> None:
    kw = tasks_tiny.classifier(steps=12)
    rates = sim.window.dynamics.hyper["lr"][:, 0] * 0.7
    slower = kw | {"scheduler": lambda opt: torch.optim.lr_scheduler.LambdaLR(
        opt, lambda t: rates[min(t, 11)] / tasks_adamw_rate()
    )}  # fmt: skip
    true = osc.retrain(osc.Task(**slower), sim.order).metrics["eval"][0]
    found = sim.predict(sim.order, lr=rates, metrics=["eval"]).metrics["eval"][0]
    assert abs(found - true) < 0.3 * abs(true - sim.reference["eval"])


def tasks_adamw_rate() -> float:
    return tasks_tiny.adamw([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"]


def test_a_packed_run_answers_the_same(task: osc.Task, run: Path, sim: osc.Simulator, tmp_path: Path) -> None:
    pack(run, tmp_path / "run.h5")
    packed = osc.Simulator(tmp_path / "run.h5", task)
    orders = shuffles(sim, 3)
    np.testing.assert_array_equal(packed.predict(orders).metrics["eval"], sim.predict(orders).metrics["eval"])


def test_without_the_task_held_out_losses_are_answered(run: Path, sim: osc.Simulator) -> None:
    alone = osc.Simulator(run)
    assert alone.metric_names == alone.losses == ("eval",)
    orders = shuffles(sim, 16)
    found, same = (s.predict(orders).metrics["eval"] for s in (alone, sim))
    np.testing.assert_array_equal(found, same)
    real = sim.predict(orders, precise=True).metrics["eval"]
    assert np.corrcoef(found, real)[0, 1] > 0.9
    with pytest.raises(
        osc.OrderscopeError, match="precise=True, but the model cannot be evaluated; expected a simulator with the task"
    ):
        alone.predict(orders, precise=True)
    with pytest.raises(osc.OrderscopeError, match="metric 'accuracy'; expected one of eval"):
        alone.predict(orders, metrics=["accuracy"])


def test_some_coordinates_are_enough_to_rank(task: osc.Task, sim: osc.Simulator, tmp_path: Path) -> None:
    size = task.layout.size
    osc.record(task, tmp_path / "run", coords=size // 2)
    part = osc.Simulator(tmp_path / "run", task)
    assert not part.exact
    orders = shuffles(sim, 16)
    found = part.predict(orders, metrics=["eval", "accuracy"])
    true = osc.retrain(task, orders).metrics
    for name in ("eval", "accuracy"):  # accuracy has no expansion: the real model is run between recorded states
        assert np.corrcoef(found.metrics[name], true[name])[0, 1] > 0.5
    precise = part.predict(orders, precise=True).metrics["eval"]  # also between recorded states
    assert np.corrcoef(precise, true["eval"])[0, 1] > 0.5
    weights = part.parameters(part.order)
    final = osc.retrain(task, part.order, keep_parameters=True).parameters
    assert final is not None
    torch.testing.assert_close(task.layout.flatten(weights), final[0], rtol=0, atol=1e-5)


def test_scores_are_what_predictions_say(sim: osc.Simulator) -> None:
    orders = shuffles(sim, 24)
    values, errors = sim.scores(orders, ["eval"])
    told = sim.predict(orders)
    np.testing.assert_array_equal(values["eval"], told.metrics["eval"])
    np.testing.assert_array_equal(errors["eval"], told.error["eval"])


def test_without_probes_nothing_is_trusted(task: osc.Task, tmp_path: Path) -> None:
    osc.record(task, tmp_path / "run", probes=0)
    bare = osc.Simulator(tmp_path / "run", task)
    prediction = bare.predict(shuffles(bare, 2), metrics=["eval"])
    assert not prediction.trusted.any()
    assert not np.isfinite(prediction.error["eval"]).any()


def test_what_was_truly_trained_is_trusted_where_no_estimate_is(
    sim: osc.Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A true value does not hang on how good estimates are; why an estimate is not trusted is said for each order."""
    orders = np.stack([shuffles(sim, 1)[0], sim.run_orders[0], sim.order])
    fitted = sim.calibration["eval"]
    for changed, word in (
        ({"left": 1.2}, "no better than a constant"),
        ({"farthest": 0.0}, "farther from the recorded states"),
        ({"quantile": 0.0}, "wider than that of a guess"),
        ({"held": (0.5, 1.0)}, "fewer than 8 in 10"),
        ({"true": fitted.true[:1]}, "fewer than two other orders"),
    ):
        monkeypatch.setitem(sim.__dict__, "calibration", {"eval": replace(fitted, **{"left": 0.5} | changed)})
        prediction = sim.predict(orders, metrics=["eval"])
        assert prediction.known.tolist() == [False, True, True]
        assert prediction.trusted_in("eval").tolist() == [False, True, True]
        ours, *known = prediction.why_untrusted("eval")
        assert any(word in reason for reason in ours), (changed, ours)
        assert known == [(), ()]
        rated = sim.predict(orders, metrics=["eval"], lr=sim.window.dynamics.hyper["lr"][:, 0])
        assert not rated.known.any()


def test_a_rate_tripled_is_not_trusted(sim: osc.Simulator) -> None:
    rates = 3 * sim.window.dynamics.hyper["lr"][:, 0]
    assert not sim.predict(shuffles(sim, 3), lr=rates, metrics=["eval"]).trusted.any()


def test_orders_of_one_group_are_not_trusted(char: osc.Simulator) -> None:
    """Not even where their batches are recorded ones, at which gradients are known; a few other samples are."""
    groups = np.array([char.description["group_names"][code] for code in char.window.group_codes])
    batches = [char.order[groups[char.order[:, 0]] == name] for name in ("a", "b", "c")]
    rng = np.random.default_rng(0)
    only = [np.resize(part, char.order.shape) for part in batches]
    only += [np.resize(rng.permutation(part.ravel()), char.order.shape) for part in batches]
    few = char.order.copy()
    few[3] = few[2]
    prediction = char.predict(np.stack([*only, few]), metrics=["eval"], allow_other_samples=True)
    assert prediction.trusted.tolist() == [False] * 6 + [True]


def test_where_order_matters_it_is_detected(char: osc.Simulator) -> None:
    prediction = char.predict(shuffles(char, 16), metrics=["eval"])
    assert prediction.trusted.mean() > 0.8
    assert prediction.detectable("eval").mean() > 0.8


def test_where_order_moves_less_than_rounding_nothing_is_detected(tmp_path: Path) -> None:
    kw = tasks_tiny.char(steps=12) | {"optimizer": lambda params: tasks_tiny.adamw(params, lr=1e-7)}
    flat, _ = simulated(kw, tmp_path, anchors=3, probes=4)
    assert flat.sigma_order("eval") < 1e-6  # of a loss of 2.9, in float32
    prediction = flat.predict(unseen_orders(flat, 16, 0), metrics=["eval"])
    assert not prediction.detectable("eval").any()
    assert osc.propose(flat, budget=60, verify=0, anyway=True).undetectable


@pytest.mark.parametrize("spread", [0.0, 1e-3])
def test_where_samples_are_alike_nothing_is_detected(spread: float, tmp_path: Path) -> None:
    kw = tasks_tiny.classifier(steps=12)
    x, y = kw["data"].columns
    noise = spread * torch.randn(x.shape, generator=tasks_tiny.generator(0))
    alike = tasks_tiny.Rows(x[:1] + noise, y[:1].expand_as(y).clone())
    flat, _ = simulated(kw | {"data": alike}, tmp_path, anchors=3, probes=4)
    assert flat.sigma_order("eval") < 1e-4 * abs(flat.reference["eval"])
    orders = unseen_orders(flat, 16, 0)
    prediction = flat.predict(orders, metrics=["eval"])
    assert not prediction.detectable("eval").any()
    assert not prediction.trusted.any()
    assert osc.propose(flat, budget=60, verify=0, anyway=True).undetectable


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": "oracle"}, "estimator 'oracle'; expected one of carried"),
        ({"metrics": ["loss"]}, "metric 'loss'; expected one of eval, accuracy"),
        ({"lr": np.ones(3)}, r"learning rates of shape \[3\]; expected finite rates >= 0 of shape \[12\]"),
        ({"lr": np.full(12, np.nan)}, "finite rates"),
    ],
)
def test_wrong_questions(sim: osc.Simulator, arguments: dict, message: str) -> None:
    with pytest.raises(osc.OrderscopeError, match=message):
        sim.predict(sim.order, **arguments)


def test_an_order_of_other_samples_is_refused_by_id(sim: osc.Simulator) -> None:
    order = sim.order.copy()
    order[0, 0] = order[1, 0]
    with pytest.raises(osc.OrderscopeError, match=r"missing .*; too often"):
        sim.predict(order)


def test_another_task_is_refused(run: Path) -> None:
    with pytest.raises(osc.OrderscopeError, match="schedule"):
        osc.Simulator(run, osc.Task(**(tasks_tiny.classifier(steps=12) | {"scheduler": None})))


def test_the_calibration_is_kept_in_the_run(task: osc.Task, run: Path, sim: osc.Simulator) -> None:
    """As the true runs predicted without themselves; without the task too."""
    fresh, kept = sim.calibration["eval"], osc.Simulator(run).calibration["eval"]
    np.testing.assert_array_equal(kept.predicted, fresh.predicted)
    np.testing.assert_array_equal(kept.error, fresh.error)
    assert "table/left-out-000" in sim.store
    assert list(sim.calibration) == ["eval"]


def test_by_default_held_out_losses_are_told(task: osc.Task, run: Path, sim: osc.Simulator) -> None:
    """Where there are none, what there is."""
    assert set(sim.predict(sim.order).metrics) == {"eval"}
    assert sim.metric_names == tuple(task.metrics) == ("eval", "accuracy")  # as the task has them, not sorted


@pytest.mark.parametrize("metrics", ["eval", [], ["eval", "eval"]])
def test_metrics_are_a_list_of_names_each_once(sim: osc.Simulator, metrics: Any) -> None:
    with pytest.raises(osc.OrderscopeError, match=r"metrics=.*a list of names, each once"):
        sim.predict(sim.order, metrics=metrics)


def test_without_metrics_a_run_says_so(tmp_path: Path) -> None:
    bare = osc.Task(**tasks_tiny.linear() | {"metrics": {}})
    osc.record(bare, tmp_path / "run", probes=2)
    sim = osc.Simulator(tmp_path / "run", bare)
    for ask in (lambda: sim.predict(sim.order), lambda: osc.propose(sim), lambda: osc.validate(sim)):
        with pytest.raises(osc.OrderscopeError, match="a run without metrics"):
            ask()


def test_the_function_that_makes_a_task_is_none(sim: osc.Simulator, task: osc.Task, tmp_path: Path) -> None:
    for ask in (
        lambda given: osc.record(given, tmp_path / "run"),
        lambda given: osc.retrain(given, sim.order),
        lambda given: osc.Simulator(sim.path, given),
    ):
        for given in (lambda: task, "my_run.py:task"):
            with pytest.raises(osc.OrderscopeError, match=r"a task of type (function|str).*call the function"):
                ask(given)
    assert not (tmp_path / "run").exists()
