"""The table of a run: what it is made of goes, what it answers stays."""

import shutil

import numpy as np
import pytest
import torch

import orderscope as osc
from law_tasks import permuted_steps, untabled
from orderscope.recording.record import add_runs, sketch
from orderscope.store import RunStore, pack
from orderscope.training import has_gradients, load_run
from run_bytes import digests
from tasks_tiny import char, classifier

CASES = {"all coordinates": {}, "some coordinates": {"coords": 60}, "no probes": {"probes": 0}}
COUNTS = {"anchors": 2, "probes": 4, "jobs": 1}


@pytest.fixture(scope="module")
def task():
    return osc.Task(**classifier())


@pytest.fixture(scope="module", params=CASES)
def raw(request, task, tmp_path_factory):
    """A run whose table was not built yet."""
    path = tmp_path_factory.mktemp("raw") / "run"
    with untabled():
        osc.record(task, path, **COUNTS | CASES[request.param])
    return path


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    osc.record(task, path, **COUNTS)
    return path


def copied(path, tmp_path):
    return shutil.copytree(path, tmp_path / "copy")


def answers(path, orders, **options):
    told = osc.Simulator(path).predict(orders, **options)
    return told.metrics["eval"], told.error["eval"], told.outside


def names_of(path):
    return RunStore.open(path).names()


def leftovers(path):
    prefixes = ("sketch/rows/", "sketch/curvature/", "sketch/held-out/")
    return [name for name in names_of(path) if name.startswith(prefixes) or "/gradient-" in name]


def test_opened_again_the_table_answers_as_what_it_was_made_of(raw, task, tmp_path):
    orders = np.concatenate([permuted_steps(task.order, 1, 4), task.order[None]])
    rng = np.random.default_rng(0)
    regrouped = rng.permutation(task.order.reshape(-1)).reshape(1, *task.order.shape)
    orders = np.concatenate([orders, regrouped])
    assert len(leftovers(raw)) > 3
    expected = answers(raw, orders)
    path = copied(raw, tmp_path)
    store = sketch(task, path)
    for found, value in zip(answers(path, orders), expected, strict=True):
        np.testing.assert_array_equal(found, value)
    assert not leftovers(path)
    assert store.verify() == []
    assert store.names("table/") == ["table/window-000", "table/held-out-000", "table/left-out-000"]
    assert load_run(store, "reference").gradient is None
    assert not has_gradients(store, "reference")


def test_what_is_written_to_it_stays_in_memory(whole):
    before = digests(whole)
    osc.Simulator(whole).window.entries.zero_()
    assert digests(whole) == before


def failing(monkeypatch, where):
    """A writer that is killed when it writes this."""
    write, drop = RunStore.write, RunStore.drop

    def wrote(store, name, *parts):
        if name.startswith(f"table/{where}"):
            raise KeyboardInterrupt
        write(store, name, *parts)

    def dropped(store, names):
        if where == "drop":
            raise KeyboardInterrupt
        drop(store, names)

    monkeypatch.setattr(RunStore, "write", wrote)
    monkeypatch.setattr(RunStore, "drop", dropped)


@pytest.mark.parametrize("where", ["window", "held-out", "left-out", "drop"])
def test_killed_between_its_writes_it_is_built_again(task, whole, where, tmp_path, monkeypatch):
    path, orders = tmp_path / "run", permuted_steps(task.order, 1, 3)
    with monkeypatch.context() as patched:
        failing(patched, where)
        with pytest.raises(KeyboardInterrupt):
            osc.record(task, path, **COUNTS)
    assert leftovers(path)
    expected = answers(whole, orders)
    for found, value in zip(answers(path, orders), expected, strict=True):
        np.testing.assert_array_equal(found, value)
    store = sketch(task, path)
    for found, value in zip(answers(path, orders), expected, strict=True):
        np.testing.assert_array_equal(found, value)
    assert not leftovers(path)
    assert [name.split("-0")[0] for name in store.names("table/")] == [
        "table/window",
        "table/held-out",
        "table/left-out",
    ]
    assert store.verify() == []
    before = digests(path)
    sketch(task, path)
    assert digests(path) == before


