"""Record and sketch as a whole: what is written, resumed, refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import orderscope as osc
import tasks_tiny
from orderscope.cli.inspect import inventory
from orderscope.engine.window import LONG
from orderscope.orders import step_groups
from orderscope.recording import choices
from orderscope.recording.budget import DEFAULT, LONGER
from orderscope.recording.choices import UNBLURRED, allotted, probe_orders, spaced
from orderscope.recording.record import sketch
from orderscope.sketching import SketchPlan, missing_units
from orderscope.store import RunStore
from run_bytes import digests


@pytest.fixture(scope="module")
def task() -> osc.Task:
    return osc.Task(**tasks_tiny.char())


def test_any_number_of_processes_writes_the_same_bytes(task: osc.Task, tmp_path: Path) -> None:
    osc.record(task, tmp_path / "one", jobs=1)
    osc.record(task, tmp_path / "three", jobs=3)
    assert digests(tmp_path / "one") == digests(tmp_path / "three")


def test_a_record_that_stopped_before_the_sketch_goes_on_to_the_same_bytes(task: osc.Task, tmp_path: Path) -> None:
    osc.record(task, tmp_path / "whole")
    osc.record(task, tmp_path / "parts", sketch=False)
    with RunStore.open(tmp_path / "parts") as store:
        assert len(missing_units(store, SketchPlan.read(store))) == len(SketchPlan.read(store).units())
    with pytest.raises(osc.IncompleteRun, match=r"units missing.*resume it"):
        osc.Simulator(tmp_path / "parts", task)
    sketch(task, tmp_path / "parts")
    assert digests(tmp_path / "whole") == digests(tmp_path / "parts")


class Stopped(BaseException):
    pass


def test_a_record_that_stopped_before_its_probes_is_not_made_whole_by_a_sketch(task: osc.Task, tmp_path: Path) -> None:
    """What is missing is told as long as it is, and recording again ends with the same bytes."""
    osc.record(task, tmp_path / "whole", probes=3, jobs=1)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "probes and sketch":
            raise Stopped

    with pytest.raises(Stopped):
        osc.record(task, tmp_path / "parts", probes=3, jobs=1, progress=stop)
    with pytest.raises(osc.IncompleteRun, match=r"of 3 probes recorded.*`orderscope record` again"):
        sketch(task, tmp_path / "parts", jobs=1)
    found = inventory(RunStore.open(tmp_path / "parts"))
    assert found["state"] == "incomplete"
    assert any("of 3 probes" in line for line in found["missing"])
    with pytest.raises(osc.IncompleteRun, match=r"of 3 probes recorded.*`orderscope record` again") as caught:
        osc.Simulator(tmp_path / "parts", task)
    assert caught.value.exit_code == 5
    osc.record(task, tmp_path / "parts", probes=1, jobs=1)  # the planned ones belong to it all the same
    osc.Simulator(tmp_path / "parts", task)
    assert inventory(RunStore.open(tmp_path / "parts"))["state"] == "complete"
    with RunStore.open(tmp_path / "parts") as parts, RunStore.open(tmp_path / "whole") as whole:
        assert sorted(parts.names("")) == sorted(whole.names(""))


KILLED = """
import os, signal, sys
import orderscope as osc, tasks_tiny

def told(stage, done, total):
    if stage == "probes and sketch" and done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

