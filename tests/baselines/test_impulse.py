"""The first-order estimator: an optimizer with a frozen preconditioner is linear, and the sweep is its adjoint."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import orderscope as osc
from law_optimizers import MAKE, STEPS, dynamics
from law_tasks import logistic, permuted_steps, simulated, slope
from orderscope.baselines.impulse import impulse_weights, impulses
from orderscope.engine.optimizers import Dynamics, Start, start_states, step
from tasks_tiny import classifier, cosine, generator, sgd


def sgd_dynamics(seed, start, buffer, **options):
    """SGD over two groups of two coordinates, momentum given."""
    g = np.random.default_rng(seed)
    names = {"momentum": 0.0, "dampening": 0.0, "nesterov": 0.0, "maximize": 0.0} | options
    hyper = {name: np.full((STEPS, 1), float(value)) for name, value in names.items()}
    hyper["lr"] = g.uniform(0.01, 0.3, (STEPS, 1))
    base = dynamics(MAKE["sgd"], start)
    moments = {} if buffer is None else {"momentum_buffer": buffer}
    parts = tuple(dataclasses.replace(part, present=buffer is not None) for part in base.slices)
    return Dynamics("SGD", hyper, Start(start, moments), parts, 3, False, None, 1.0)


@settings(max_examples=40)
@given(
    st.integers(0, 10**6), st.sampled_from([0.0, 0.9]), st.sampled_from([0.0, 0.3]), st.booleans(), st.booleans(),
    st.sampled_from([0.0, 0.2]), st.booleans(),
)  # fmt: skip
def test_sgd_is_linear_in_its_gradients(seed, momentum, dampening, nesterov, maximize, decay, warm):
    """offset + sum_k c_k . g_k is the final value of any linear metric, exactly, for every variant."""
    g = generator(seed)
    nesterov = nesterov and momentum > 0
    start, final = (torch.randn(8, generator=g, dtype=torch.float64) for _ in range(2))
    buffer = torch.randn(8, generator=g, dtype=torch.float64) if warm and momentum else None
    dyn = sgd_dynamics(seed, start, buffer, momentum=momentum, dampening=0.0 if nesterov else dampening,
                       nesterov=nesterov, maximize=maximize, weight_decay=decay)  # fmt: skip
    gradients = torch.randn(STEPS, 8, generator=g, dtype=torch.float64)
    states = start_states(dyn, 1)
    for t in range(STEPS):
        step(dyn, states, gradients[t : t + 1], t, None, None)
    c = impulses(dyn, torch.ones(STEPS, 8, dtype=torch.float64), final)
    value = c.offset + float((c.gradients * gradients).sum())
    assert value == pytest.approx(float(final @ states.theta[0]), rel=1e-9, abs=1e-9)


@given(st.integers(0, 10**6), st.floats(0.0, 0.99), st.floats(0.0, 0.5), st.integers(0, 50))
def test_adam_has_the_impulse_weights_of_the_closed_form(seed, beta1, decay, count):
    """With one preconditioner for all positions, c_k = -w_k D a."""
    g = np.random.default_rng(seed)
    lr = g.uniform(0.01, 0.3, STEPS)
    start = torch.zeros(8, dtype=torch.float64)
    base = dynamics(MAKE["adam"], start)
    hyper = {"lr": lr[:, None], "beta1": np.full((STEPS, 1), beta1), "weight_decay": np.full((STEPS, 1), decay),
             "decoupled": np.ones((STEPS, 1))}  # fmt: skip
    parts = tuple(dataclasses.replace(part, count=float(count)) for part in base.slices)
    dyn = dataclasses.replace(base, hyper=hyper, slices=parts)
    final, d = torch.from_numpy(g.normal(size=8)), torch.from_numpy(g.uniform(0.1, 10, 8))
    c = impulses(dyn, d.repeat(STEPS, 1), final)
    weights = impulse_weights(lr, beta1=beta1, weight_decay=decay, count=count)
    expected = -torch.from_numpy(weights)[:, None] * d * final
    torch.testing.assert_close(c.gradients, expected, rtol=1e-9, atol=1e-12)


def test_impulse_weights_in_words():
    """Without momentum the learning rate, shrunk by the decay that follows; with it, also of the steps that follow."""
    lr = np.array([0.4, 0.2, 0.1])
    np.testing.assert_allclose(impulse_weights(lr, beta1=0.0), lr)
    np.testing.assert_allclose(impulse_weights(lr, beta1=0.0, weight_decay=0.5), [0.4 * 0.9 * 0.95, 0.2 * 0.95, 0.1])
    np.testing.assert_allclose(
        impulse_weights(np.array([0.0, 0.3]), beta1=0.5), [0.5 * 0.3 * 0.5 / 0.75, 0.5 * 0.3 / 0.75]
    )


def test_the_predicted_change_is_right_to_first_order(tmp_path):
    """Under a falling learning rate an order changes the loss by O(lr). That is predicted, and O(lr^2) missed."""
    rates, missed = [0.1, 0.05, 0.025, 0.0125], []
    for i, lr in enumerate(rates):
        kw = logistic() | {
            "optimizer": lambda p, lr=lr: sgd(p, lr=lr, momentum=0.5), "scheduler": cosine(6),
        }  # fmt: skip
        (tmp_path / str(i)).mkdir()
        sim, task = simulated(kw, tmp_path / str(i), anchors=7, probes=0)
        orders = permuted_steps(task.order, 1, 6)
        truth = osc.retrain(task, orders).metrics["eval"]
        predicted = sim.predict(orders, estimator="impulse")
        missed.append(np.abs(predicted.metrics["eval"] - truth).mean())
    assert 1.7 < slope(rates, missed) < 2.6
    change = np.abs(truth - sim.reference["eval"]).mean()
    assert missed[-1] < 0.3 * change


def test_the_reference_order_gives_the_recorded_value(tmp_path):
    sim, task = simulated(classifier() | {"max_grad_norm": 0.5}, tmp_path, anchors=3, probes=1)
    predicted = sim.predict(task.order, estimator="impulse", metrics=["eval"])
    assert predicted.metrics["eval"][0] == sim.reference["eval"]
    assert predicted.cost == 0
    assert not predicted.trusted.any()
    same = sim.predict(task.order, estimator="impulse", metrics=["eval"], lr=sim.window.dynamics.hyper["lr"][:, 0])
    assert same.metrics["eval"][0] == pytest.approx(sim.reference["eval"], abs=1e-6)


def test_other_learning_rates_are_answered_to_first_order(tmp_path):
    """Frozen gradients: a little more of every step goes a little farther along the way."""
    kw = logistic(lr=0.02)
    sim, task = simulated(kw, tmp_path, anchors=7, probes=0)
    lr = np.linspace(0.022, 0.018, 6)
    other = osc.Task(**kw | {"scheduler": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: [*lr, 0][t] / 0.02)})
    true = osc.retrain(other, task.order).metrics["eval"] - sim.reference["eval"]
    mine = sim.predict(task.order, estimator="impulse", lr=lr).metrics["eval"] - sim.reference["eval"]
    assert mine[0] == pytest.approx(true[0], rel=0.15)


def test_regrouped_orders_and_metrics_without_a_gradient(tmp_path):
    sim, task = simulated(classifier(), tmp_path, anchors=3, probes=0, sample_anchors=2)
    order = np.random.default_rng(0).permutation(task.order.reshape(-1)).reshape(task.order.shape)
    predicted = sim.predict(order, estimator="impulse", metrics=["eval", "accuracy"])
    assert np.isfinite(predicted.metrics["eval"]).all()
    assert np.isnan(predicted.metrics["accuracy"]).all()
    with pytest.raises(osc.OrderscopeError, match=r"no stored gradient of accuracy.*: eval.*ask for one of these"):
        sim.predict(order, estimator="impulse", metrics=["accuracy"])
