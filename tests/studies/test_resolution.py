"""Which shifts in time a recording tells apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import orderscope as osc
import tasks_tiny
from commands import answer, call
from law_tasks import simulated
from orderscope.studies.resolution import BATCH, Resolution, Shifted, later


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> osc.Simulator:
    return simulated(tasks_tiny.char(steps=12), tmp_path_factory.mktemp("shifts"), anchors=3, probes=6)[0]


@pytest.fixture(scope="module")
def found(sim: osc.Simulator) -> Resolution:
    return osc.resolution(sim)


def test_what_is_moved_comes_later_and_the_others_keep_their_sequence() -> None:
    assert later(np.arange(5) == 1, 2).tolist() == [0, 2, 3, 1, 4]
    assert later(np.arange(5) == 1, 9).tolist() == [0, 2, 3, 4, 1]
    both = np.array([True, False, True, False, False])
    moved = later(both, 1)
    assert moved.tolist() == [1, 0, 3, 2, 4]
    assert moved[~np.isin(moved, np.flatnonzero(both))].tolist() == [1, 3, 4]


def test_differences_are_those_of_the_predictions(sim: osc.Simulator, found: Resolution) -> None:
    groups = sorted(set(sim.description["group_names"]))
    assert {row.what for row in found.rows} == {BATCH, *groups}
    assert sorted({row.steps for row in found.rows}) == [1, 2, 4]  # up to half of the window
    row = next(row for row in found.rows if row.what == groups[0] and row.steps == 4)
    assert row.orders == 1
    labels = np.array([groups[sim.window.group_codes[ids[0]]] for ids in sim.order])
    p = sim.predict(sim.order[later(labels == groups[0], 4)])
    name = found.metric
    assert row.effect == pytest.approx(abs(p.metrics[name][0] - sim.reference[name]), rel=1e-3)
    assert row.error == pytest.approx(p.error[name][0], rel=1e-3)
    assert row.apart == int(p.detectable(name)[0])


def test_the_smallest_shift_is_the_one_from_which_all_are_told_apart() -> None:
    rows = [Shifted("a", 1, 1.0, 0.1, 1, 1), Shifted("a", 2, 1.0, 2.0, 0, 1), Shifted("a", 4, 1.0, 0.1, 1, 1),
            Shifted("b", 1, 1.0, 0.1, 1, 1), Shifted("b", 2, 1.0, 2.0, 0, 1),
            Shifted("c", 1, 1.0, 0.1, 3, 6), Shifted("c", 2, 1.0, 0.1, 4, 6)]  # fmt: skip
    assert Resolution("eval", tuple(rows), 1.0).smallest == {"a": 4, "b": None, "c": 1}


def test_refused(sim: osc.Simulator, tmp_path: Path) -> None:
    with pytest.raises(osc.OrderscopeError, match="no_such"):
        osc.resolution(sim, "no_such")
    short = simulated(tasks_tiny.char(steps=3), tmp_path, anchors=1, probes=2)[0]
    with pytest.raises(osc.OrderscopeError, match="four or more"):
        osc.resolution(short)


def test_on_the_command_line(sim: osc.Simulator, found: Resolution) -> None:
    told = answer("inspect", sim.path, "--shifts")["resolution"]
    assert told["smallest"] == found.smallest
    assert [row["apart"] for row in told["rows"]] == [row.apart for row in found.rows]
    shown = call("inspect", sim.path, "--shifts")
    assert shown.exit_code == 0
    assert "a single batch: " in shown.stdout
    assert call("inspect", sim.path, "--shifts", "--steps").exit_code == 2
    assert call("inspect", sim.path, "--metric", "eval").exit_code == 2
