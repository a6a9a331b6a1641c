"""Training on a few samples of each batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import orderscope as osc
import tasks_tiny
from orderscope.baselines import proxy
from orderscope.baselines.proxy import few_of, samples_used, slope, slopes_without_each, train_few
from orderscope.engine.driven import recorded_dynamics
from orderscope.engine.optimizers import Dynamics
from orderscope.sketching import SketchPlan, draw_coordinates
from orderscope.store import RunStore

KINDS = {
    "sgd": lambda: tasks_tiny.linear(steps=6),
    "momentum": lambda: tasks_tiny.linear(steps=6) | {"optimizer": lambda p: tasks_tiny.sgd(p, momentum=0.9)},
    "adamw": lambda: tasks_tiny.classifier(steps=6),
    "clipped": lambda: tasks_tiny.classifier(steps=6) | {"max_grad_norm": 0.5},
    "attention": lambda: tasks_tiny.char(steps=4),
}


def recorded(kw: dict, path) -> tuple[osc.Task, Dynamics]:
    task = osc.Task(**kw)
    osc.record(task, path, probes=0)
    store = RunStore.open(path)
    plan = SketchPlan.read(store)
    return task, recorded_dynamics(store, draw_coordinates(plan.size, plan.size, 0))


def shuffled(order: np.ndarray, count: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.stack([rng.permutation(order.ravel()).reshape(order.shape) for _ in range(count)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("together", [True, False])
def test_all_samples_are_training(kind: str, together: bool, tmp_path, monkeypatch) -> None:
    """Orders side by side, or one after the other, come to where the plain loop comes to."""
    task, dynamics = recorded(KINDS[kind](), tmp_path / "run")
    if not together:
        monkeypatch.setattr(proxy, "SMALL", 0)
    orders = shuffled(task.order, 3)
    truth = osc.retrain(task, orders, keep_parameters=True)
    found = train_few(task, dynamics, orders, tuple(task.metrics))
    assert truth.parameters is not None
    torch.testing.assert_close(found.theta, truth.parameters, rtol=1e-4, atol=1e-3)  # Adam divides rounding by rounding
    for name, values in truth.metrics.items():
        np.testing.assert_allclose(found.values[name], values, rtol=1e-4)
        if not together:
            np.testing.assert_array_equal(found.values[name], values)


def test_together_is_as_alone_on_a_few_samples(tmp_path, monkeypatch) -> None:
    task, dynamics = recorded(tasks_tiny.classifier(steps=6), tmp_path / "run")
    orders = shuffled(task.order, 9)[..., :2]
    rates = np.broadcast_to(0.5 * dynamics.hyper["lr"], (9, *dynamics.hyper["lr"].shape))
    together = train_few(task, dynamics, orders, ("eval",), rates)
    monkeypatch.setattr(proxy, "SMALL", 0)
    alone = train_few(task, dynamics, orders, ("eval",), rates)
    torch.testing.assert_close(together.theta, alone.theta, rtol=1e-4, atol=1e-5)


class Counting(nn.Linear):
    """Has a buffer that it writes to, which vmap cannot take."""

    def __init__(self) -> None:
        super().__init__(3, 1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += x.sum().detach() * 0 + 1
        return super().forward(x)


def test_what_vmap_cannot_take_is_trained_alone(tmp_path) -> None:
    kw = tasks_tiny.linear(steps=4)
    kw["model"] = lambda: (torch.manual_seed(0), Counting())[1]
    task = osc.Task(**kw)
    _, dynamics = recorded(tasks_tiny.linear(steps=4), tmp_path / "run")
    orders = shuffled(task.order, 2)
    found = train_few(task, dynamics, orders, ("eval",))
    np.testing.assert_array_equal(found.values["eval"], osc.retrain(task, orders).metrics["eval"])


def test_a_batch_has_the_same_few_wherever_it_stands() -> None:
    rng = np.random.default_rng(0)
    order, ranks = rng.permutation(32).reshape(4, 8), rng.permutation(32)
    few, moved = few_of(order, 3, ranks), few_of(order[::-1, ::-1], 3, ranks)
    assert [set(ids) for ids in few] == [set(ids) for ids in moved[::-1]]
    np.testing.assert_array_equal(few_of(order, 8, ranks), order)
    for ids, some in zip(order, few, strict=True):
        assert ranks[some].max() == np.sort(ranks[ids])[2]


def test_a_sample_with_the_lowest_rank_is_used_in_every_grouping() -> None:
    rng = np.random.default_rng(0)
    ranks = rng.permutation(32)
    for _ in range(5):
        assert int(ranks.argmin()) in few_of(rng.permutation(32).reshape(4, 8), 1, ranks)


@pytest.mark.parametrize("effort", [0, -0.5, 1.5, float("nan")])
def test_an_effort_is_a_share(effort: float) -> None:
    with pytest.raises(osc.OrderscopeError, match="share of each batch"):
        samples_used(effort, 16)


def test_there_is_always_a_sample() -> None:
    assert [samples_used(e, 16) for e in (1e-9, 0.125, 0.5, 1)] == [1, 2, 8, 16]


def test_slopes_without_each_run_are_of_the_others() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6))
    found = slopes_without_each(x, y)
    for i in range(6):
        assert found[i] == pytest.approx(slope(np.delete(x, i), np.delete(y, i)))
    assert slope(np.zeros(3), y[:3]) == 1
    assert len(slopes_without_each(np.zeros(0), np.zeros(0))) == 0
