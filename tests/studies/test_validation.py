"""Predictions beside the truth, kept in the run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import orderscope as osc
import tasks_tiny
from law_tasks import simulated
from orderscope.answers import known
from orderscope.search import rounds
from orderscope.simulation import foretold
from orderscope.store import pack
from orderscope.studies.validation import unseen_orders
from orderscope.training import load_run, true_runs


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> osc.Simulator:
    return simulated(tasks_tiny.classifier(steps=12), tmp_path_factory.mktemp("validate"), anchors=4, probes=4)[0]


@pytest.fixture
def sim(recorded: osc.Simulator, tmp_path: Path) -> osc.Simulator:
    """A run of its own, so that nothing is kept from another test."""
    shutil.copytree(recorded.path, tmp_path / "run")
    return osc.Simulator(tmp_path / "run", recorded.task)


def test_true_values_are_those_of_training(sim: osc.Simulator) -> None:
    assert sim.task is not None
    found = osc.validate(sim, 4)
    truth = osc.retrain(sim.task, found.orders)
    for name in ("eval", "accuracy"):
        np.testing.assert_array_equal(found.true[name], truth.metrics[name])
        np.testing.assert_array_equal(found.predicted[name], sim.predict(found.orders, metrics=[name]).metrics[name])


def test_measures_are_their_formulas(sim: osc.Simulator) -> None:
    found = osc.validate(sim, 8, metric="eval")
    p, e, t = found.predicted["eval"], found.error["eval"], found.true["eval"]
    assert found.pearson["eval"] == pytest.approx(np.corrcoef(p, t)[0, 1])
    assert found.coverage["eval"] == np.mean(np.abs(p - t) <= e)
    assert found.mae_ratio["eval"] == pytest.approx(np.abs(p - t).mean() / np.abs(t - np.median(t)).mean())
    assert found.sigma_order["eval"] == pytest.approx(t.std(ddof=1))
    pairs = [(i, j) for i in range(8) for j in range(i)]
    assert found.sign["eval"] == pytest.approx(np.mean([(p[i] > p[j]) == (t[i] > t[j]) for i, j in pairs]))
    ranks = np.corrcoef(np.argsort(np.argsort(p)), np.argsort(np.argsort(t)))[0, 1]
    assert found.spearman["eval"] == pytest.approx(ranks)
    assert list(found.true) == ["eval"]
    assert found.spearman["eval"] > 0.5


def test_what_was_trained_is_not_trained_again(sim: osc.Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    first = osc.validate(sim, 4)
    assert first.kept == "validation/000"
    assert first.cost == 4 + 3  # the orders, and the noise floor
    monkeypatch.setattr(sys.modules[osc.validate.__module__], "retrain", None)
    again = osc.validate(osc.Simulator(sim.path, sim.task), 4)
    assert again.cost == 0
    assert again.kept is None
    np.testing.assert_array_equal(again.orders, first.orders)
    for name in first.true:
        np.testing.assert_array_equal(again.true[name], first.true[name])
        assert again.noise_floor[name] == first.noise_floor[name]


def test_more_orders_train_only_the_new_ones(sim: osc.Simulator) -> None:
    osc.validate(sim, 4)
    more = osc.validate(sim, 6)
    assert more.cost == 2
    assert more.kept == "validation/001"
    with osc.RunStore.open(sim.path) as store:
        assert len(store.read("validation/001")["order"]) == 2
        attrs = store.attrs("validation/001")
    np.testing.assert_array_equal(attrs["true"]["eval"], more.true["eval"][4:])
    np.testing.assert_array_equal(attrs["predicted"]["eval"], more.predicted["eval"][4:])
    assert set(attrs) >= {"metrics", "true", "predicted", "error", "noise_floor"}
    assert osc.RunStore.open(sim.path).verify() == []


def test_what_was_trained_sharpens_later_answers(sim: osc.Simulator) -> None:
    """Orders that were validated are told as they were, samples regrouped or not; others no worse."""
    assert sim.task is not None
    found = osc.validate(sim, 8, metric="eval")
    later = osc.Simulator(sim.path, sim.task)
    told = later.predict(found.orders)
    np.testing.assert_array_equal(told.metrics["eval"], found.true["eval"])
    assert (told.error["eval"] == 0).all()
    assert later.probes == sim.probes
    assert later.sigma_order("eval") == sim.sigma_order("eval")
    others = unseen_orders(later, 16, 5)
    truth = osc.retrain(sim.task, others).metrics["eval"]
    before, after = (np.abs(s.predict(others).metrics["eval"] - truth).mean() for s in (sim, later))
    assert after <= before
    half, sharper = (s.predict(others).error["eval"].mean() for s in (sim, later))
    assert sharper <= half
    again = osc.validate(later, 8, metric="eval")
    np.testing.assert_array_equal(again.predicted["eval"], found.predicted["eval"])


def test_the_noise_floor_is_far_below_the_effect_of_order(sim: osc.Simulator) -> None:
    found = osc.validate(sim, 4)
    assert 0 <= found.noise_floor["eval"] < 0.01 * found.sigma_order["eval"]


def test_orders_are_unseen_and_of_every_kind(recorded: osc.Simulator) -> None:
    orders = unseen_orders(recorded, 16, 0)
    seen = {recorded.order.tobytes(), *(o.tobytes() for o in recorded.probe_orders)}
    assert len({o.tobytes() for o in orders} | seen) == 16 + len(seen)
    assert (np.sort(orders.reshape(16, -1), axis=1) == np.sort(recorded.order, axis=None)).all()
    batches = {tuple(sorted(b)) for b in recorded.order.tolist()}
    regrouped = [any(tuple(sorted(b)) not in batches for b in order.tolist()) for order in orders]
    assert sum(regrouped) == 2
    np.testing.assert_array_equal(unseen_orders(recorded, 16, 0), orders)
    assert not np.array_equal(unseen_orders(recorded, 16, 1), orders)


class Killed(BaseException):
    """As a signal, or a full disk that nothing is prepared for."""


def killed(*_: object, **__: object) -> None:
    raise Killed


def cut_short(sim: osc.Simulator, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Validate, and die where `name` would be called: after the orders were trained."""
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[osc.validate.__module__], name, killed)
        with pytest.raises(Killed):
            osc.validate(sim, 4)
    assert osc.Simulator(sim.path).runs[-1] == "validated-3"


