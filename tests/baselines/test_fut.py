"""The seed method, FUT and FUT++: what it promises, and the weaknesses it is known for."""

import numpy as np
import pytest
import torch

import orderscope as osc
from law_optimizers import OPTIMIZERS, two_groups
from law_tasks import branching, double, permuted_steps, quadratic, simulated, slope
from orderscope.baselines import estimators as baselines
from orderscope.baselines.direction import direction_at
from orderscope.baselines.estimators import seed_estimate
from orderscope.baselines.fut import ExactUpdates, ReferencePath, SeedOptions, SeedTable, expand, replay_seed
from orderscope.engine.batches import Batches
from tasks_tiny import Rows, char, classifier, generator, linear, sgd

EXACT = SeedOptions(derivative="exact")


def path_of(kw, tmp_path, **options):
    sim, task = simulated(kw, tmp_path, **({"anchors": 2, "probes": 0, "sample_anchors": 0} | options))
    return ReferencePath(task, sim.window.dynamics), sim, task


def final_weights(made, task, orders, lr=None):
    index, new = Batches(task.order).index(orders)
    return replay_seed(made, index, new, lr)[0]


def test_expansions_of_a_polynomial():
    at, along = torch.tensor([1.0, 2.0]), torch.tensor([1.0, -1.0])
    value, first, second = expand(lambda x: x**3, at, along, 2)
    assert value.tolist() == [1.0, 8.0]
    assert first.tolist() == [3.0, -12.0]
    assert second.tolist() == [6.0, 12.0]
    assert len(expand(torch.sin, at, along, 0)) == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_direction_is_the_optimizers_own_step(name, tmp_path):
    """theta_{t+1} = theta_t - lr_t Gamma at every step of the reference run, in float64."""
    path, sim, task = path_of(double(classifier(steps=5)) | {"optimizer": OPTIMIZERS[name]}, tmp_path)
    spread = torch.tensor(task.layout.group).repeat_interleave(torch.tensor(task.layout.sizes))
    for t in range(task.steps):
        lr = torch.from_numpy(sim.window.dynamics.hyper["lr"][t])[spread]
        after = path.states[t].theta - lr * path.updates[t]
        torch.testing.assert_close(after, path.states[t + 1].theta, rtol=1e-10, atol=1e-12)


def test_the_direction_of_clipped_steps_and_of_parameters_that_skip_some(tmp_path):
    path, sim, task = path_of(double(branching()) | {"max_grad_norm": 0.3}, tmp_path)
    skipped = 0
    for t in range(task.steps):
        after = path.states[t].theta - float(sim.window.dynamics.hyper["lr"][t, 0]) * path.updates[t]
        torch.testing.assert_close(after, path.states[t + 1].theta, rtol=1e-10, atol=1e-12)
        skipped += int((path.steps[t] == 0).sum())
    assert skipped


# Not FUT++ on the transformer: torch's third derivative of layer_norm is wrong (2.13; slope 2 instead of 3).
@pytest.mark.parametrize(("make", "order"), [(classifier, 0), (classifier, 1), (classifier, 2), (char, 0), (char, 1)])
def test_an_expanded_update_is_off_by_the_next_power_of_the_displacement(make, order, tmp_path):
    """Slope 1 without derivatives, 2 for FUT, 3 for FUT++, for Gamma of another batch with warm moments."""
    path, _, task = path_of(double(make()), tmp_path)
    t = task.steps // 2
    update = path.update_function(t, task.order[t + 1])
    theta = path.states[t].theta
    direction = torch.randn(task.layout.size, generator=generator(1), dtype=torch.float64)
    # Adam's root is not smooth where the second moment vanishes: coordinates that never moved stay where they are.
    direction *= path.states[t].moments["exp_avg_sq"] > 0
    sizes, errors = [1e-4, 5e-5, 2.5e-5], []
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for size in sizes:
            terms = expand(update, theta, size * direction, order)
            expanded = sum(term / max(1, n) for n, term in enumerate(terms))
            errors.append(float((expanded - update(theta + size * direction)).norm()))
    assert order + 0.7 < slope(sizes, errors) < order + 1.3


