"""A run that version 0.1 recorded: `record(Task(**classifier(steps=6)), path, anchors=3, probes=3, curvature_rows=48,
sample_anchors=1)`, packed, and what that version answered."""

from pathlib import Path

import numpy as np
import pytest

import orderscope as osc
from law_tasks import permuted_steps
from orderscope.recording.record import add_runs, sketch
from orderscope.store import RunStore
from orderscope.store.manifest import file_name
from tasks_tiny import classifier

PACKED = Path(__file__).parents[1] / "data" / "run-0.1.h5"
VALUES = [1.1053130435470109, 1.105294055038763, 1.10452846056057, 1.1053012777853815]  # by stored expansions
PRECISE = [1.105340620215821, 1.1054101934663128, 1.1045352333509713, 1.1054804988491032]  # by the real model
ERRORS = [4.595640024081735e-05, 0.00017516962094528738, 1.850776449595569e-05, 0.0001951957080541529]
TRUE = [1.1053391695022583, 1.105416178703308, 1.1045334339141846, 1.105347990989685]
REFERENCE, PROBES = 1.1022509336471558, [1.101900577545166, 1.1000081300735474, 1.1037931442260742]


@pytest.fixture(scope="module")
def task():
    return osc.Task(**classifier(steps=6))


@pytest.fixture(scope="module")
def orders(task):
    rng = np.random.default_rng(0)
    return np.stack([task.order[rng.permutation(6)] for _ in range(4)])


@pytest.fixture
def unpacked(tmp_path):
    """The directory that it was packed from."""
    packed, path = RunStore.open(PACKED), tmp_path / "run"
    path.mkdir()
    (path / "manifest.jsonl").write_bytes(packed._packed.manifest)
    (path / "journal.jsonl").write_bytes(packed.raw_journal())
    for entry in packed.describe():
        blob = packed.blob(entry)
        (path / file_name(entry.name)).write_bytes(blob.path.read_bytes()[blob.offset :][: blob.size])
    assert RunStore.open(path).verify() == []
    return path


def test_it_opens_and_answers_as_it_did(task, orders):
    sim = osc.Simulator(PACKED)
    assert sim.reference["eval"] == REFERENCE
    assert sim.truth["eval"].tolist() == PROBES
    assert sim.losses == ("eval",)
    told = sim.predict(orders)
    apart = REFERENCE - np.array(VALUES)
    np.testing.assert_allclose(told.metrics["eval"], VALUES, rtol=0, atol=0.02 * np.abs(apart).max())
    # Three probes determine a scale less well than was assumed.
    assert (told.error["eval"] > 0.7 * np.array(ERRORS)).all()
    assert (told.error["eval"] < 1.5 * np.std([REFERENCE, *PROBES], ddof=1)).all()
    assert told.trusted.all()
    precise = osc.Simulator(PACKED, task).predict(orders, precise=True)
    np.testing.assert_allclose(precise.metrics["eval"], PRECISE, rtol=0, atol=0.02 * np.abs(apart).max())


def test_recorded_runs_are_told_as_they_were(task):
    sim = osc.Simulator(PACKED, task)
    told = sim.predict(np.concatenate([task.order[None], sim.probe_orders]), metrics=["eval", "accuracy"])
    assert told.metrics["eval"].tolist() == [REFERENCE, *PROBES]
    assert not told.error["eval"].any()
    assert not sim.replay_of(sim.probe_orders).outside.any()


def test_its_table_is_built_when_it_is_sketched_again(task, orders, unpacked):
    expected = osc.Simulator(PACKED).predict(orders)
    store = sketch(task, unpacked)
    assert store.names("table/")
    assert not store.names("sketch/rows/")
    found = osc.Simulator(unpacked).predict(orders)
    np.testing.assert_array_equal(found.metrics["eval"], expected.metrics["eval"])
    np.testing.assert_array_equal(found.error["eval"], expected.error["eval"])


@pytest.mark.parametrize("built", [False, True])
def test_runs_can_be_added_to_it(task, orders, unpacked, built):
    """Where its table was built all its runs' ends become known states then."""
    if built:
        sketch(task, unpacked)
    found = add_runs(task, unpacked, orders[:2], "confirmed-")
    assert found["eval"].tolist() == TRUE[:2]
    sim = osc.Simulator(unpacked)
    told = sim.predict(orders)
    assert told.metrics["eval"][:2].tolist() == TRUE[:2]
    assert not told.error["eval"][:2].any()
    assert np.abs(told.metrics["eval"] - TRUE).max() < 0.3 * np.ptp([REFERENCE, *TRUE])
    assert sim.runs == ("probe-0", "probe-1", "probe-2", "confirmed-0", "confirmed-1")
    assert len(sim.window.anchor_runs) == len(set(sim.window.anchor_runs)) + 3
    assert len(sim.held_out.runs) == (6 if built else 1)
    others = permuted_steps(task.order, 9, 4)
    true = osc.retrain(task, others).metrics["eval"]
    assert np.abs(sim.predict(others).metrics["eval"] - true).max() < 0.3 * np.ptp([REFERENCE, *true])
    assert RunStore.open(unpacked).verify() == []
