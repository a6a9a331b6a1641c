"""What a run has cost, by its journal."""

from __future__ import annotations

from pathlib import Path

import pytest

import orderscope as osc
from law_tasks import permuted_steps
from orderscope.recording.costs import OTHER, PARTS, part_runs, part_seconds, recording_seconds, training_seconds
from orderscope.recording.record import add_runs
from orderscope.store import RunStore
from tasks_tiny import classifier


def test_parts_add_up_to_the_recording_and_what_is_trained_later_is_not_of_it(tmp_path: Path) -> None:
    task = osc.Task(**classifier())
    store = osc.record(task, tmp_path / "run", probes=2, jobs=1)
    seconds = part_seconds(store)
    assert set(seconds) - {OTHER} == set(PARTS)
    assert all(seconds[part] > 0 for part in PARTS)
    (whole,) = [event["cpu"] for event in store.journal() if event["event"] == "recorded"]
    assert recording_seconds(store) == pytest.approx(max(whole, sum(seconds[part] for part in PARTS)))
    run = training_seconds(store)
    assert run is not None
    assert 0 < run <= seconds["probes"] / 2
    assert part_runs(store)["probes"] == pytest.approx(seconds["probes"] / run)
    cost = part_runs(store)
    add_runs(task, tmp_path / "run", permuted_steps(task.order, 1, 1), "validated-")
    later = RunStore.open(tmp_path / "run")
    assert recording_seconds(later) == pytest.approx(recording_seconds(store))
    quicker = {"run": "validated-9", "index": 0, "train_seconds": run / 2, "train_cpu": run / 2}
    with RunStore.create(tmp_path / "run") as opened:
        opened.log({"event": "segment", **quicker})
    assert part_runs(RunStore.open(tmp_path / "run")) == pytest.approx(cost)


def test_without_held_out_losses_metrics_are_asked_of_the_model(tmp_path: Path) -> None:
    kw = classifier()
    task = osc.Task(**kw | {"metrics": {"accuracy": kw["metrics"]["accuracy"]}})
    store = osc.record(task, tmp_path / "run", probes=3, jobs=1)
    assert part_seconds(store)["held-out losses"] == 0
    assert store.names("table/") == ["table/window-000", "table/left-out-000"]
    sim = osc.Simulator(tmp_path / "run", task)
    assert sim.held_out is None
    assert sim.metric_names == ("accuracy",)
    order = permuted_steps(task.order, 1)
    assert set(sim.predict(order).metrics) == {"accuracy"}
    found = add_runs(task, tmp_path / "run", order, "validated-")["accuracy"]
    assert osc.Simulator(tmp_path / "run", task).predict(order).metrics["accuracy"] == found
