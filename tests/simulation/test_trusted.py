"""Which estimates are trusted: not those of effects and batches that no recorded run is like."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import orderscope as osc
import tasks_tiny
from orderscope.engine.calibration import Bearing, fit_calibration
from orderscope.engine.units import own_shares
from orderscope.orders import resolve
from orderscope.simulation.trusted import beyond_effects, sorted_as_recorded


def dealt(steps: int = 9, batch: int = 6) -> osc.Task:
    """A task whose every batch has two samples of each of three groups."""
    kw = tasks_tiny.char(steps=steps, batch=batch)
    groups = np.array(kw["groups"])
    each = np.stack([np.flatnonzero(groups == name) for name in sorted(set(groups))])
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(ids).reshape(steps, -1) for ids in each], axis=1)
    return osc.Task(**kw | {"order": order, "metrics": {**kw["metrics"], "again": kw["metrics"]["eval"]}})


@pytest.fixture(scope="module")
def task() -> osc.Task:
    return dealt()


@pytest.fixture(scope="module")
def sim(task: osc.Task, tmp_path_factory: pytest.TempPathFactory) -> osc.Simulator:
    path: Path = tmp_path_factory.mktemp("trusted") / "run"
    osc.record(task, path, probes=5)  # one more would regroup samples, and its batches be recorded ones
    return osc.Simulator(path, task)


def test_effects_are_compared_with_the_largest_of_a_true_run() -> None:
    true = np.array([1.0, 0.5, 2.4, 1.2])
    fitted = fit_calibration(
        true, true, 1.0, Bearing(np.ones(4), np.zeros((4, 4)), np.zeros(4), np.zeros(4, dtype=bool))
    )
    assert beyond_effects(np.array([3.0, 3.2, -1.0, -1.2]), fitted).tolist() == [False, True, False, True]


def test_two_recorded_orders_must_sort_samples_as_much_as_one_that_is_trusted() -> None:
    codes = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    mixed, other = np.array([[0, 1, 4, 5], [2, 3, 6, 7]]), np.array([[0, 2, 4, 6], [1, 3, 5, 7]])
    more, pure = np.array([[0, 1, 2, 4], [3, 5, 6, 7]]), np.array([[0, 1, 2, 3], [4, 5, 6, 7]])
    asked = own_shares(np.stack([mixed, more, pure]), codes, 2)
    assert asked[:, 0].tolist() == [0.5, 0.625, 1.0]
    for recorded, trusted in (
        ([mixed, other], [True, True, False]),
        ([mixed, other, pure], [True, True, False]),
        ([mixed, other, pure, pure[::-1]], [True, True, True]),
    ):
        assert sorted_as_recorded(asked, own_shares(np.stack(recorded), codes, 2)).tolist() == trusted
    seldom = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    few, rare = np.array([[[0, 1, 2, 7], [3, 4, 5, 8]]] * 2), np.array([[[0, 1, 2, 3], [7, 8, 9, 10]]])
    assert sorted_as_recorded(own_shares(rare, seldom, 2), own_shares(few, seldom, 2)).tolist() == [False]
    alone = own_shares(np.stack([mixed, pure]), np.zeros(8, dtype=int), 1)
    assert sorted_as_recorded(alone, alone[[0, 0]]).all()


def test_samples_sorted_by_group_are_not_trusted_where_batches_mix_groups(sim: osc.Simulator, task: osc.Task) -> None:
    orders = [resolve(text, sim.order, groups=task.groups) for text in ("groups:a,b,c", "late:b", "reverse")]
    found = sim.predict(np.stack(orders), metrics=["eval"])
    sorted_, late, whole = found.why_untrusted("eval")
    assert not found.trusted[:2].any()
    for why in (sorted_, late):
        assert any("sort samples by group as much" in reason for reason in why)
    assert not any("sort samples" in reason for reason in whole)


def test_of_orders_that_sort_samples_only_those_that_do_so_in_part_are_trusted_by_two_others(
    task: osc.Task, tmp_path: Path
) -> None:
    wholly = [resolve(f"groups:{text}", task.order, groups=task.groups) for text in ("a,b,c", "c,b,a")]
    osc.record(task, tmp_path / "run", reuse=wholly, probes=5)
    sim = osc.Simulator(tmp_path / "run", task)
    rng, codes, samples = np.random.default_rng(4), task.group_codes, np.asarray(task.order).ravel()
    partly = samples[np.argsort(codes[samples] + 0.7 * rng.normal(size=len(samples)))].reshape(task.order.shape)
    third = resolve("groups:b,a,c", task.order, groups=task.groups)
    why = sim.predict(np.stack([partly, third, wholly[0]]), metrics=["eval"]).why_untrusted("eval")
    assert sim.sorting(np.stack([partly, third, task.order])).tolist() == [True, True, False]
    assert not any("sort" in reason for reason in why[0])
    assert any("far more than the recorded order" in reason for reason in why[1])
    assert why[2] == ()
    usual = np.std(np.append(sim.truth["eval"][2:], sim.reference["eval"]), ddof=1)
    assert sim.sigma_order("eval") == pytest.approx(usual)


def test_an_effect_larger_than_any_recorded_one_is_not_trusted(
    sim: osc.Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, orders = sim.calibration["eval"], sim.order[::-1][None]
    effect = abs(float(sim.predict(orders, metrics=["eval"]).metrics["eval"][0]) - fitted.reference)
    for factor, beyond in ((1.4, False), (1.6, True)):
        size = effect / factor / np.abs(fitted.true - fitted.reference).max()
        smaller = replace(fitted, largest=size * fitted.largest)
        monkeypatch.setitem(sim.__dict__, "calibration", {"eval": smaller})
        found = sim.predict(orders, metrics=["eval"])
        assert any("effect on eval is larger" in why for why in found.why_untrusted("eval")[0]) is beyond
        rated = sim.predict(orders, metrics=["eval"], lr=sim.window.dynamics.hyper["lr"][:, 0])
        assert not any("effect on eval is larger" in why for why in rated.why_untrusted("eval")[0])


def test_each_metric_is_trusted_or_not_on_its_own(sim: osc.Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, orders = sim.calibration["eval"], sim.order[::-1][None]
    good = replace(fitted, held=(1.0, 1.0), farthest=9.0, left=0.5, quantile=1e3, largest=9.0)
    poor = replace(good, held=(0.5, 0.5))
    names = ["again", "eval"]
    assert sorted(sim.losses) == names
    monkeypatch.setitem(sim.__dict__, "calibration", dict.fromkeys(names, good) | {names[0]: poor})
    found = sim.predict(orders, metrics=names)
    assert found.trusted.all()
    assert not found.trusted_in(names[0])[0]
    assert all(found.trusted_in(name)[0] for name in names[1:])
    assert "fewer than 8 in 10" in found.why_untrusted(names[0])[0][0]
    assert not sim.predict(orders, metrics=names[:1]).trusted.any()
