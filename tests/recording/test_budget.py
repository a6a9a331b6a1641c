"""What a budget buys: the law, honest costs, growing plans, resumed decisions, and orders that are reused."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest

import orderscope as osc
import tasks_tiny
from orderscope.engine.worth import worth
from orderscope.recording import record as recording
from orderscope.recording import spending
from orderscope.recording.budget import Held, affordable, falling, purchase
from orderscope.recording.choices import growing_orders
from orderscope.recording.costs import cpu_seconds
from orderscope.sketching import SketchPlan
from orderscope.store import RunStore
from orderscope.training import has_gradients, load_run, true_runs


@pytest.fixture(scope="module")
def task() -> osc.Task:
    return osc.Task(**tasks_tiny.char())


RUN = 0.1


@pytest.fixture
def a_longer_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny task costs little beside what cannot be avoided, so that a budget would buy the least only."""
    monkeypatch.setattr(spending, "training_seconds", lambda store: RUN)


def test_the_greediest_purchase_minimises_what_the_law_foretells() -> None:
    prices = {"probes": 1.0, "curvature": 1.0}
    falls = {"probes": 2.0, "curvature": 1.0}
    found = purchase(1.0, falls, Held(1, 1), prices, 6.0, most_curvature=9)

    def foretold(probes: int, passes: int) -> float:
        return falls["probes"] / (probes + 1) + falls["curvature"] / passes

    every = {(p, 8 - p): foretold(p, 8 - p) for p in range(1, 8)}
    assert (found.probes, found.curvature) == min(every, key=lambda key: every[key])


def test_it_stops_where_another_run_narrows_the_error_by_less_than_it_adds_to_the_cost() -> None:
    prices = {"probes": 1.0, "curvature": math.inf}
    falls = {"probes": 4.0, "curvature": 0.0}
    held = purchase(2.0, falls, Held(3, 1), prices, 90.0, most_curvature=9, spent=20.0)
    rest = 2.0 - falls["probes"] / 4  # what probes do not touch

    def product(probes: int) -> float:
        return (rest + falls["probes"] / (probes + 1)) * (20.0 + probes - 3)

    assert 3 < held.probes < 93
    assert product(held.probes) <= min(product(held.probes - 1), product(held.probes + 1)) * 1.02


def test_what_was_measured_outweighs_the_prior_as_runs_are_added() -> None:
    growth = {"probes": 0.0, "curvature": 0.5}
    few, many = (falling(1.0, growth, Held(n, 2)) for n in (3, 30))
    assert many["curvature"] > few["curvature"]
    assert many["probes"] / 31 < few["probes"] / 4


def test_orders_stay_the_same_however_many_there_are(task: osc.Task) -> None:
    few, many = growing_orders(task, 3, 0), growing_orders(task, 9, 0)
    assert all(np.array_equal(a, b) for a, b in zip(few, many, strict=False))
    assert len({order.tobytes() for order in many}) == 9


@pytest.mark.parametrize("budget", [22.0, 30.0, 45.0])
@pytest.mark.parametrize("mixed", [False, True])
def test_what_is_affordable_costs_no_more_and_nearly_as_much(budget: float, mixed: bool) -> None:
    held = affordable(budget, 0.5, mixed=mixed, partial=False, most_passes=9)
    assert budget - 4 < held.cost(0.5, mixed=mixed) <= budget
    partial = affordable(budget, 0.5, mixed=mixed, partial=True, most_passes=9)
    assert partial.curvature == 1
    assert partial.probes > held.probes


@pytest.mark.usefixtures("a_longer_run")
def test_a_budget_is_honoured(task: osc.Task, tmp_path: Path) -> None:
    spent, plans = [], []
    for budget in (25, 60):
        began = cpu_seconds()
        store = osc.record(task, tmp_path / str(budget), budget=budget, jobs=1)
        osc.Simulator(store.path).predict(task.order[None])
        spent.append((cpu_seconds() - began) / RUN)
        plan = SketchPlan.read(store)
        plans.append(plan)
        assert plan.settled
        assert f"probe-{plan.probes - 1}" in true_runs(store)
        assert f"probe-{plan.probes}" not in true_runs(store)
    assert spent[0] < 25 + 5
    assert spent[1] < 60 + 10
    assert "error" not in plans[0].measured  # too little for measuring
    assert plans[1].measured["error"] > 0
    assert plans[1].probes > plans[0].probes


