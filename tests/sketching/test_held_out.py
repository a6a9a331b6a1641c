"""Held-out rows that metrics share are worked on once, and their gradients are those of each metric."""

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

import orderscope as osc
from law_tasks import untabled
from orderscope.sketching import SketchPlan, SketchStage, from_bfloat16
from orderscope.sketching import stage as stages
from orderscope.sketching.gradients import point
from orderscope.sketching.held_out import drawn_rows, held_out_rows, held_out_slopes
from orderscope.training.loop import start
from orderscope.training.state import capture
from tasks_tiny import Rows, char, classifier


def shared():
    """Three sets: all rows, the first eight twice and a row of its own, and none that another has; and a function."""
    kw = classifier()
    x, y = kw["metrics"]["eval"].columns
    few = Rows(torch.cat([x[:8], x[:8], x[:1] + 1]), torch.cat([y[:8], y[:8], y[:1]]))
    apart = Rows(x[:5] - 1, y[:5])
    return kw | {"metrics": {"whole": Rows(x, y), "few": few, "apart": apart, "count": kw["metrics"]["accuracy"]}}


def test_distinct_rows_are_found_by_content():
    rows = held_out_rows(osc.Task(**shared()))
    assert rows.names == ("whole", "few", "apart")
    assert len(rows.samples) == 24 + 1 + 5
    of = dict(zip(rows.names, rows.counts, strict=True))
    assert [int(of[name].sum()) for name in ("whole", "few", "apart")] == [24, 17, 5]
    assert sorted(of["few"][of["few"] > 0]) == [1] + 8 * [2]
    assert not (of["apart"].astype(bool) & (of["few"] + of["whole"]).astype(bool)).any()
    assert ((of["few"] > 0) & (of["whole"] > 0)).sum() == 8


def test_parts_are_rows_that_the_same_sets_have_equally_often():
    rows = held_out_rows(osc.Task(**shared()))
    parts = rows.parts()
    assert sorted(np.concatenate([some for some, _ in parts])) == list(range(30))
    assert sorted(len(some) for some, _ in parts) == [1, 5, 8, 16]
    for some, counts in parts:
        assert (rows.counts[:, some] == counts[:, None]).all()


class Odd:
    """Nothing tells one from another."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __reduce__(self):
        raise TypeError("not to be pickled")


def test_rows_that_nothing_tells_apart_are_each_their_own():
    kw = shared()
    odd = [Odd(*kw["metrics"]["apart"][i]) for i in range(5)]

    def collate(samples):
        return default_collate([(s.x, s.y) if isinstance(s, Odd) else s for s in samples])

    task = osc.Task(**kw | {"metrics": {"first": odd, "second": odd}, "collate": collate})
    assert held_out_rows(task).counts.tolist() == [5 * [1] + 5 * [0], 5 * [0] + 5 * [1]]


@pytest.mark.parametrize("make", [shared, char])
def test_slopes_are_those_of_each_metric(make):
    task = osc.Task(**make())
    at = point(task, task.build_model(), capture(start(task)))
    rows = held_out_rows(task)
    found = held_out_slopes(task, at, rows)
    parameters = at.layout.of_model(at.model)
    for name, slope in zip(rows.names, found, strict=True):
        held = task.metrics[name]
        loss = task.loss(at.model, default_collate([held[i] for i in range(len(held))])).mean()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        whole = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
        torch.testing.assert_close(slope, at.layout.flatten(whole), rtol=1e-4, atol=1e-6)


def test_every_part_has_its_share_of_the_rows_drawn():
    rows = held_out_rows(osc.Task(**shared()))
    assert drawn_rows(rows, 30).tolist() == list(range(30))
    drawn = drawn_rows(rows, 10)
    assert 8 <= len(drawn) <= 12
    assert (np.diff(drawn) > 0).all()
    for some, _ in rows.parts():
        assert np.isin(some, drawn).any()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    task = osc.Task(**shared())
    with untabled():
        store = osc.record(task, tmp_path_factory.mktemp("held") / "run", anchors=2, probes=1, coords=40, jobs=1)
    return task, store, SketchPlan.read(store)


def test_known_units_have_values_and_slopes_where_runs_ended(recorded):
    """Of the reference run at every state that is kept."""
    task, store, _ = recorded
    truth = osc.retrain(task, store.read("record/probe-0/segment-001", ["order"])["order"])
    attrs = store.attrs("sketch/known/probe-0")
    assert attrs["values"] == {name: truth.metrics[name][0] for name in ("apart", "few", "whole")}
    assert store.read("sketch/known/probe-0")["slope:few"].shape == (1, task.layout.size)
    assert store.attrs("sketch/known/reference")["steps"] == [0, 3, 10]
    assert store.read("sketch/known/reference")["slope:few"].shape == (3, task.layout.size)


def test_of_many_weights_slopes_are_short_and_rows_on_the_coordinates(recorded, monkeypatch):
    task, store, plan = recorded
    slopes = store.read("sketch/known/probe-0")["slope:whole"]
    rows = from_bfloat16(store.read("sketch/held-out/b000")["rows"])
    assert rows.shape[1] == task.layout.size
    monkeypatch.setattr(stages, "SHORT_SIZE", 1)
    monkeypatch.setattr(stages, "WHOLE_SIZE", 1)
    stage = SketchStage(task, store, plan)
    short = stage.compute("sketch/known/probe-0")[0]["slope:whole"]
    assert short.dtype == np.uint16
    torch.testing.assert_close(from_bfloat16(short).float(), torch.from_numpy(slopes), rtol=2**-8, atol=1e-30)
    some = from_bfloat16(stage.compute("sketch/held-out/b000")[0]["rows"])
    expected = rows[:, plan.coordinates.indices]
    torch.testing.assert_close(some.float(), expected.float(), rtol=2**-7, atol=1e-6)
