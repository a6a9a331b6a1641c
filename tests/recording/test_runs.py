"""What a recorded run holds, and that stopping and going on leaves no trace."""

import random
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import torch

import orderscope as osc
from orderscope.recording import runs
from orderscope.recording.runs import record_run
from orderscope.store import RunStore
from orderscope.task.rng import rng_state, set_rng_state
from orderscope.training import load_run, recorded_runs, require_recorded, task_shard
from orderscope.training.loop import start, train
from orderscope.training.state import capture, restore
from tasks_tiny import Rows, adamw, char, classifier, cosine, linear, sgd, squared_error


class Stop(Exception):
    """Stands for whatever ends a recording in the middle."""


def stop_at(step):
    def progress(done, total):
        if done == step:
            raise Stop

    return progress


def record(task, path, boundaries, **options):
    with RunStore.create(path) as store:
        task_shard(task, store)
        return record_run(task, store, "reference", task.order, boundaries, **options)


def contents(path):
    return {f.name: f.read_bytes() for f in path.iterdir() if f.suffix == ".h5" or f.name == "manifest.jsonl"}


def loose(params):
    return torch.optim.AdamW(
        [{"params": params[::2], "lr": 3e-3}, {"params": params[1::2], "weight_decay": 0.2}], lr=1e-3
    )


def freezing(optimizer):
    """From step 4 on the first parameter gets no gradient."""

    def factor(step):
        if step >= 4:
            optimizer.param_groups[0]["params"][0].requires_grad_(False)
        return 1.0 - step / 20

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


TASKS = {
    "sgd": linear,
    "momentum": lambda: linear() | {"optimizer": partial(sgd, momentum=0.9, dampening=0.5), "scheduler": cosine(8)},
    "odd": lambda: classifier(frozen=True, tied=True, counting=True),
    "groups": lambda: classifier() | {"optimizer": loose, "max_grad_norm": 0.1},
    "amsgrad": lambda: classifier() | {"optimizer": partial(adamw, amsgrad=True)},
    "onecycle": lambda: (
        classifier() | {"scheduler": partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.01, total_steps=12)}
    ),
    "freezing": lambda: classifier() | {"scheduler": freezing, "max_grad_norm": 0.5},
    "window": char,
}


@pytest.mark.parametrize("name", TASKS)
def test_stopped_at_any_step_it_ends_with_the_same_bytes(name, tmp_path):
    task = osc.Task(**TASKS[name]())
    boundaries = [0, 2, 5, task.steps]
    metrics = record(task, tmp_path / "whole", boundaries)
    whole = contents(tmp_path / "whole")
    assert metrics == {k: v[0] for k, v in osc.retrain(task, task.order).metrics.items()}
    for step in range(1, task.steps + 1, 2):
        with pytest.raises(Stop):
            record(task, tmp_path / str(step), boundaries, progress=stop_at(step))
        torch.rand(3)  # the resuming process has other random numbers
        assert record(task, tmp_path / str(step), boundaries) == metrics
        assert contents(tmp_path / str(step)) == whole
    assert record(task, tmp_path / "whole", boundaries) == metrics  # nothing left to do


@pytest.mark.parametrize("name", TASKS)
def test_states_are_those_of_the_plain_loop(name, tmp_path):
    task = osc.Task(**TASKS[name]())
    boundaries = [0, 1, 4, task.steps]
    record(task, tmp_path, boundaries)
    with RunStore.open(tmp_path) as store:
        run = load_run(store, "reference")
        session = start(task)
        for k, (first, last) in enumerate(zip([0, *boundaries[:-1]], boundaries, strict=True)):
            train(task, session, task.order, first, last)
            state = run.state(k)
            assert torch.equal(state.theta, task.layout.flatten(session.parameters))
            views = {key: task.layout.unflatten(flat) for key, flat in state.moments.items()}
            for i, (p, n) in enumerate(zip(session.parameters, task.layout.names, strict=True)):
                own = session.optimizer.state.get(p, {})
                assert bool(state.present[i]) == bool(own)
                assert float(state.count[i]) == float(own.get("step", 0))
                for key, by_name in views.items():
                    assert torch.equal(by_name[n], own[key] if own else torch.zeros_like(p))
            for n, buffer in session.model.named_buffers():
                assert torch.equal(state.buffers[n], buffer)


