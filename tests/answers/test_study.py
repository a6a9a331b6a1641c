"""A study: orders are asked, trained elsewhere and told; it goes on in another process."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

import orderscope as osc
import tasks_tiny
from law_tasks import simulated
from orderscope.answers.card import card
from orderscope.orders import order_hash


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> osc.Simulator:
    return simulated(tasks_tiny.char(steps=12), tmp_path_factory.mktemp("study"), anchors=4, probes=4)[0]


@pytest.fixture
def sim(recorded: osc.Simulator, tmp_path: Path) -> osc.Simulator:
    """A copy, since what is asked and told lies in the run."""
    copied = tmp_path / "run"
    shutil.copytree(recorded.path, copied)
    return osc.Simulator(copied, recorded.task)


def made(sim: osc.Simulator, **options) -> osc.Study:
    return osc.Study(sim, "eval", **({"anyway": True, "budget": 150} | options))


def trained(sim: osc.Simulator, order: np.ndarray) -> float:
    assert sim.task is not None
    return float(osc.retrain(sim.task, order).metrics["eval"][0])


def test_asks_for_orders_that_are_better_when_trained(sim: osc.Simulator) -> None:
    study = made(sim)
    asked = [study.ask() for _ in range(3)]
    assert [trial.number for trial in asked] == [1, 2, 3]
    assert len({order_hash(trial.order) for trial in asked}) == 3
    for trial in asked:
        assert (np.sort(trial.order, axis=None) == np.sort(sim.order, axis=None)).all()
        study.tell(trial, trained(sim, trial.order))
    assert study.best.value is not None
    assert study.best.value < sim.reference["eval"]
    assert study.best.number in (1, 2, 3)


def test_the_table_of_trials(sim: osc.Simulator) -> None:
    study = made(sim)
    first, second = study.ask(), study.ask()
    study.tell(first, first.predicted + 2 * first.error)
    rows = study.trials().records()
    assert [row["state"] for row in rows] == ["recorded", "told", "asked"]
    assert [row["trial"] for row in rows] == [0, 1, 2]
    assert rows[0]["value"] == rows[0]["predicted"] == pytest.approx(sim.reference["eval"])
    assert rows[0]["order_hash"] == order_hash(sim.order)[:12]
    assert (rows[1]["value"], rows[1]["inside"]) == (first.predicted + 2 * first.error, False)
    assert rows[1]["gain"] == pytest.approx(sim.reference["eval"] - first.predicted - 2 * first.error)
    assert (rows[2]["value"], rows[2]["gain"], rows[2]["inside"]) == (None, None, None)
    assert rows[2]["predicted"] == second.predicted
    lines = str(study.trials()).splitlines()
    assert lines[0].split() == list(rows[0])
    assert len(lines) == 4


def test_goes_on_in_another_process(sim: osc.Simulator) -> None:
    study = made(sim)
    trials = [study.ask(), study.ask()]
    study.tell(trials[1], sim.reference["eval"])
    again = made(osc.Simulator(sim.path, sim.task))
    assert again.trials() == study.trials()
    third = again.ask()
    assert third.number == 3
    assert order_hash(third.order) not in {order_hash(trial.order) for trial in trials}
    other = made(osc.Simulator(sim.path, sim.task), maximize=True)  # another question has its own trials
    assert [trial["state"] for trial in other.trials().records()] == ["recorded"]


def test_a_value_so_good_that_no_other_order_may_beat_it_ends_it(sim: osc.Simulator) -> None:
    study = made(sim, budget=40)
    study.tell(study.ask(), 0.0)
    with pytest.raises(osc.OrderscopeError, match=r"no order left that may be better than 0 \(trial 1\)"):
        study.ask()


def test_a_card_is_about_the_best_trial(sim: osc.Simulator) -> None:
    study = made(sim)
    worse, better = study.ask(), study.ask()
    study.tell(worse, sim.reference["eval"] + 1)
    assert "the recorded order" in card(osc.Simulator(sim.path))[0]
    study.tell(better, sim.reference["eval"] - 0.125)
    page, order = card(osc.Simulator(sim.path))
    assert order_hash(order) == order_hash(better.order)
    assert "| order | the best trial of a study |" in page
    assert f"| eval | {sim.reference['eval'] - 0.125:.5g} | trained, as reported to a study |" in page


def test_an_order_of_ones_own_is_told(sim: osc.Simulator) -> None:
    study = made(sim)
    mine = sim.order[::-1]
    value = trained(sim, mine)
    told = study.tell(mine, value)
    assert (told.number, told.found_by, told.value) == (1, "told", value)
    assert told.predicted == sim.predict(mine).metrics["eval"][0]
    with pytest.raises(osc.OrderscopeError, match="a second value for trial 1"):
        study.tell(mine, 1.0)


def test_a_training_that_diverged_is_never_the_best(sim: osc.Simulator) -> None:
    study = made(sim)
    study.tell(study.ask(), math.nan)
    assert study.best.number == 0
    assert made(osc.Simulator(sim.path, sim.task)).best.number == 0
    row = study.trials().records()[1]
    assert (row["state"], row["value"]) == ("told", None)


def test_what_is_trained_here_becomes_part_of_the_run(sim: osc.Simulator) -> None:
    study = made(sim)
    before = len(sim.runs)
    trial = study.ask()
    told = study.train(trial)
    assert told.value == trained(sim, trial.order)
    assert told.predicted == trial.predicted  # that of before it was trained
    assert len(study.sim.runs) == before + 1
    later = study.sim.predict(trial.order)
    assert later.metrics["eval"][0] == pytest.approx(told.value)
    assert study.ask().number == 2


def test_a_run_that_cannot_be_written_to(sim: osc.Simulator, tmp_path: Path) -> None:
    from orderscope.store.pack import pack

    pack(Path(sim.path), tmp_path / "run.h5")
    study = made(osc.Simulator(tmp_path / "run.h5"))
    study.tell(study.ask(), sim.reference["eval"])
    assert len(study.trials().rows) == 2
    assert len(made(osc.Simulator(tmp_path / "run.h5")).trials().rows) == 1
    with pytest.raises(osc.OrderscopeError, match="a simulator without its task"):
        study.train(study.ask())


def test_other_samples_where_they_are_allowed(sim: osc.Simulator) -> None:
    order = sim.order.copy()
    order[0, 0] = order[1, 0]
    with pytest.raises(osc.OrderscopeError, match="an order of other samples"):
        made(sim).tell(order, 1.0)
    assert made(sim, allow_other_samples=True).tell(order, 1.0).value == 1.0


def test_errors(sim: osc.Simulator) -> None:
    with pytest.raises(osc.OrderscopeError, match=r"metric 'evil'; expected one of"):
        osc.Study(sim, "evil")
    with pytest.raises(osc.OrderscopeError, match=r"Study\(verify=\)"):
        osc.Study(sim, "eval", verify=3)
    study = made(sim)
    with pytest.raises(osc.OrderscopeError, match="a value of type str"):
        study.tell(sim.order[::-1], "low")
    with pytest.raises(osc.OrderscopeError, match="an order of shape"):
        study.tell(sim.order[:-1], 1.0)
    with pytest.raises(osc.OrderscopeError, match="strategy 'luck'"):
        made(sim, strategies=["luck"]).ask()
    nothing = osc.Study(sim, "eval", budget=20)  # a few held-out rows
    if osc.propose(sim, "eval", verify=0, budget=20).searched:
        pytest.fail("this task's held-out rows are too few to look for an order; the next line rests on that")
    with pytest.raises(osc.OrderscopeError, match="an effect of order hidden by noise"):
        nothing.ask()