def test_a_budget_below_the_least_buys_the_least_and_says_so(task: osc.Task, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"the least recording costs about .* runs, more than a budget of 2"):
        store = osc.record(task, tmp_path / "run", budget=2, jobs=1)
    plan = SketchPlan.read(store)
    assert (plan.probes, len(plan.anchors), plan.settled) == (3, 2, True)
    with pytest.raises(osc.OrderscopeError, match=r"budget=0 runs; expected at least 1"):
        osc.record(task, tmp_path / "other", budget=0)
    with pytest.raises(osc.OrderscopeError, match=r"budget= and probes=.*one or the other"):
        osc.record(task, tmp_path / "other", budget=9, probes=3)


class Stopped(BaseException):
    pass


@pytest.mark.usefixtures("a_longer_run")
def test_a_stopped_recording_goes_on_with_what_was_decided(
    task: osc.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **keywords: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(recording, "build_table", stop)
        with pytest.raises(Stopped):
            osc.record(task, tmp_path / "run", budget=60, jobs=1)
    before = SketchPlan.read(RunStore.open(tmp_path / "run"))
    assert before.settled

    def never(*args: object, **keywords: object) -> None:
        raise AssertionError("decided twice")

    monkeypatch.setattr(recording, "bought", never)
    store = osc.record(task, tmp_path / "run", budget=60, jobs=1)
    assert SketchPlan.read(store) == before
    osc.Simulator(store.path).predict(task.order[None])


@pytest.mark.usefixtures("a_longer_run")
def test_stopped_in_the_least_it_decides_and_goes_on(
    task: osc.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **keywords: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(recording, "bought", stop)
        with pytest.raises(Stopped):
            osc.record(task, tmp_path / "run", budget=60, jobs=1)
    assert not SketchPlan.read(RunStore.open(tmp_path / "run")).settled
    assert SketchPlan.read(osc.record(task, tmp_path / "run", budget=60, jobs=1)).settled


def test_worth_is_measured_on_what_there_is(task: osc.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "build_table", lambda store: None)
    store = osc.record(task, tmp_path / "run", probes=4, anchors=2, curvature_rows=64, jobs=1)
    every = worth(store, None)
    some = worth(store, task.layout.size // 2)
    assert every is not None
    assert some is not None
    assert every.runs == 4
    assert every.left == 1.5
    assert set(every.growth) == {"probes", "curvature"}
    assert 0 < every.error < 10
    assert 0 < some.error < 10
    # With nothing else left out, the error is that of the table's own left-out runs, uncorrected.
    sim = osc.Simulator(store.path)
    found, held_out = sim.left_out, sim.held_out
    assert held_out is not None
    values = held_out(held_out.drawn(found.replayed, found.kept, found.runs), ("eval",), found.runs)["eval"]
    truth = np.array([load_run(store, run).metrics[-1]["eval"] for run in found.runs])
    sigma = np.append(truth, load_run(store, "reference").metrics[-1]["eval"]).std(ddof=1)
    assert every.error == pytest.approx(float(np.abs(values - truth).mean() / sigma), rel=1e-3)


def test_orders_become_probes(task: osc.Task, tmp_path: Path) -> None:
    orders = growing_orders(task, 3, 5)
    np.save(tmp_path / "order.npy", orders[0])
    given = [tmp_path / "order.npy", orders[1].tolist(), orders[1]]
    store = osc.record(task, tmp_path / "run", anchors=1, probes=3, curvature_rows=32, reuse=given, jobs=1)
    found = [load_run(store, f"probe-{i}", gradients=False).order for i in range(3)]
    assert np.array_equal(found[0], orders[0])
    assert np.array_equal(found[1], orders[1])
    assert not np.array_equal(found[2], orders[1])
    again = osc.record(task, tmp_path / "run", anchors=1, probes=3, curvature_rows=32, jobs=1)
    assert true_runs(again) == true_runs(store)
    with pytest.raises(osc.OrderscopeError, match=r"reuse= with 1 orders that are not the 2"):
        osc.record(task, tmp_path / "run", reuse=[orders[2]])


def test_a_recording_of_another_order_costs_nothing_while_its_gradients_are_there(
    task: osc.Task, tmp_path: Path
) -> None:
    order = growing_orders(task, 1, 5)[0]
    other = osc.Task(**tasks_tiny.char() | {"order": order})
    osc.record(other, tmp_path / "other", anchors=1, probes=0, curvature_rows=32, sketch=False, jobs=1)
    plain = osc.record(task, tmp_path / "plain", anchors=1, probes=2, curvature_rows=32, reuse=[order], jobs=1)
    taken = osc.record(task, tmp_path / "taken", anchors=1, probes=2, curvature_rows=32, reuse=[tmp_path / "other"],
                       jobs=1)  # fmt: skip
    assert [e["run"] for e in taken.journal() if e["event"] == "taken over"] == ["probe-0"]
    trained = {e["run"] for e in taken.journal() if e["event"] == "segment"}
    assert trained == {"reference", "probe-1"}
    question = growing_orders(task, 2, 9)
    values = [osc.Simulator(run.path).predict(np.stack(question)).metrics["eval"] for run in (plain, taken)]
    assert np.array_equal(*values)


def test_a_recording_whose_gradients_are_gone_gives_its_order(task: osc.Task, tmp_path: Path) -> None:
    order = growing_orders(task, 1, 5)[0]
    other = osc.Task(**tasks_tiny.char() | {"order": order})
    gone = osc.record(other, tmp_path / "other", anchors=1, probes=2, curvature_rows=32, jobs=1)
    assert not has_gradients(gone, "reference")
    store = osc.record(task, tmp_path / "run", anchors=1, probes=2, curvature_rows=32, reuse=[tmp_path / "other"],
                       jobs=1)  # fmt: skip
    assert np.array_equal(load_run(store, "probe-0", gradients=False).order, order)
    assert any(e["event"] == "trained again" for e in store.journal())


def test_what_cannot_be_reused_is_told(task: osc.Task, tmp_path: Path) -> None:
    changed = tasks_tiny.char() | {"optimizer": lambda p: tasks_tiny.adamw(p, lr=1e-3)}
    osc.record(osc.Task(**changed), tmp_path / "other", sketch=False, jobs=1)
    with pytest.raises(osc.OrderscopeError, match=r"a run with another optimizer.*leave it out"):
        osc.record(task, tmp_path / "run", reuse=[tmp_path / "other"])
    with pytest.raises(osc.OrderscopeError, match=r"where no run is.*correct reuse="):
        osc.record(task, tmp_path / "run", reuse=[tmp_path / "nothing"])
    with pytest.raises(osc.OrderscopeError, match=r"reuse= of an array"):
        osc.record(task, tmp_path / "run", reuse=[task.order[:2]])


def test_by_default_it_stops_by_itself(task: osc.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "BY_MEASURING", True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = osc.record(task, tmp_path / "run", jobs=1)
    assert SketchPlan.read(store).grows
    assert osc.Simulator(store.path).predict(task.order[None]).metrics["eval"].shape == (1,)


@pytest.mark.usefixtures("a_longer_run")
def test_it_goes_on_as_it_was_begun(task: osc.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a later call says of budgets and counts."""

    def stop(*args: object, **keywords: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(recording, "bought", stop)
        with pytest.raises(Stopped):
            osc.record(task, tmp_path / "budget", budget=62, jobs=1)
    with monkeypatch.context() as patch:
        patch.setattr(spending, "purchase", lambda error, falls, held, *args, **keywords: held)
        store = osc.record(task, tmp_path / "budget", jobs=1)
    assert SketchPlan.read(store).measured["budget"] == 62
    counts = osc.record(task, tmp_path / "counts", sketch=False, jobs=1)
    plan = SketchPlan.read(counts)
    assert SketchPlan.read(osc.record(task, tmp_path / "counts", budget=5, jobs=1)) == plan