def test_steps_are_what_happened(tmp_path):
    kw = classifier() | {"optimizer": loose, "max_grad_norm": 0.1}
    task = osc.Task(**kw)
    record(task, tmp_path, [0, 3, 10])
    with RunStore.open(tmp_path) as store:
        run = load_run(store, "reference")
    np.testing.assert_array_equal(run.order, task.order)
    assert run.hyper["lr"].shape == (10, 2)
    factor = [0.55 + 0.45 * np.cos(np.pi * t / 10) for t in range(10)]
    torch.testing.assert_close(run.hyper["lr"], torch.tensor(np.outer(factor, [3e-3, 1e-3])))
    assert run.hyper["weight_decay"][0].tolist() == [0.01, 0.2]
    assert {"beta1", "beta2", "eps", "amsgrad", "decoupled", "maximize"} <= run.hyper.keys()
    rare = task.layout.names.index("rare")
    assert not run.has_grad[:, rare].any()
    assert run.has_grad.sum() == 10 * (len(task.layout) - 1)

    session = start(task)
    losses = task.loss(session.model, task.batch(task.order[0]))
    losses.mean().backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in session.parameters]
    assert torch.equal(run.gradient[0], task.layout.flatten(grads))
    assert torch.equal(run.loss[0], losses.detach())
    assert run.grad_norm[0] == torch.nn.utils.clip_grad_norm_(session.model.parameters(), 0.1)
    assert run.grad_norm[0] > 0.1
    assert len(run.metrics) == 3
    assert run.metric_losses("eval").shape == (3, 24)
    assert run.metrics[-1]["eval"] == float(run.metric_losses("eval")[-1].mean())


@pytest.mark.parametrize("scratch", [1 << 22, 0])
def test_some_coordinates(tmp_path, scratch, monkeypatch):
    monkeypatch.setattr(runs._Flat, "SCRATCH", scratch)
    task = osc.Task(**classifier())
    coords = torch.tensor([0, 1, 5, 40, 41, task.layout.size - 1])
    record(task, tmp_path / "some", [0, 4, 10], coords=coords)
    record(task, tmp_path / "all", [0, 4, 10])
    record(task, tmp_path / "none", [0, 4, 10], keep_gradients=False, metrics_at="final")
    some, all_, none = (load_run(RunStore.open(tmp_path / n), "reference") for n in ("some", "all", "none"))
    assert torch.equal(some.gradient, all_.gradient[:, coords])
    torch.testing.assert_close(some.grad_norm, all_.grad_norm)
    assert none.gradient is None
    assert torch.equal(none.loss, all_.loss)
    assert none.metrics[:2] == ({}, {})
    assert none.metrics[2] == all_.metrics[2]
    assert torch.equal(some.theta(coords), all_.theta()[:, coords])
    moments = torch.stack([state.moments.get("exp_avg", torch.zeros(task.layout.size)) for state in all_.states])
    assert torch.equal(some.moment("exp_avg", coords), moments[:, coords])


def test_evaluating_on_the_way_changes_nothing(tmp_path):
    def noisy_metric(model):
        model.eval()
        return float(torch.rand(()) + np.random.rand())

    kw = classifier(counting=True)
    task = osc.Task(**kw | {"metrics": kw["metrics"] | {"noisy": noisy_metric}})
    record(task, tmp_path / "all", [0, 2, 5, 10])
    record(task, tmp_path / "final", [0, 2, 5, 10], metrics_at="final")
    everywhere, final = (load_run(RunStore.open(tmp_path / n), "reference") for n in ("all", "final"))
    for a, b in zip(everywhere.states, final.states, strict=True):
        assert torch.equal(a.theta, b.theta)
        assert torch.equal(a.buffers["calls"], b.buffers["calls"])
    assert [int(s.buffers["calls"]) for s in final.states] == [0, 2, 5, 10]
    assert everywhere.metrics[-1] == final.metrics[-1]


def test_restored_session_trains_on_alike():
    task = osc.Task(**classifier(tied=True, counting=True))
    session = start(task)
    train(task, session, task.order, 0, 6)
    other = start(task)
    restore(other, capture(session), 6)
    for s in (session, other):
        train(task, s, task.order, 6, task.steps)
    assert torch.equal(task.layout.flatten(session.parameters), task.layout.flatten(other.parameters))
    assert session.optimizer.param_groups[0]["lr"] == other.optimizer.param_groups[0]["lr"]


def test_parameters_without_gradient_in_some_steps(tmp_path):
    task = osc.Task(**TASKS["freezing"]())
    record(task, tmp_path, [0, 6, 10])
    run = load_run(RunStore.open(tmp_path), "reference")
    assert run.has_grad[:, 0].tolist() == [True] * 4 + [False] * 6
    assert not run.gradient[4:, : task.layout.sizes[0]].any()
    assert run.count[-1, [0, 2]].tolist() == [4, 10]


def test_all_random_numbers_go_on_where_they_were():
    def draw():
        return torch.rand(2).tolist(), np.random.normal(size=3).tolist(), random.gauss(0, 1), random.random()

    random.gauss(0, 1)
    np.random.normal()  # both keep a spare number
    before = rng_state()
    first = draw()
    set_rng_state(before)
    assert draw() == first


