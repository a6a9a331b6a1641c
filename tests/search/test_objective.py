"""Several metrics at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import orderscope as osc
import tasks_tiny
from law_tasks import simulated
from orderscope.search import Setting
from orderscope.search.objective import Objective, front
from searching import propose, setting


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> osc.Simulator:
    """A character model with a held-out set for each of two groups."""
    kw = tasks_tiny.char(steps=12)
    rows = kw["metrics"]["eval"].columns[0]
    kw["metrics"] = {"a": tasks_tiny.Rows(rows[0::3]), "b": tasks_tiny.Rows(rows[1::3])}
    path: Path = tmp_path_factory.mktemp("two")
    return simulated(kw, path, anchors=4, probes=4)[0]


def test_a_weighted_sum(two: osc.Simulator) -> None:
    assert two.task is not None
    found = propose(two, {"a": 1.0, "b": 0.5}, budget=200, verify=2)
    assert found.metric == "a + 0.5 b"
    true = osc.retrain(two.task, found.order).metrics
    assert found.confirmed == pytest.approx(true["a"][0] + 0.5 * true["b"][0])
    assert found.true == {name: values[0] for name, values in true.items()}
    assert found.reference == pytest.approx(two.reference["a"] + 0.5 * two.reference["b"])
    assert found.confirmed is not None
    assert found.confirmed < found.reference
    only = propose(two, "a", budget=200, verify=2)
    assert only.true["a"] < found.true["a"]
    assert found.true["b"] < only.true["b"]


def test_a_front(two: osc.Simulator) -> None:
    found = propose(two, ["a", "b"], budget=450, verify=3)
    points = np.array([[row.metrics["a"], row.metrics["b"]] for row in found.front])
    assert len(points) >= 3
    assert (np.diff(points[:, 0]) > 0).all()
    assert (np.diff(points[:, 1]) < 0).all()
    trained = [row for row in found.front if row.true]
    assert len(trained) >= 2
    true = np.array([[row.true["a"], row.true["b"]] for row in trained])
    assert true[0, 0] < true[-1, 0]  # the ends are what they claim
    assert true[0, 1] > true[-1, 1]
    assert found.scored <= 450


def test_what_cannot_be_asked(two: osc.Simulator) -> None:
    for metric, message in (
        (["a", "bleu"], "metric 'bleu'"),
        ({"a": float("nan")}, "weights"),
        ({"a": 0.0}, "weights"),
        ([], "metric 'none'"),
    ):
        with pytest.raises(osc.OrderscopeError, match=message):
            propose(two, metric)
    with pytest.raises(osc.OrderscopeError, match="maximize='c'"):
        propose(two, ["a", "b"], maximize=["c"])


def test_titles_and_signs() -> None:
    assert Objective({"a": 1.0}).title == "a"
    assert Objective({"a": 1.0, "b": -0.5}).title == "a - 0.5 b"
    raised = Objective({"a": -1.0})
    assert raised.value({"a": 2.0}) == -2.0
    assert raised.reported({"a": 2.0}) == 2.0
    assert Objective({"a": 1.0, "b": -2.0}).error({"a": np.array(0.1), "b": np.array(0.2)}) == pytest.approx(0.5)


def test_the_expansion_of_a_sum_is_the_sum_of_expansions(two: osc.Simulator) -> None:
    at = setting(two, metric="a")
    both = Setting(two, Objective({"a": 1.0, "b": 0.5}), False, at.ledger)
    theta = two.window.final + 0.01 * torch.randn(two.window.coords, generator=torch.Generator().manual_seed(0))
    single = {name: Setting(two, Objective({name: 1.0}), False, at.ledger).expansion for name in "ab"}
    assert both.expansion is not None
    assert single["a"] is not None
    assert single["b"] is not None
    expected = single["a"](theta[None]) + 0.5 * single["b"](theta[None])
    assert float(both.expansion(theta[None])[0]) == pytest.approx(float(expected[0]), rel=1e-6)


def test_front_keeps_what_nothing_dominates() -> None:
    points = np.random.default_rng(0).normal(size=(60, 3))
    kept = front(points)
    for k, point in enumerate(points):
        dominated = ((points <= point).all(1) & (points < point).any(1)).any()
        assert kept[k] == (not dominated)
