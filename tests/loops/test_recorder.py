"""A recorder in a loop: the order is the true one, the run is not touched, and the task made of it is the same run."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import loops_plain
import orderscope as osc
from loops_plain import NAMES, make
from orderscope.loops import notices, recorder
from orderscope.loops.legs import load_state
from orderscope.training import load_run


def record(loop: loops_plain.Loop, path: Path, **options: Any) -> tuple[list[list[int]], osc.Recorder]:
    with osc.Recorder(path, loop.model, loop.opt, loop.sched, **options) as rec:
        trained = loop.run(rec)
    return trained, rec


def watch(loop: loops_plain.Loop, path: Path) -> osc.Recorder:
    return osc.Recorder(path / "run", loop.model, loop.opt)


def weights(loop: loops_plain.Loop) -> torch.Tensor:
    return nn.utils.parameters_to_vector(loop.model.parameters()).detach()


def task_of(rec: osc.Recorder | osc.Recorded, loop: loops_plain.Loop, **rest: Any) -> osc.Task:
    return rec.task(model=loop.build, loss=loop.loss, data=loop.data, max_grad_norm=loop.clip, **rest)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_is_the_one_trained_and_no_bit_changes(name: str, tmp_path: Path) -> None:
    bare, watched = make(name), make(name)
    bare.run()
    trained, rec = record(watched, tmp_path / "run")
    assert torch.equal(weights(bare), weights(watched))
    assert rec.order.tolist() == trained
    assert rec.problems == []
    if "skips" in name:
        assert 0 < len(trained) < len(watched.order)


@pytest.mark.parametrize("name", NAMES)
def test_the_task_made_of_it_is_that_run(name: str, tmp_path: Path) -> None:
    loop = make(name)
    _, rec = record(loop, tmp_path / "run", anchors=2)
    task = task_of(rec, loop, metrics={"eval": loop.data})
    osc.record(task, tmp_path / "run", probes=0, sketch=False)
    final = load_run(osc.RunStore.open(tmp_path / "run"), "reference").theta()[-1]
    exact = loop.autocast is None and loop.micro == 1
    start = nn.utils.parameters_to_vector(loop.build().parameters()).detach()
    kept = [p.requires_grad for p in loop.model.parameters()]
    assert all(kept)
    # Rounding of bfloat16 is 2^-9, and grows over the steps; float32 accumulated in another way differs by 1e-7.
    tolerance = 0.05 if loop.autocast else 0.0 if exact else 1e-4
    assert (final - weights(loop)).norm() <= tolerance * (weights(loop) - start).norm()


def test_with_probes_and_sketch_it_answers(tmp_path: Path) -> None:
    loop = make("groups")
    _, rec = record(loop, tmp_path / "run")
    task = task_of(rec, loop, metrics={"eval": loop.data})
    osc.record(task, tmp_path / "run", anchors=3, probes=2, jobs=1)
    prediction = osc.Simulator(tmp_path / "run", task).predict(rec.order)
    truth = osc.retrain(task, rec.order).metrics["eval"]
    np.testing.assert_allclose(prediction.metrics["eval"], truth, rtol=1e-5)  # its own anchors: exact up to the metric


def test_states_are_kept_evenly_and_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "SHARE", float("inf"))  # however long they take
    data = torch.randn(400, 2)

    def run(rec: osc.Recorder, model: nn.Module, opt: torch.optim.Optimizer, states: dict[int, torch.Tensor]) -> None:
        for t in range(200):
            opt.zero_grad()
            model(data[2 * t : 2 * t + 2]).square().mean().backward()
            opt.step()
            rec.step([2 * t, 2 * t + 1])
            states[t + 1] = nn.utils.parameters_to_vector(model.parameters()).detach().clone()

    for name, options in {"unknown": {}, "known": {"steps": 200}}.items():
        model = nn.Linear(2, 1)
        opt = torch.optim.Adam(model.parameters())
        true: dict[int, torch.Tensor] = {0: nn.utils.parameters_to_vector(model.parameters()).detach().clone()}
        with osc.Recorder(tmp_path / name, model, opt, anchors=4, **options) as rec:
            run(rec, model, opt, true)
        kept = rec.recorded.states
        gaps = set(np.diff(sorted(kept))[:-1].tolist())
        assert len(gaps) == 1 or name == "known"
        assert (5 <= len(kept) <= 10) if name == "unknown" else sorted(kept) == [0, 67, 133, 200]
        for step, place in kept.items():
            assert torch.equal(load_state(place).theta, true[step])


@pytest.mark.parametrize("tell", ["step", "micro"])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_resumed_from_a_checkpoint_later_steps_supersede(kind: str, tell: str, tmp_path: Path) -> None:
    def fresh() -> loops_plain.Loop:
        loop = make("accumulated")
        loop.tell = tell
        if kind == "sgd":
            loop.opt, loop.sched = torch.optim.SGD(loop.model.parameters(), lr=0.1, momentum=0.9), None
        return loop

    whole = fresh()
    whole.run()
    first = fresh()
    rec = osc.Recorder(tmp_path / "run", first.model, first.opt)
    first.run(rec, 0, 5)
    saved = {k: v.clone() for k, v in first.model.state_dict().items()}, first.opt.state_dict()
    moments = copy.deepcopy(saved[1])
    schedule = first.sched.state_dict() if first.sched else {}
    first.run(rec, 5, 8)  # not in the checkpoint
    rec.close()

    second = fresh()
    second.model.load_state_dict(saved[0])
    second.opt.load_state_dict(moments)
    if second.sched:
        second.sched.load_state_dict(schedule)
    step = {"step": 5} if kind == "sgd" else {}
    if kind == "sgd":
        with pytest.raises(osc.OrderscopeError, match=r"does not count its steps.*pass step="):
            osc.Recorder(tmp_path / "run", second.model, second.opt)
    with osc.Recorder(tmp_path / "run", second.model, second.opt, **step) as again:
        second.run(again, 5, None)
    assert torch.equal(weights(second), weights(whole))
    assert again.order.tolist() == whole.order.tolist()
    assert again.problems == []
    assert again.recorded.loop.retaken == [(5, 8, True)]
    task = task_of(again, whole)
    osc.record(task, tmp_path / "run", probes=0, sketch=False)


def test_other_data_after_a_resume_is_told_and_what_was_trained_is_kept(tmp_path: Path) -> None:
    loop = make("plain")
    with watch(loop, tmp_path) as rec:
        loop.run(rec, 0, 8)
    again = make("plain")
    again.run(None, 0, 5)
    again.order = again.order.copy()
    again.order[5:] = again.order[5:][::-1].copy()
    with (
        pytest.warns(notices.OtherOrderWarning, match=r"step 5 trains on other samples than before the resume"),
        pytest.warns(UserWarning, match=r"steps 5 to 7 with other samples after.*seed the sampler"),
        watch(again, tmp_path) as rec,
    ):
        again.run(rec, 5)
    assert rec.order.tolist() == again.order.tolist()


def test_steps_lost_between_a_kill_and_a_checkpoint_are_named(tmp_path: Path) -> None:
    loop = make("plain")
    with watch(loop, tmp_path) as rec:
        loop.run(rec, 0, 4)
    loop.run(None, 4, 6)
    with (
        pytest.warns(UserWarning, match="nothing of steps 4 to 5"),
        watch(loop, tmp_path) as rec,
    ):
        loop.run(rec, 6)
    with pytest.raises(osc.OrderscopeError, match=r"nothing of steps 4 to 5.*first=0, last=4"):
        _ = rec.order
    task = task_of(rec, loop, last=4)
    assert task.order.tolist() == loop.order[:4].tolist()


def test_a_window_from_a_kept_state(tmp_path: Path) -> None:
    loop = make("clipped")
    _, rec = record(loop, tmp_path / "run", steps=10, anchors=3)
    assert list(rec.recorded.states) == [0, 5, 10]
    task = task_of(osc.recorded(tmp_path / "run"), loop, first=5)
    assert task.order.tolist() == loop.order[5:].tolist()
    osc.record(task, tmp_path / "run", probes=0, sketch=False)
    final = load_run(osc.RunStore.open(tmp_path / "run"), "reference").theta()[-1]
    assert torch.equal(final, weights(loop))
    with pytest.raises(osc.OrderscopeError, match=r"found first=4; expected a step whose state was kept: 0, 5, 10"):
        task_of(rec, loop, first=4)


def test_states_that_take_too_long_become_rarer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "SHARE", 1e-9)
    loop = make("plain")
    _, rec = record(loop, tmp_path / "run")
    assert list(rec.recorded.states) == [0, 4, 10]


def test_a_short_last_batch_is_recorded_and_refused_as_an_order(tmp_path: Path) -> None:
    loop = make("plain")
    rows = [*loop.order[:4], loop.order[4][:3]]
    with (
        pytest.warns(UserWarning, match=r"steps of 3 to 4 samples, .* at step 4"),
        watch(loop, tmp_path) as rec,
    ):
        for ids in rows:
            loop.order = np.array([ids])
            loop.run(rec)
    assert [b.tolist() for b in rec.batches] == [r.tolist() for r in rows]
    with pytest.raises(osc.OrderscopeError, match=r"step 4 with 3 samples, where the others have 4.*last=4"):
        _ = rec.order
    assert task_of(rec, loop, last=4).order.tolist() == [r.tolist() for r in rows[:4]]


WRONG = {
    "twice": (lambda loop: {"loss": lambda m, b: 2 * loop.loss(m, b)}, "at step 0 .*loss 2.64635, recorded 1.32318"),
    "shifted ids": (lambda loop: {"data": [loop.data[(i + 1) % 40] for i in range(40)]}, "at step 0"),
    "no clipping": (lambda loop: {"max_grad_norm": None}, r"seems to clip at 0\.1: pass max_grad_norm=0\.1"),
    "another rate": (lambda loop: {"scheduler": None, "optimizer": lambda p: torch.optim.AdamW(p, lr=1.0),
                                   "order": loop.order}, "with lr 1 at step 0, recorded 0.005"),
    "other weights": (lambda loop: {"model": lambda: nn.Sequential(nn.Linear(2, 3))}, "without the recorded parameter"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_task_that_is_not_the_loop_is_refused(name: str, tmp_path: Path) -> None:
    loop = make("clipped")
    _, rec = record(loop, tmp_path / "run")
    change, text = WRONG[name]
    parts: dict[str, Any] = {"model": loop.build, "loss": loop.loss, "data": loop.data, "max_grad_norm": loop.clip}
    parts |= change(loop)
    make_task = osc.Task if "order" in parts else rec.task
    with pytest.raises(osc.OrderscopeError, match=text):
        osc.record(make_task(**parts), tmp_path / "run", probes=0, sketch=False)


def test_another_order_in_a_recorded_loop_is_refused(tmp_path: Path) -> None:
    loop = make("plain")
    record(loop, tmp_path / "run")
    task = osc.Task(model=loop.build, loss=loop.loss, data=loop.data, optimizer=loop.optimizer,
                    order=loop.order[::-1].copy())  # fmt: skip
    with pytest.raises(osc.OrderscopeError, match=r"an order .* that the recorded loop did not train"):
        osc.record(task, tmp_path / "run", probes=0, sketch=False)


def test_the_same_objects_make_the_task(tmp_path: Path) -> None:
    loop = make("groups")
    _, rec = record(loop, tmp_path / "run")
    task = rec.task(model=loop.model, loss=loop.loss, data=loop.data, max_grad_norm=loop.clip)
    truth = osc.retrain(task, rec.order, keep_parameters=True).parameters
    assert truth is not None
    assert torch.equal(truth[0], weights(loop))


def test_a_loop_that_never_calls_step(tmp_path: Path) -> None:
    loop = make("plain")
    with (
        pytest.warns(
            UserWarning, match=r"10 optimizer steps and no call of step; expected rec\.step\(ids\) after each"
        ),
        watch(loop, tmp_path) as rec,
    ):
        loop.run()
    with pytest.raises(osc.OrderscopeError, match="no sample ids"):
        _ = rec.order


def test_a_loop_whose_optimizer_never_steps(tmp_path: Path) -> None:
    loop = make("plain")
    with (
        pytest.warns(UserWarning, match="no step of the optimizer"),
        watch(loop, tmp_path) as rec,
    ):
        rec.step([1, 2])
    with pytest.raises(osc.OrderscopeError, match="nothing recorded"):
        _ = rec.order


@pytest.mark.parametrize("ids", [[0.5, 1.5], ["a"], None, [True, False], torch.rand(2)])
def test_ids_that_are_no_integers_end_the_recording_not_the_training(ids: Any, tmp_path: Path) -> None:
    bare, loop = make("plain"), make("plain")
    bare.run()
    with pytest.warns(UserWarning) as told, watch(loop, tmp_path) as rec:
        loop.run(rec, 0, 4)
        loop.run(None, 4, 5)
        rec.step(ids)
        loop.run(rec, 5)
    assert torch.equal(weights(bare), weights(loop))
    assert "integer sample ids" in str(told[0].message)
    assert "recording stopped after step 5" in str(told[-1].message)
    assert rec.order.tolist() == loop.order[:4].tolist()


def test_a_fault_of_the_recorder_does_not_stop_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orderscope.loops import legs

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    bare, loop = make("plain"), make("plain")
    bare.run()
    monkeypatch.setattr(legs, "write_segment", full)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning made an error must not get through either
        _, rec = record(loop, tmp_path / "run")
    assert torch.equal(weights(bare), weights(loop))
    assert "No space left" in rec.problems[0]


def test_two_recorders_on_one_run(tmp_path: Path) -> None:
    loop = make("plain")
    rec = watch(loop, tmp_path)
    with pytest.raises(osc.OrderscopeError, match=r"being written by process.*one writer at a time"):
        watch(loop, tmp_path)
    loop.run(rec)
    rec.close()
    assert rec.order.tolist() == loop.order.tolist()


REFUSED = {
    "bfloat16 weights": (
        lambda m: (m.bfloat16(), torch.optim.AdamW(m.parameters())),
        "float32 or float64 master weights",
    ),
    "unknown optimizer": (lambda m: (m, torch.optim.RMSprop(m.parameters())), "RMSprop.*SGD, Adam, AdamW"),
    "foreign parameters": (lambda m: (m, torch.optim.SGD(nn.Linear(2, 2).parameters())), "not parameters of the model"),
    "meta": (lambda m: (m.to("meta"), torch.optim.SGD(m.to("meta").parameters())), "sharded or on the meta device"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_recorded_is_refused_before_training(name: str, tmp_path: Path) -> None:
    change, text = REFUSED[name]
    model, opt = change(nn.Linear(3, 2))
    with pytest.raises(osc.OrderscopeError, match=text):
        osc.Recorder(tmp_path / "run", model, opt)
    assert not (tmp_path / "run").exists()


def test_recording_over_a_finished_run_is_refused(tmp_path: Path) -> None:
    loop = make("plain")
    _, rec = record(loop, tmp_path / "run")
    osc.record(task_of(rec, loop), tmp_path / "run", probes=0, sketch=False)
    with pytest.raises(osc.OrderscopeError, match="recorded and probed already"):
        watch(loop, tmp_path)


def test_ids_of_all_ranks_make_the_step(tmp_path: Path) -> None:
    """Two ranks in turn, each with half of every batch: rank 0 holds the run, rank 1 its ids beside it."""
    full = make("plain")
    for rank in (1, 0):
        loop = make("plain")
        loop.order = np.array_split(full.order, 2, axis=1)[rank]
        with osc.Recorder(tmp_path / "run", loop.model, loop.opt, rank=rank, world_size=2) as rec:
            loop.run(rec)
    assert rec.order.tolist() == full.order.tolist()


def test_a_task_on_another_device_is_told_where_the_loop_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "environment", lambda device: {"device": "Some GPU"})
    loop = make("plain")
    _, rec = record(loop, tmp_path / "run")
    same = task_of(rec, loop)
    other = rec.task(model=loop.build, loss=lambda m, b: loop.loss(m, b) + 1.0, data=loop.data)
    with pytest.raises(osc.OrderscopeError, match="the loop ran on Some GPU, the task runs on cpu"):
        osc.record(other, tmp_path / "run", probes=0, sketch=False)
    assert same.order.tolist() == loop.order.tolist()


def test_a_task_that_was_mended_is_recorded_in_the_same_directory(tmp_path: Path) -> None:
    loop = make("plain")
    _, rec = record(loop, tmp_path / "run")
    wrong = rec.task(model=loop.build, loss=lambda m, b: 2.0 * loop.loss(m, b), data=loop.data)
    with pytest.raises(osc.OrderscopeError, match="does not do what the loop did at step 0"):
        osc.record(wrong, tmp_path / "run", probes=0, sketch=False)
    mended = task_of(rec, loop)
    osc.record(mended, tmp_path / "run", probes=0, sketch=False)
    with pytest.raises(osc.OrderscopeError, match="a task with another loss"):  # what was trained is never replaced
        osc.record(wrong, tmp_path / "run", probes=0, sketch=False)


def test_dropout_in_the_loop_is_refused_in_the_task(tmp_path: Path) -> None:
    loop = make("plain")
    loop.model = nn.Sequential(loop.model, nn.Dropout(0.5))
    loop.opt = torch.optim.SGD(loop.model.parameters(), lr=0.1)
    loop.sched = None
    _, rec = record(loop, tmp_path / "run")
    with pytest.raises(osc.OrderscopeError, match=r"active dropout of 0\.5"):
        rec.task(model=loop.model, loss=loop.loss, data=loop.data)
    silent = copy.deepcopy(loop.model).eval()
    task = rec.task(model=silent, loss=loop.loss, data=loop.data)
    with pytest.raises(osc.OrderscopeError, match="does not do what the loop did at step 0"):
        osc.record(task, tmp_path / "run", probes=0, sketch=False)


def test_groups_added_in_mid_run_end_the_recording_and_keep_what_was_before(tmp_path: Path) -> None:
    loop = make(NAMES[0])
    first, *rest = loop.model.parameters()
    loop.opt, loop.sched = torch.optim.AdamW(rest, lr=1e-3), None
    rec = osc.Recorder(tmp_path / "run", loop.model, loop.opt, anchors=2)
    trained = loop.run(rec, last=3)
    loop.opt.add_param_group({"params": [first]})
    with pytest.warns(UserWarning, match="parameter groups were changed after step 3"):
        loop.run(rec, first=3)
    with pytest.warns(UserWarning, match="recording stopped after step 3"):
        rec.close()
    assert rec.order.tolist() == trained
    assert len(trained) == 3
    assert list(rec.recorded.states) == [0, 3]
    assert len(load_state(rec.recorded.states[3]).theta) == sum(p.numel() for p in rest)