@pytest.mark.parametrize("options", [EXACT, SeedOptions(), SeedOptions(order=2), SeedOptions(order=2, share=1.0)])
@pytest.mark.parametrize("make", [lambda: classifier(steps=4), lambda: branching(steps=4), lambda: char(steps=4)])
def test_the_reference_order_is_exact(make, options, tmp_path):
    sim, task = simulated(make(), tmp_path, anchors=2, probes=0, sample_anchors=0)
    values, cost = seed_estimate(sim, task.order[None], ("eval",), None, options)
    assert values["eval"][0] == pytest.approx(sim.reference["eval"], abs=1e-6)
    assert cost >= task.steps or options.derivative == "exact"


def test_plain_sgd_on_a_quadratic_is_exact_with_exact_derivatives(tmp_path):
    """There are no moments to be wrong, and the update is affine: any order, samples regrouped too, any schedule."""
    path, _, task = path_of(quadratic(), tmp_path)
    made = ExactUpdates(path, EXACT)
    rng = np.random.default_rng(3)
    regrouped = rng.permutation(task.order.reshape(-1)).reshape(1, *task.order.shape)
    orders = np.concatenate([permuted_steps(task.order, 1, 2), regrouped])
    truth = osc.retrain(task, orders, keep_parameters=True).parameters
    torch.testing.assert_close(final_weights(made, task, orders), truth, rtol=1e-9, atol=1e-9)
    lr = np.linspace(0.06, 0.0, 6)
    other = osc.Task(
        **quadratic() | {"scheduler": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: [*lr, 0][t] / 0.05)}
    )
    truth = osc.retrain(other, orders, keep_parameters=True).parameters
    theta = final_weights(made, task, orders, np.tile(lr, (3, 1)))
    torch.testing.assert_close(theta, truth, rtol=1e-9, atol=1e-9)


def test_it_does_not_carry_the_new_orders_momentum(tmp_path):
    """The known weakness: with momentum even exact derivatives of an affine update are not enough."""
    path, _, task = path_of(quadratic(momentum=0.9, lr=0.02), tmp_path)
    orders = permuted_steps(task.order, 1, 3)
    truth = osc.retrain(task, orders, keep_parameters=True).parameters
    theta = final_weights(ExactUpdates(path, EXACT), task, orders)
    assert (theta - truth).norm() > 0.3 * (truth - path.states[-1].theta).norm()


def separable():
    """Every sample sees one coordinate, so that the Hessian is a diagonal: what differences along the path assume."""
    steps, batch, width = 6, 4, 4
    g = generator(5)
    x = torch.eye(width, dtype=torch.float64).repeat(steps, 1) * torch.rand(steps * batch, 1, generator=g).double()
    y = torch.randn(len(x), generator=g, dtype=torch.float64)
    kw = quadratic(steps, batch, width)
    return kw | {"data": Rows(x, y), "order": np.arange(len(x)).reshape(steps, batch), "model": without_bias(width)}