def test_bfloat16_round_trip(tmp_path):
    def build():
        return linear()["model"]().bfloat16()

    def loss(model, batch):
        return squared_error(model, (batch[0].bfloat16(), batch[1])).float()

    task = osc.Task(**linear() | {"model": build, "loss": loss, "optimizer": partial(sgd, momentum=0.9)})
    record(task, tmp_path, [0, 3, 8])
    run = load_run(RunStore.open(tmp_path), "reference")
    assert run.theta().dtype == run.moment("momentum_buffer").dtype == run.gradient.dtype == torch.bfloat16
    truth = osc.retrain(task, task.order, keep_parameters=True)
    assert torch.equal(run.theta()[-1], truth.parameters[0])


def test_callers_random_numbers_are_left_alone(tmp_path):
    task = osc.Task(**classifier())
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    record(task, tmp_path, [0, 10])
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_several_runs_and_the_task_in_one_store(tmp_path):
    task = osc.Task(**char())
    with RunStore.create(tmp_path) as store:
        task_shard(task, store)
        record_run(task, store, "reference", task.order, [0, 9])
        record_run(task, store, "probe-0", task.order[::-1], [0, 4, 9])
        task_shard(task, store)
    with RunStore.open(tmp_path) as store:
        assert recorded_runs(store) == ["reference", "probe-0"]
        np.testing.assert_array_equal(load_run(store, "probe-0").order, task.order[::-1])
        attrs = store.attrs("record/task")
        assert attrs["parameters"][0] == {"name": "tok.weight", "shape": [16, 8], "group": 0}
        assert (attrs["optimizer"], attrs["warm"], attrs["max_grad_norm"]) == ("AdamW", True, 1.0)
        assert attrs["environment"]["torch"] == torch.__version__
        assert sum(np.prod(p["shape"]) for p in attrs["parameters"]) == attrs["size"] == task.layout.size
        np.testing.assert_array_equal(store.read("record/task")["group_codes"], task.group_codes)
        require_recorded(task, store)


def test_another_task_is_named_and_nothing_written_over(tmp_path):
    kw = classifier()
    record(osc.Task(**kw), tmp_path, [0, 5, 10])
    before = contents(tmp_path)
    other = osc.Task(**kw | {"scheduler": None, "data": Rows(kw["data"].columns[0] + 1, kw["data"].columns[1])})
    with pytest.raises(osc.OrderscopeError, match="a task with another data, schedule"):
        record(other, tmp_path, [0, 5, 10])
    assert contents(tmp_path) == before


def test_another_recording_under_the_same_name(tmp_path):
    task = osc.Task(**classifier())
    record(task, tmp_path, [0, 5, 10])
    with RunStore.create(tmp_path) as store:
        for order, boundaries in ((task.order[::-1], [0, 5, 10]), (task.order, [0, 4, 10])):
            with pytest.raises(osc.OrderscopeError, match="run 'reference' recorded with another order"):
                record_run(task, store, "reference", order, boundaries)


def test_unfinished_runs_are_told(tmp_path):
    task = osc.Task(**classifier())
    with pytest.raises(Stop):
        record(task, tmp_path, [0, 5, 10], progress=stop_at(7))
    with RunStore.open(tmp_path) as store:
        with pytest.raises(osc.IncompleteRun, match="run 'reference' recorded up to step 5 of 10"):
            load_run(store, "reference")
        with pytest.raises(osc.IncompleteRun, match="run 'probe-0' recorded not at all"):
            load_run(store, "probe-0")


def test_not_finite(tmp_path):
    kw = linear()
    x, y = (c.clone() for c in kw["data"].columns)
    bad = int(kw["order"][4][2])
    y[bad] = torch.inf
    task = osc.Task(**kw | {"data": Rows(x, y)})
    with pytest.raises(
        osc.OrderscopeError, match=rf"a loss that is not finite in run 'reference' at step 4 \(sample ids \[{bad}\]"
    ):
        record(task, tmp_path / "loss", [0, 3, 8])
    kept = [n for n in contents(tmp_path / "loss") if "segment" in n]
    assert len(kept) == 2

    def root(model, batch):
        return squared_error(model, batch).clamp(min=0).sqrt()  # its gradient at zero is not finite

    def build():
        model = kw["model"]()
        torch.nn.init.zeros_(model.weight)
        torch.nn.init.zeros_(model.bias)
        return model

    y = kw["data"].columns[1].clone()
    y[bad] = 0.0
    still = kw | {"data": Rows(x, y), "model": build, "loss": root, "optimizer": partial(sgd, lr=0.0)}
    with pytest.raises(osc.OrderscopeError, match=r"a gradient that is not finite .* at step 4 .*first in 'weight'"):
        record(osc.Task(**still), tmp_path / "gradient", [0, 3, 8])
    task = osc.Task(**kw | {"metrics": {"bad": lambda model: float("nan")}})
    with pytest.raises(osc.OrderscopeError, match="metric 'bad' = nan in run 'reference' after step 0"):
        record(task, tmp_path / "metric", [0, 8])


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (torch.optim.RMSprop, r"optimizer torch.optim.rmsprop.RMSprop; expected one of torch.optim's SGD, Adam, AdamW"),
        (type("AdamW", (torch.optim.AdamW,), {}), "optimizer .*AdamW; expected one of"),
        (partial(adamw, differentiable=True, foreach=False), "differentiable=True"),
        (partial(adamw, capturable=True), "capturable=True"),
    ],
)
def test_optimizers_that_cannot_be_carried(optimizer, message, tmp_path):
    task = osc.Task(**linear() | {"optimizer": optimizer})
    with pytest.raises(osc.OrderscopeError, match=message):
        record(task, tmp_path, [0, 8])


