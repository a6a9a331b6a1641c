"""Schedules as what-ifs: the search over them, against true training, and the curve they are compared with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import orderscope as osc
import tasks_tiny
from law_tasks import permuted_steps, simulated
from orderscope.baselines.annealing import AnnealingLaw, areas, fit_annealing_law
from orderscope.baselines.learning_curve import PowerLaw, fit_power_law
from orderscope.schedules import cosine, linear, refined
from orderscope.search.rates import RateProposal, neighbours_of, position_effect, propose_rates, with_rates


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> osc.Simulator:
    return simulated(tasks_tiny.char(steps=12), tmp_path_factory.mktemp("rates"), anchors=4, probes=4)[0]


@pytest.fixture(scope="module")
def found(sim: osc.Simulator) -> RateProposal:
    return propose_rates(sim, verify=2, peaks=(0.5, 1.0, 2.0))


def test_a_task_with_other_rates_trains_at_them(sim: osc.Simulator) -> None:
    assert sim.task is not None
    rates = cosine(12, 3e-3, warmup=2)
    other = with_rates(sim.task, rates)
    optimizer = other.build_optimizer(other.build_model())
    scheduler, seen = other.build_scheduler(optimizer), []
    for _ in range(12):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(seen, rates, rtol=1e-12)


def test_the_recorded_rates_retrain_to_the_reference(sim: osc.Simulator) -> None:
    from orderscope.training import load_run

    assert sim.task is not None
    recorded = load_run(sim.store, "reference").hyper["lr"][:, 0].numpy()
    true = osc.retrain(with_rates(sim.task, recorded), sim.order).metrics["eval"][0]
    assert true == pytest.approx(sim.reference["eval"], rel=1e-5)


def test_ranks_schedules_as_true_training_does(sim: osc.Simulator, found: RateProposal) -> None:
    assert sim.task is not None
    rng = np.random.default_rng(0)
    some = [found.table[i] for i in rng.permutation(len(found.table))[:16]]
    true = [osc.retrain(with_rates(sim.task, s.rates), sim.order).metrics["eval"][0] for s in some]
    assert spearmanr([s.predicted for s in some], true)[0] > 0.85


def test_beats_the_recorded_schedule_truly(sim: osc.Simulator, found: RateProposal) -> None:
    assert sim.task is not None
    assert found.confirmed is not None
    assert found.confirmed < sim.reference["eval"]
    true = osc.retrain(with_rates(sim.task, found.rates), found.order).metrics["eval"][0]
    assert true == found.confirmed
    assert sum(row.confirmed is not None for row in found.table) == 2
    for kind in ("cosine", "linear", "rex", "stable_then_decay", "constant", "re-warmed", "refined", "recorded"):
        assert any(row.name.startswith(kind) for row in found.table)


def test_with_orders_too(sim: osc.Simulator) -> None:
    orders = np.concatenate([sim.order[None], permuted_steps(sim.order, 3, 2)])
    joint = propose_rates(sim, orders=orders, verify=1, peaks=(1.0,))
    assert {row.order for row in joint.table} == {0, 1, 2}
    assert joint.confirmed is not None
    assert joint.confirmed <= sim.reference["eval"]
    assert (np.sort(joint.order, axis=None) == np.sort(sim.order, axis=None)).all()


def test_without_the_task_nothing_is_confirmed(sim: osc.Simulator) -> None:
    told = propose_rates(osc.Simulator(sim.path), peaks=(1.0,))
    assert told.confirmed is None
    assert any("needs the task" in note for note in told.notes)


def test_neighbours_stay_near(found: RateProposal) -> None:
    for rates in neighbours_of(found.table[0], found.rates, np.random.default_rng(0)).values():
        assert (rates >= 0).all()
        assert 0.3 < np.median(rates[found.table[0].rates > 0] / found.table[0].rates[found.table[0].rates > 0]) < 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "bleu"}, "metric 'bleu'; expected one of eval"),
        ({"verify": -1}, "verify=-1"),
        ({"peaks": ()}, "peaks="),
        ({"peaks": (0.0,)}, "peaks="),
    ],
)
def test_wrong_questions(sim: osc.Simulator, options: dict, message: str) -> None:
    with pytest.raises(osc.OrderscopeError, match=message):
        propose_rates(sim, **options)


def test_the_law_is_found_again() -> None:
    """On losses that follow it exactly, and at a schedule that was not fitted."""
    rates = linear(60, 0.3)
    true = AnnealingLaw(floor=1.0, scale=0.8, alpha=0.5, annealing=0.02, before=4.0, unit=0.3, residual=0.0)
    found = fit_annealing_law(np.r_[9.9, true.losses(rates)[:-1]], rates)
    assert found is not None
    assert found.residual < 1e-9
    np.testing.assert_allclose(found.losses(cosine(60, 0.3)), true.losses(cosine(60, 0.3)), rtol=1e-6)
    assert fit_annealing_law(np.ones(4), np.ones(4)) is None
    assert fit_annealing_law(np.ones(20), np.zeros(20)) is None


def test_the_learning_curve_is_found_again_and_goes_on() -> None:
    """On losses that follow it exactly, beyond the steps that it was fitted to; noise moves its end by little."""
    true = PowerLaw(floor=1.0, scale=0.8, alpha=0.5, before=4.0, residual=0.0)
    losses = true.losses(np.arange(60))
    found = fit_power_law(losses)
    assert found is not None
    assert found.residual < 1e-9
    np.testing.assert_allclose(found.losses(np.array([120, 600])), true.losses(np.array([120, 600])), rtol=1e-6)
    noisy = fit_power_law(losses + 0.01 * np.random.default_rng(0).normal(size=60))
    assert noisy is not None
    assert abs(noisy.losses(np.array([120]))[0] - true.losses(np.array([120]))[0]) < 0.03
    assert fit_power_law(np.ones(4)) is None
    assert fit_power_law(np.linspace(1, 2, 20)) is None


def test_annealing_counts_falls_of_the_rate() -> None:
    assert (areas(np.ones(5), 0.0)[1] == 0).all()
    area, momentum = areas(np.array([1.0, 0.5, 0.5]), 2.0)
    np.testing.assert_allclose(area, [3.0, 3.5, 4.0])
    np.testing.assert_allclose(momentum, [0.0, 0.5, 0.5 + 0.99 * 0.5])


def test_position_and_batch_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    position, batch = np.linspace(3, 2, 10), rng.normal(size=10)
    units = np.stack([rng.permutation(10) for _ in range(6)])
    found = position_effect(position + batch[units], units)
    np.testing.assert_allclose(found - found.mean(), position - position.mean(), atol=1e-6)


def test_refined_spends_more_where_gradients_are_small() -> None:
    even, uneven = np.ones(40), np.r_[np.ones(20), np.full(20, 4.0)]
    np.testing.assert_allclose(refined(even, 2.0), 2.0 * (1 - np.arange(40) / 39))
    assert refined(uneven, 1.0)[25] < refined(even, 1.0)[25]
    # for plain SGD the weight is squared
    assert refined(uneven, 1.0, adam=False)[25] < refined(uneven, 1.0)[25]
    with pytest.raises(osc.OrderscopeError, match="gradient norms"):
        refined(np.array([1.0, np.nan]), 1.0)
    assert torch.isfinite(torch.tensor(refined(np.r_[np.zeros(5), np.ones(5)], 1.0))).all()