osc.record(osc.Task(**tasks_tiny.char()), sys.argv[1], jobs=2, progress=told)
"""


@pytest.mark.parametrize("pieces", [1, 4, 9])
def test_killed_at_work_it_goes_on_to_the_same_bytes(task: osc.Task, tmp_path: Path, pieces: int) -> None:
    """Workers of a killed run must not keep it locked."""
    places = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(pieces)],
        env=os.environ | {"PYTHONPATH": places}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert child.returncode == -signal.SIGKILL, child.stderr
    osc.record(task, tmp_path / "killed")
    osc.record(task, tmp_path / "whole")
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_a_budget_is_spent_and_not_exceeded(task: osc.Task, tmp_path: Path) -> None:
    store = osc.record(task, tmp_path / "run", budget=9, sketch=False)
    plan = SketchPlan.read(store)
    probes = sum(name.startswith("record/probe-") and name.endswith("000") for name in store.names())
    assert plan.draws == 2
    assert 1 + probes + len(plan.anchors) + plan.draws == 9
    with pytest.raises(osc.OrderscopeError, match=r"budget=3 runs.*at least 5"):
        osc.record(task, tmp_path / "other", budget=3, sketch=False)  # where nothing can be measured
    with pytest.warns(UserWarning, match=r"the least recording costs about .* runs, more than a budget of 3"):
        osc.record(task, tmp_path / "least", budget=3)
    with pytest.raises(osc.OrderscopeError, match=r"budget= and probes=.*one or the other"):
        osc.record(task, tmp_path / "other", budget=9, probes=3)


def test_where_few_of_many_weights_are_carried_it_buys_probes_rather_than_curvature(
    task: osc.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bought = []
    for most in (choices.COORDS, task.layout.size // 2 // choices.COORDS_SHARE):
        monkeypatch.setattr(choices, "COORDS", most)
        store = osc.record(task, tmp_path / str(most), budget=20, sketch=False)
        probes = sum(name.startswith("record/probe-") and name.endswith("000") for name in store.names())
        bought.append((probes, SketchPlan.read(store).draws))
    (every, drawn), (more, fewer) = bought
    assert more > every
    assert fewer < drawn


def test_recording_again_does_nothing(task: osc.Task, tmp_path: Path) -> None:
    osc.record(task, tmp_path / "run")
    before = digests(tmp_path / "run")
    osc.record(task, tmp_path / "run")
    assert digests(tmp_path / "run") == before


def test_another_task_is_refused_by_the_part_that_differs(task: osc.Task, tmp_path: Path) -> None:
    osc.record(task, tmp_path / "run", probes=0, sketch=False)
    before = digests(tmp_path / "run")
    other = osc.Task(**(tasks_tiny.char() | {"max_grad_norm": 123.0}))
    with pytest.raises(osc.OrderscopeError, match="max_grad_norm"):
        osc.record(other, tmp_path / "run", probes=0)
    assert digests(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("option", "value"), [("anchors", 0), ("probes", -1), ("coords", 0), ("curvature_rows", 0), ("jobs", 0)]
)
def test_impossible_counts_are_refused(task: osc.Task, tmp_path: Path, option: str, value: int) -> None:
    with pytest.raises(osc.OrderscopeError, match=f"found {option}={value}; expected a whole number from"):
        osc.record(task, tmp_path / "run", **{option: value})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("count", "in_blocks"), [(6, 4), (8, 6), (9, 6)])
def test_probes_put_every_group_in_every_place(task: osc.Task, count: int, in_blocks: int) -> None:
    names = sorted(set(step_groups(np.asarray(task.order), task.groups)))
    orders = probe_orders(task, count, seed=3)
    firsts, blocks = [], 0
    for order in orders:
        assert sorted(order.reshape(-1)) == sorted(np.asarray(task.order).reshape(-1))
        labels = step_groups(order, task.groups)
        changes = sum(a != b for a, b in zip(labels, labels[1:], strict=False))
        if changes == len(names) - 1:
            blocks += 1
            firsts.append(labels[0])
    assert blocks == in_blocks
    assert set(firsts) == set(names)


def test_some_probes_in_blocks_are_blurred() -> None:
    """Between blocks and shuffles: groups change more often than in blocks and less often than in a shuffle, and are
    where they are in the probe of the same sequence that is not blurred, on the average."""
    task = osc.Task(**tasks_tiny.char(steps=240))
    changes, sequences = [], []
    for order in probe_orders(task, 8, seed=3):
        labels = np.array(step_groups(order, task.groups))
        changes.append(int((labels[1:] != labels[:-1]).sum()))
        sequences.append(sorted(set(labels), key=lambda name: np.flatnonzero(labels == name).mean()))
    groups = len(sequences[0])
    assert [count == groups - 1 for count in changes] == [True] * 4 + [False] * 4
    for blurred in (4, 5):
        assert 10 * groups < changes[blurred] < 0.8 * min(changes[6:])
    assert len({tuple(sequence) for sequence in sequences[:6]}) == 6


def test_what_is_blurred_beside_all_sequences_and_where_nothing_is() -> None:
    def changes(steps: int, count: int, **other: object) -> list[int]:
        task = osc.Task(**tasks_tiny.char(steps=steps) | other)
        found = [step_groups(order, task.groups) for order in probe_orders(task, count, seed=3)]
        return [sum(a != b for a, b in zip(labels, labels[1:], strict=False)) for labels in found]

    assert [n == 2 for n in changes(UNBLURRED + 1, 11)] == [True] * 6 + [False] * 5
    assert [n == 2 for n in changes(UNBLURRED, 8)] == [True] * 6 + [False] * 2


def test_two_groups_have_both_sequences_in_blocks_and_blurred() -> None:
    whole = tasks_tiny.char(steps=240)
    task = osc.Task(**whole | {"groups": ["a" if name == whole["groups"][0] else "b" for name in whole["groups"]]})
    firsts, changes = [], []
    for order in probe_orders(task, 8, seed=3):
        labels = np.array(step_groups(order, task.groups))
        changes.append(int((labels[1:] != labels[:-1]).sum()))
        firsts.append(min("ab", key=lambda name: np.flatnonzero(labels == name).mean()))
    assert changes[:2] == [1, 1]
    assert max(changes[2:4]) < 0.9 * min(changes[4:])
    assert min(changes[2:4]) > 10
    assert firsts[0] == firsts[2] != firsts[1] == firsts[3]


def test_a_long_window_has_more_probes() -> None:
    for steps, probes in ((LONG, DEFAULT.probes), (LONG + 1, LONGER.probes)):
        assert allotted(osc.Task(**tasks_tiny.char(steps=steps)), None, None, None, None)[1] == probes
    assert LONGER.probes == DEFAULT.probes + 3


def test_one_probe_of_a_task_without_groups() -> None:
    plain = osc.Task(**(tasks_tiny.char() | {"groups": None}))
    (order,) = probe_orders(plain, 1, seed=0)
    assert not np.array_equal(order, plain.order)


def test_one_of_many_probes_regroups_samples(tmp_path: Path) -> None:
    task = osc.Task(**tasks_tiny.char(steps=12))
    orders = probe_orders(task, 8, seed=3, regroup=True)
    recorded = {frozenset(batch) for batch in task.order.tolist()}
    whole = [all(frozenset(batch) in recorded for batch in order.tolist()) for order in orders]
    assert whole == [True] * 7 + [False]
    assert sorted(orders[-1].ravel()) == sorted(task.order.ravel())
    few = probe_orders(task, 3, seed=3, regroup=True)
    assert all(frozenset(batch) in recorded for order in few for batch in order.tolist())


def test_boundaries_are_unique_where_steps_are_few() -> None:
    assert spaced(2, 8) == [0, 1, 2]
    assert spaced(1, 1) == [0, 1]


def test_every_group_has_curvature_where_not_all_samples_are_used(task: osc.Task, tmp_path: Path) -> None:
    osc.record(task, tmp_path / "run", probes=0, curvature_rows=3)
    plan = SketchPlan.read(RunStore.open(tmp_path / "run"))
    groups = {int(task.group_codes[ids[0]]) for ids in plan.curvature_ids}
    assert groups == set(range(len(task.group_names)))


def test_a_module_under_two_names(tmp_path: Path) -> None:
    tied = osc.Task(**tasks_tiny.classifier(tied=True, frozen=True))
    osc.record(tied, tmp_path / "run", probes=2)
    sim = osc.Simulator(tmp_path / "run", tied)
    order = np.asarray(tied.order)[::-1]
    true = osc.retrain(tied, order).metrics["eval"][0]
    assert abs(sim.predict(order).metrics["eval"][0] - true) < 0.3 * abs(true - sim.reference["eval"])


def test_weights_of_low_precision_are_refused(tmp_path: Path) -> None:
    kw = tasks_tiny.linear()
    low = osc.Task(**kw | {
        "model": lambda: kw["model"]().bfloat16(),
        "loss": lambda model, batch: tasks_tiny.squared_error(model, (batch[0].bfloat16(), batch[1])).float(),
    })  # fmt: skip
    with pytest.raises(osc.OrderscopeError, match=r"torch.bfloat16; expected float32 or float64 master weights"):
        osc.record(low, tmp_path / "run")
    assert not (tmp_path / "run").exists()