@pytest.mark.parametrize("boundaries", [[0], [0, 5], [2, 8], [0, 5, 5, 8], [0, 9]])
def test_boundaries(boundaries, tmp_path):
    task = osc.Task(**linear())
    with pytest.raises(osc.OrderscopeError, match="ascending steps from 0 to 8"):
        record(task, tmp_path, boundaries)


@pytest.mark.parametrize("coords", [[1, 0], [0, 0], [0, 4], [-1, 2], [0.5]])
def test_coords(coords, tmp_path):
    task = osc.Task(**linear())
    with pytest.raises(osc.OrderscopeError, match="ascending int64 indices below 4"):
        record(task, tmp_path, [0, 8], coords=torch.tensor(coords))


def test_of_another_order_only_the_end_is_written(tmp_path):
    task = osc.Task(**classifier(counting=True))
    record(task, tmp_path / "run", [0, 5, 10])
    order = task.order[::-1].copy()
    with RunStore.create(tmp_path / "run") as store:
        record_run(task, store, "probe-0", order, [0, 10], whole=False)
        reference, probe = load_run(store, "reference"), load_run(store, "probe-0")
        assert {"theta", "state:exp_avg"}.isdisjoint(store.read("record/probe-0/segment-000"))
        assert "state:exp_avg" not in store.read("record/probe-0/segment-001")
    start_of, end_of = probe.state(0), osc.retrain(task, order, keep_parameters=True)
    assert torch.equal(start_of.theta, reference.state(0).theta)
    assert torch.equal(start_of.buffers["calls"], reference.state(0).buffers["calls"])
    assert torch.equal(probe.theta()[0], start_of.theta)
    assert torch.equal(probe.theta()[1], end_of.parameters[0])
    assert [probe.is_whole(k) for k in (0, 1)] == [True, False]
    for ask in (lambda: probe.state(1), lambda: probe.moment("exp_avg"), lambda: probe.states):
        with pytest.raises(osc.IncompleteRun, match="segment-001 without the optimizer"):
            ask()


def test_another_start_than_the_references_is_written(tmp_path):
    task = osc.Task(**classifier())
    with RunStore.create(tmp_path / "run") as store:
        task_shard(task, store)
        record_run(task, store, "probe-0", task.order, [0, 10], whole=False)  # no reference yet
        record_run(task, store, "reference", task.order, [0, 10])
        record_run(task, store, "probe-1", task.order, [0, 10], whole=False)
        kept = [set(store.read(f"record/probe-{i}/segment-000")) for i in (0, 1)]
        runs_ = [load_run(store, name) for name in ("probe-0", "probe-1")]
    assert "theta" in kept[0]
    assert "theta" not in kept[1]
    assert torch.equal(runs_[0].theta(), runs_[1].theta())


def test_where_there_are_no_moments_a_state_is_whole(tmp_path):
    task = osc.Task(**linear())
    record(task, tmp_path / "run", [0, task.steps])
    with RunStore.create(tmp_path / "run") as store:
        record_run(task, store, "probe-0", task.order, [0, task.steps], whole=False)
        ends = [load_run(store, name).states[-1] for name in ("reference", "probe-0")]
    assert torch.equal(ends[0].theta, ends[1].theta)
    assert ends[1].moments == {}


def test_a_run_that_keeps_no_moments_goes_on_from_inside(tmp_path):
    task, at = osc.Task(**classifier()), [0, 5, 10]
    for name, stop in (("straight", None), ("stopped", 7)):
        with RunStore.create(tmp_path / name) as store:
            task_shard(task, store)
            for progress in [stop_at(stop), None] if stop else [None]:
                with suppress(Stop):
                    record_run(task, store, "probe-0", task.order, at, whole=False, progress=progress)
    assert contents(tmp_path / "straight") == contents(tmp_path / "stopped")