@pytest.mark.parametrize("name", ["_noise", "keep_truth"])
def test_killed_between_training_and_comparison(
    sim: osc.Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The second try compares what was predicted before anything was trained, as if it had not been killed."""
    shutil.copytree(sim.path, tmp_path / "whole")
    expected = osc.validate(osc.Simulator(tmp_path / "whole", sim.task), 4)
    cut_short(sim, monkeypatch, name)
    again = osc.validate(osc.Simulator(sim.path, sim.task), 4)
    assert (again.error["eval"] > 0).all()
    for part in ("orders", "predicted", "error", "true", "mae_ratio", "coverage", "noise_floor"):
        np.testing.assert_equal(getattr(again, part), getattr(expected, part))
    with osc.RunStore.open(sim.path) as store:
        assert store.attrs("validation/000")["predicted"]["eval"] == expected.predicted["eval"].tolist()


def test_a_run_that_knows_the_truth_with_nothing_foretold(sim: osc.Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """As versions before left it: then each order is told without its own run."""
    monkeypatch.setattr(foretold, "_keep", lambda *_: True)
    cut_short(sim, monkeypatch, "keep_truth")
    later = osc.Simulator(sim.path, sim.task)
    again = osc.validate(later, 4)
    assert (again.error["eval"] > 0).all()
    np.testing.assert_array_equal(again.predicted["eval"], later.calibration["eval"].predicted[-4:])


def test_what_cannot_be_foretold_in_the_run_is_not_trained_into_it(
    sim: osc.Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foretold, "_keep", lambda *_: False)
    found = osc.validate(sim, 3)
    assert (found.error["eval"] > 0).all()
    assert osc.Simulator(sim.path).runs == sim.probes


def test_confirmations_are_foretold(sim: osc.Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "_joined", killed)
        with pytest.raises(Killed):
            osc.propose(sim, "eval", budget=80, verify=3, rounds=2, anyway=True)
    later = osc.Simulator(sim.path, sim.task)
    recorded = [run for run in true_runs(later.store) if run.startswith("confirmed-")]
    trained = [load_run(later.store, run, gradients=False).order for run in recorded]
    assert len(trained) == 2
    told = foretold.foretell(later, trained)
    assert (told.error["eval"] > 0).all()
    alone = [sim.predict(order).metrics["eval"][0] for order in trained]
    # Side by side they are other sums of float32 than alone.
    np.testing.assert_allclose(told.predicted["eval"], alone, rtol=1e-6)


def test_query_train_puts_its_prediction_down_first(sim: osc.Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    order = sim.order[::-1]
    expected = sim.predict(order).metrics["eval"]
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[osc.validate.__module__], "keep_truth", killed)
        with pytest.raises(Killed):
            known.train_orders(sim, order[None])
    with osc.RunStore.open(sim.path) as store:
        assert foretold.stored(store)[order.tobytes()]["eval"][0] == expected[0]
    later = osc.Simulator(sim.path, sim.task)
    truth = known.train_orders(later, order[None])["eval"]
    assert truth == later.predict(order).metrics["eval"]  # it is a run of its own by now


def test_query_train_of_what_a_killed_validation_left(sim: osc.Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The truth is known: nothing is trained, and no perfect prediction is put down."""
    cut_short(sim, monkeypatch, "keep_truth")
    later = osc.Simulator(sim.path, sim.task)
    truth = known.train_orders(later, later.run_orders[-4:])
    np.testing.assert_array_equal(truth["eval"], later.run_truth["eval"][-4:])
    with osc.RunStore.open(sim.path) as store:
        assert not store.names("validation/")


def test_too_many_orders(tmp_path: Path) -> None:
    sim, _ = simulated(tasks_tiny.classifier(steps=2), tmp_path, anchors=2, probes=0, sample_anchors=0)
    with pytest.raises(osc.OrderscopeError, match="unseen orders of 2 steps; expected 4"):
        osc.validate(sim, 4)


def test_a_packed_run_is_validated_and_left_alone(sim: osc.Simulator, tmp_path: Path) -> None:
    osc.validate(sim, 3)
    pack(sim.path, tmp_path / "run.h5")
    before = (tmp_path / "run.h5").read_bytes()
    packed = osc.Simulator(tmp_path / "run.h5", sim.task)
    assert osc.validate(packed, 3).cost == 0
    more = osc.validate(packed, 4)
    assert more.cost == 1
    assert more.kept is None
    assert (tmp_path / "run.h5").read_bytes() == before


def test_a_run_being_written_is_left_alone(sim: osc.Simulator) -> None:
    with osc.RunStore.create(sim.path):
        assert osc.validate(sim, 3).kept is None


def test_progress_is_told(sim: osc.Simulator) -> None:
    told: list[tuple[str, int, int]] = []
    osc.validate(sim, 3, progress=lambda *args: told.append(args))
    assert told[:2] == [("predict unseen orders", 0, 3), ("predict unseen orders", 3, 3)]
    assert ("train unseen orders", 3, 3) in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"orders": 1}, "orders=1; expected a whole number from 2"),
        ({"orders": 2.5}, "orders=2.5"),
        ({"metric": "bleu"}, "metric 'bleu'; expected one of eval, accuracy"),
        ({"metric": []}, "metric ''"),
    ],
)
def test_wrong_questions(recorded: osc.Simulator, options: dict, message: str) -> None:
    with pytest.raises(osc.OrderscopeError, match=message):
        osc.validate(recorded, **options)


def test_needs_the_task(recorded: osc.Simulator) -> None:
    with pytest.raises(osc.OrderscopeError, match="without its task"):
        osc.validate(osc.Simulator(recorded.path))
