"""Learning rates of parameter groups: one rule, everywhere."""

import numpy as np
import pytest
import torch

import orderscope as osc
from orderscope.search.rates import propose_rates, with_rates
from orderscope.task.hyper import group_rates, leading_rates
from tasks_tiny import classifier

RECORDED = np.array([[0.0, 0.0, 0.0], [0.0, 0.2, 0.1], [0.1, 0.2, 0.0], [0.1, 0.2, 0.4]])


def test_ratios_to_the_first_group_above_zero_and_zero_stays_zero():
    given = np.array([0.5, 0.4, 0.2, 0.1])
    expected = [[0.0, 0.5, 0.25], [0.0, 0.4, 0.2], [0.2, 0.4, 0.0], [0.1, 0.2, 0.4]]
    np.testing.assert_allclose(group_rates(given, RECORDED, 1)[0], expected)
    np.testing.assert_allclose(leading_rates(RECORDED), [0.0, 0.2, 0.1, 0.1])
    np.testing.assert_allclose(group_rates(leading_rates(RECORDED), RECORDED, 1)[0], RECORDED)


def test_the_shapes_it_takes():
    of_groups = np.random.default_rng(0).uniform(size=(4, 3))
    assert np.array_equal(group_rates(of_groups, RECORDED, 2), np.stack([of_groups] * 2))
    assert np.array_equal(group_rates(np.stack([of_groups] * 5), RECORDED, 5), np.stack([of_groups] * 5))
    rows = np.random.default_rng(1).uniform(size=(2, 4))
    for row, found in zip(rows, group_rates(rows, RECORDED, 2), strict=True):
        assert np.array_equal(found, group_rates(row, RECORDED, 1)[0])
    square = np.full((4, 4), 0.1)  # four orders of four steps, or four steps of four groups
    both = group_rates(square, np.tile([0.1, 0.2, 0.1, 0.1], (4, 1)), 4)
    assert np.allclose(both[..., 1], 0.2)
    assert np.array_equal(group_rates([0.3, 0.3], np.zeros((2, 1)), 1)[0], [[0.3], [0.3]])


@pytest.mark.parametrize("lr", [np.ones(3), np.ones((3, 4)), np.ones((1, 2, 3)), -np.ones(4), np.full(4, np.nan), 0.1])
def test_anything_else_is_refused(lr):
    with pytest.raises(
        osc.OrderscopeError, match=r"\[4\] or \[2, 4\], or \[4, 3\] or \[2, 4, 3\] for each parameter group"
    ):
        group_rates(lr, RECORDED, 2)


def grouped(low, high, warm_up=0):
    def optimizer(params):
        groups = [{"params": params[:4], "lr": low}, {"params": params[4:], "lr": high}]
        return torch.optim.AdamW(groups, lr=0.1)

    def schedule(built):
        return torch.optim.lr_scheduler.LambdaLR(built, lambda t: min(1.0, t / warm_up if warm_up else 1.0))

    return osc.Task(**classifier() | {"optimizer": optimizer, "scheduler": schedule})


@pytest.mark.parametrize(
    ("recorded", "other"),
    [
        ((0.002, 0.02), (0.001, 0.01)),  # ratios are kept
        ((0.0, 0.02), (0.0, 0.01)),  # a group at 0 stays at 0
        ((0.02, 0.0), (0.01, 0.0)),
        ((0.0, 0.02, 4), (0.0, 0.01, 4)),  # a warm-up from 0
    ],
)
def test_predicted_rates_are_those_of_the_task_that_has_them(recorded, other, tmp_path):
    task, truth = grouped(*recorded), grouped(*other)
    sim = osc.Simulator(osc.record(task, tmp_path / "run", probes=4, jobs=1).path, task)
    steps, lead = len(sim.order), leading_rates(sim.window.dynamics.hyper["lr"])
    orders = np.stack([sim.order, sim.order[::-1], np.roll(sim.order, 3, 0)])
    true = osc.retrain(truth, orders).metrics["eval"]
    climb = np.minimum(1.0, np.arange(steps) / other[2]) if len(other) > 2 else np.ones(steps)
    of_groups = climb[:, None] * np.array(other[:2])
    for lr in (lead / 2, np.stack([lead / 2] * 3), of_groups, np.stack([of_groups] * 3)):
        predicted = sim.predict(orders, lr=lr, metrics=["eval"]).metrics["eval"]
        moved = np.abs(true - sim.reference["eval"]).mean()
        assert np.abs(predicted - true).mean() < 0.25 * moved
        np.testing.assert_allclose(osc.retrain(task, orders, lr=lr).metrics["eval"], true, rtol=1e-6)
        np.testing.assert_allclose(osc.retrain(with_rates(task, lead / 2), orders).metrics["eval"], true, rtol=1e-6)
    for estimator in ("impulse", "replay", "fut2"):
        one, many = (
            sim.predict(orders, estimator, lr=lr, metrics=["eval"]).metrics["eval"] for lr in (lead / 2, of_groups)
        )
        np.testing.assert_allclose(one, many, rtol=1e-5)


def test_a_search_for_rates_keeps_a_group_at_zero(tmp_path):
    task = grouped(0.0, 0.02)
    sim = osc.Simulator(osc.record(task, tmp_path / "run", probes=3, jobs=1).path, task)
    found = propose_rates(sim, "eval", verify=1, peaks=(0.5, 1.0))
    assert found.rates.max() > 0
    best = osc.retrain(task, found.order, lr=found.rates, keep_parameters=True)
    start = dict(task.build_model().named_parameters())
    assert best.parameters is not None
    end = task.layout.unflatten(best.parameters)
    frozen = [name for name, group in zip(task.layout.names, task.layout.group, strict=True) if group == 0]
    for name in frozen:
        assert torch.equal(end[name][0], start[name])
    if found.confirmed is not None:
        assert best.metrics["eval"][0] == pytest.approx(found.confirmed)
