"""Which estimates are trusted: not those of effects and batches that no recorded run is like."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import orderscope as osc
import tasks_tiny
from orderscope.engine.calibration import Bearing, fit_calibration
from orderscope.orders import resolve
from orderscope.simulation.trusted import beyond_effects, largest_shares, purer_batches


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
    fitted = fit_calibration(true, true, 1.0, Bearing(np.ones(4), np.zeros((4, 4)), np.zeros(4)))
    assert beyond_effects(np.array([3.0, 3.2, -1.0, -1.2]), fitted).tolist() == [False, True, False, True]


def purer(orders: np.ndarray, recorded: np.ndarray, codes: np.ndarray) -> list[bool]:
    return purer_batches(largest_shares(orders, codes), largest_shares(recorded, codes).max(0)).tolist()


def test_batches_are_compared_with_the_recorded_ones_group_by_group() -> None:
    codes = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    mixed = np.array([[0, 1, 4, 5], [2, 3, 6, 7]])
    more, pure = np.array([[0, 1, 2, 4], [3, 5, 6, 7]]), np.array([[0, 1, 2, 3], [4, 5, 6, 7]])
    assert purer(np.stack([mixed, more, pure]), mixed[None], codes) == [False, False, False]
    seldom = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    few = np.array([[0, 1, 2, 7], [3, 4, 5, 8]])
    assert purer(np.array([[[0, 1, 2, 3], [7, 8, 9, 10]]]), few[None], seldom) == [True]
    assert purer(np.stack([mixed, pure]), mixed[None], np.zeros(8, dtype=int)) == [False, False]


def test_samples_sorted_by_group_are_not_trusted_where_batches_mix_groups(sim: osc.Simulator, task: osc.Task) -> None:
    orders = [resolve(text, sim.order, groups=task.groups) for text in ("groups:a,b,c", "late:b", "reverse")]
    found = sim.predict(np.stack(orders), metrics=["eval"])
    sorted_, late, whole = found.why_untrusted("eval")
    assert not found.trusted[:2].any()
    for why in (sorted_, late):
        assert any("more of one group than any recorded batch" in reason for reason in why)
    assert not any("more of one group" in reason for reason in whole)


def test_an_effect_larger_than_any_recorded_one_is_not_trusted(
    sim: osc.Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, orders = sim.calibration["eval"], sim.order[::-1][None]
    effect = abs(float(sim.predict(orders, metrics=["eval"]).metrics["eval"][0]) - fitted.reference)
    for factor, beyond in ((1.4, False), (1.6, True)):
        size = effect / factor / np.abs(fitted.true - fitted.reference).max()
        smaller = replace(fitted, true=fitted.reference + size * (fitted.true - fitted.reference))
        monkeypatch.setitem(sim.__dict__, "calibration", {"eval": smaller})
        found = sim.predict(orders, metrics=["eval"])
        assert any("effect on eval is larger" in why for why in found.why_untrusted("eval")[0]) is beyond
        rated = sim.predict(orders, metrics=["eval"], lr=sim.window.dynamics.hyper["lr"][:, 0])
        assert not any("effect on eval is larger" in why for why in rated.why_untrusted("eval")[0])


def test_each_metric_is_trusted_or_not_on_its_own(sim: osc.Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, orders = sim.calibration["eval"], sim.order[::-1][None]
    good = replace(fitted, held=(1.0, 1.0), farthest=9.0, left=0.5, quantile=1e3, true=np.append(fitted.true[1:], 9.0))
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