@pytest.mark.parametrize("options", [{}, {"coords": 60}], ids=["all coordinates", "some coordinates"])
def test_runs_that_are_added_are_known_exactly(task, options, tmp_path):
    path = tmp_path / "run"
    osc.record(task, path, **COUNTS | options)
    orders, others = permuted_steps(task.order, 5, 2), permuted_steps(task.order, 6, 6)
    before = osc.Simulator(path, task)
    first, true = before.predict(others), osc.retrain(task, np.concatenate([orders, others]), keep_parameters=True)
    truth = true.metrics["eval"]
    found = add_runs(task, path, orders, "validated-")
    np.testing.assert_array_equal(found["eval"], truth[:2])
    after = osc.Simulator(path, task)
    told = after.predict(orders)
    np.testing.assert_array_equal(told.metrics["eval"], truth[:2])
    assert not told.error["eval"].any()
    assert not told.outside.any()
    replayed = after.replay_of(orders)
    assert not replayed.outside.any()  # their states are anchors of their batches
    for theta, weights in zip(replayed.theta, true.parameters[:2], strict=True):
        assert torch.equal(theta, after.plan.coordinates.take(weights))
    assert after.runs == (*before.runs, "validated-0", "validated-1")
    assert after.held_out.runs == (*before.held_out.runs, "validated-0", "validated-1")
    assert after.window.anchor_runs == (*before.window.anchor_runs, "validated-0", "validated-1")
    ends = after.held_out(replayed.theta, ["eval"])["eval"]
    np.testing.assert_allclose(ends, truth[:2], rtol=0, atol=1e-6 if after.exact else 0.3 * truth.std())
    second = after.predict(others)
    assert np.abs(second.metrics["eval"] - truth[2:]).mean() < 1.2 * np.abs(first.metrics["eval"] - truth[2:]).mean()
    store = RunStore.open(path)
    assert not leftovers(path)
    assert store.names("table/") == ["table/window-001", "table/held-out-001", "table/left-out-001"]
    assert store.verify() == []
    again = digests(path)
    add_runs(task, path, orders, "validated-")
    assert digests(path) == again


def test_products_of_added_states_are_those_of_all_weights(task, tmp_path):
    """Where all are carried nothing is estimated."""
    path = tmp_path / "run"
    osc.record(task, path, **COUNTS)
    add_runs(task, path, permuted_steps(task.order, 5, 1), "confirmed-")
    known = osc.Simulator(path).held_out
    torch.testing.assert_close(known.crossed, known.factor.double() @ known.spread.double().T, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(known.gram, known.spread.double() @ known.spread.double().T, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(known.along[0], known.slopes[0].double() @ known.spread.double().T, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("where", ["window", "left-out", "drop"])
def test_killed_while_runs_are_added_nothing_is_lost(task, whole, where, tmp_path, monkeypatch):
    path, orders, others = copied(whole, tmp_path), permuted_steps(task.order, 5, 1), permuted_steps(task.order, 6, 3)
    expected = answers(path, others)
    with monkeypatch.context() as patched:
        failing(patched, where)
        with pytest.raises(KeyboardInterrupt):
            add_runs(task, path, orders, "validated-")
    if where != "drop":
        for found, value in zip(answers(path, others), expected, strict=True):
            np.testing.assert_array_equal(found, value)
    sketch(task, path)
    sim = osc.Simulator(path)
    assert sim.runs[-1] == "validated-0"
    assert sim.predict(orders).error["eval"] == 0
    assert len(sim.window.anchor_runs) == 2 + 1 + len(sim.runs)  # each once: two shared ones, and one of every run
    assert not leftovers(path)
    assert len(RunStore.open(path).names("table/")) == 3
    assert RunStore.open(path).verify() == []


def test_probes_that_are_recorded_later_become_part_of_it(task, whole, tmp_path):
    path = copied(whole, tmp_path)
    osc.record(task, path, **COUNTS | {"probes": 5})
    sim = osc.Simulator(path)
    assert sim.probes[-1] == "probe-4"
    assert sim.held_out.runs[-1] == sim.window.anchor_runs[-1] == "probe-4"


def test_a_packed_run_answers_the_same(task, whole, tmp_path):
    pack(whole, tmp_path / "run.h5")
    orders = permuted_steps(task.order, 1, 3)
    for found, value in zip(answers(tmp_path / "run.h5", orders), answers(whole, orders), strict=True):
        np.testing.assert_array_equal(found, value)
    assert RunStore.open(tmp_path / "run.h5").verify() == []


def test_large_tables_are_short_and_answer_alike(tmp_path, monkeypatch):
    task = osc.Task(**char())
    osc.record(task, tmp_path / "plain", **COUNTS)
    monkeypatch.setattr("orderscope.engine.raw.EXACT_BYTES", 1000)
    osc.record(task, tmp_path / "short", **COUNTS)
    plain, short = (osc.Simulator(tmp_path / name) for name in ("plain", "short"))
    assert plain.window.entries.dtype == plain.window.anchors.spread.dtype == torch.float32
    assert short.window.entries.dtype == short.window.anchors.spread.dtype == torch.bfloat16
    orders = permuted_steps(task.order, 1, 8)
    ours, theirs = short.predict(orders).metrics["eval"], plain.predict(orders).metrics["eval"]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.1 * plain.sigma_order("eval"))
    recorded = np.concatenate([task.order[None], short.probe_orders])
    assert not short.replay_of(recorded).outside.any()
    assert short.predict(task.order).metrics["eval"][0] == short.reference["eval"]
    before = short.window.entries.clone()
    add_runs(task, tmp_path / "short", orders[:1], "validated-")
    window = osc.Simulator(tmp_path / "short").window
    assert window.entries.dtype == torch.bfloat16
    kept = window.table[:, : short.window.anchors.count]
    assert torch.equal(kept, before[short.window.single :].unflatten(0, kept.shape[:2]))