def without_bias(width):
    def build():
        model = torch.nn.Linear(width, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            model.weight.fill_(0.3)
        return model

    return build


@pytest.mark.parametrize("order", [1, 2])
def test_differences_along_the_path_are_exact_for_a_diagonal_quadratic(order, tmp_path):
    path, _, task = path_of(separable(), tmp_path)
    table = SeedTable(path, SeedOptions(order=order, share=1.0, damping=1e-6))
    orders = permuted_steps(task.order, 2, 3)
    truth = osc.retrain(task, orders, keep_parameters=True).parameters
    torch.testing.assert_close(final_weights(table, task, orders), truth, rtol=1e-6, atol=1e-8)
    without = final_weights(SeedTable(path, SeedOptions(order=0, share=1.0)), task, orders)
    assert (without - truth).norm() > 3e-4


def test_a_projected_table_gives_back_mostly_noise(tmp_path):
    """P^T P x is not x: of a displacement d the rebuilt one is off by about sqrt(size / k) |d|."""
    path, _, task = path_of(linear(width=300), tmp_path, coords=400)
    orders = permuted_steps(task.order, 3, 4)
    whole = final_weights(SeedTable(path, SeedOptions(order=0, share=1.0)), task, orders) - path.states[-1].theta
    noisy = [
        final_weights(SeedTable(path, SeedOptions(order=0, share=1 / 8, seed=s)), task, orders) - path.states[-1].theta
        for s in range(5)
    ]
    ratio = float(torch.stack([(n - whole).norm() for n in noisy]).mean() / whole.norm())
    assert 0.7 * 8**0.5 < ratio < 1.3 * 8**0.5
    assert (torch.stack(noisy).mean(0) - whole).norm() < 0.7 * ratio * whole.norm()  # and unbiased


def test_what_it_costs(tmp_path):
    sim, task = simulated(classifier(steps=5), tmp_path, anchors=2, probes=0)
    orders = permuted_steps(task.order, 4, 2)
    for estimator in ("fut", "fut2"):
        predicted = sim.predict(orders, estimator=estimator, metrics=["eval", "accuracy"])
        assert predicted.cost == 1 + task.steps  # the reference run again, and T x T gradients
        assert set(predicted.metrics) == {"eval", "accuracy"}
        assert np.isfinite(predicted.metrics["eval"]).all()
        assert np.isnan(predicted.error["eval"]).all()
        assert not predicted.trusted.any()
    path = baselines._paths[sim]
    before = path.evaluations
    sim.predict(orders[:1], estimator="fut")
    assert path.evaluations == before  # the table is kept
    regrouped = np.random.default_rng(0).permutation(task.order.reshape(-1)).reshape(task.order.shape)
    cost = sim.predict(regrouped, estimator="fut").cost
    assert 1 + task.steps < cost <= 3 + task.steps  # in no table: two gradients a step


def test_groups_keep_the_ratio_of_their_learning_rates(tmp_path):
    """Twice the recorded rates are twice in both groups."""
    kw = quadratic() | {"optimizer": two_groups(lambda p: sgd(p, lr=0.02), lr=0.06)}
    path, sim, task = path_of(kw, tmp_path)
    lr = 2 * sim.window.dynamics.hyper["lr"][:, 0]
    doubled = osc.Task(**kw | {"optimizer": two_groups(lambda p: sgd(p, lr=0.04), lr=0.12)})
    truth = osc.retrain(doubled, task.order, keep_parameters=True).parameters
    theta = final_weights(ExactUpdates(path, EXACT), task, task.order[None], lr[None])
    torch.testing.assert_close(theta, truth, rtol=1e-9, atol=1e-9)


def test_the_second_moment_has_no_slope_where_it_is_zero(tmp_path):
    """Weights that never got a gradient must not turn derivatives into numbers that are none."""
    path, sim, task = path_of(classifier(), tmp_path)
    state = path.states[0]
    gamma = direction_at(task.layout, "AdamW", sim.window.dynamics.hyper, 0, state)
    zero = torch.zeros_like(state.theta)
    for term in expand(lambda g: gamma(g, state.theta), zero, torch.ones_like(zero), 2):
        assert torch.isfinite(term).all()


def test_a_task_is_needed(tmp_path):
    sim, task = simulated(classifier(), tmp_path, anchors=2, probes=0)
    alone = osc.Simulator(tmp_path / "run")
    with pytest.raises(osc.OrderscopeError, match=r"without its task.*Simulator\(path, task\)"):
        alone.predict(task.order, estimator="fut")
    with pytest.raises(osc.OrderscopeError, match=r"estimator 'fut3'.*one of carried, impulse, replay, fut, fut2"):
        sim.predict(task.order, estimator="fut3")
