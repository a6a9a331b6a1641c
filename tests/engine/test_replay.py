"""Laws of the carried estimator against real training."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import orderscope as osc
from law_optimizers import OPTIMIZERS, adam, two_groups
from law_tasks import (
    branching,
    double,
    half_squared_error,
    logistic,
    one_group_a_batch,
    permuted_steps,
    quadratic,
    simulated,
    slope,
)
from orderscope.engine import Batches, replay, units_of
from orderscope.engine.units import regrouped_gradients
from orderscope.sketching import draw_coordinates, stored_split
from orderscope.sketching.gradients import point
from orderscope.sketching.pseudo_gradients import gauss_newton_matrix
from orderscope.training.loop import start
from orderscope.training.state import capture
from tasks_tiny import char, classifier, cosine, linear, sgd


class Tied(torch.nn.Module):
    """Two layers with one weight, one of three with its own bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (torch.nn.Linear(n, 3) for n in (2, 3, 3))
        self.third.weight = self.second.weight

    def forward(self, x):
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))


def tied():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        weights = Tied().state_dict()

    def build():
        model = Tied()
        model.load_state_dict(weights)
        return model

    return classifier() | {"model": build}


def two_epochs():
    """The same batches again, backwards, and their samples backwards too: gradients that differ in rounding."""
    kw = classifier(steps=5)
    return kw | {"order": np.concatenate([kw["order"], kw["order"][::-1, ::-1]])}


def warm_momentum():
    """SGD in mid-run."""
    kw = branching() | {"optimizer": lambda p: sgd(p, momentum=0.9, dampening=0.2)}
    task = osc.Task(**kw)
    model = task.build_model()
    optimizer = task.build_optimizer(model)
    for ids in task.order[:3]:
        optimizer.zero_grad()
        task.loss(model, task.batch(ids)).mean().backward()
        optimizer.step()
    return kw | {"optimizer_state": optimizer.state_dict()}


TASKS = {
    "two epochs": two_epochs,
    "warm momentum": warm_momentum,
    "one step": lambda: classifier(steps=1),
    "never a gradient, a scalar": classifier,
    "frozen, buffers": lambda: classifier(frozen=True, counting=True),
    "tied": tied,
    "sometimes a gradient": branching,
    "sometimes a gradient, clipped": lambda: branching() | {"max_grad_norm": 0.3},
    "sometimes a gradient, sgd": lambda: branching() | {"optimizer": lambda p: sgd(p, momentum=0.9, dampening=0.1)},
    "warm moments, clipped": lambda: char() | {"max_grad_norm": 0.3},
    "float64": lambda: double(classifier()),
    "float64, clipped": lambda: double(char()) | {"max_grad_norm": 0.3},
}


def final(sim, task, order):
    return task.layout.flatten(sim.parameters(order))


def trained(task, order):
    truth = osc.retrain(task, order, keep_parameters=True)
    assert truth.parameters is not None
    return truth.parameters[0], {name: values[0] for name, values in truth.metrics.items()}


def assert_replays_its_recording(sim, task):
    theta, metrics = trained(task, task.order)
    assert torch.equal(final(sim, task, task.order), theta)
    replayed, predicted = sim.replay_of(task.order[None]), sim.predict(task.order, metrics=list(metrics))
    told = sim.metric_model(replayed.theta, list(metrics))
    for name, value in metrics.items():
        assert sim.reference[name] == value
        assert predicted.metrics[name][0] == value
        assert told[name][0] == pytest.approx(value, abs=1e-9)  # by what is known, also without having been told
    assert replayed.outside[0] == predicted.outside[0] == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_reference_order_replays_bit_for_bit_where_every_step_is_an_anchor(name, tmp_path):
    kw = classifier(steps=6) | {"optimizer": OPTIMIZERS[name]}
    sim, task = simulated(kw, tmp_path, anchors=7, probes=0, sample_anchors=0)
    assert_replays_its_recording(sim, task)


@pytest.mark.parametrize("name", TASKS)
def test_the_reference_order_replays_bit_for_bit_with_few_anchors(name, tmp_path):
    """A step's recorded gradient is an anchor of its own batch."""
    sim, task = simulated(TASKS[name](), tmp_path, anchors=3, probes=4, sample_anchors=2)
    assert_replays_its_recording(sim, task)


@pytest.mark.parametrize("make", [classifier, branching, char])
def test_probes_replay_bit_for_bit(make, tmp_path):
    """They were recorded too."""
    sim, task = simulated(make(), tmp_path, anchors=3, probes=2)
    for order in sim.probe_orders:
        assert torch.equal(final(sim, task, order), trained(task, order)[0])


def test_the_reference_order_replays_bit_for_bit_on_some_coordinates(tmp_path):
    """Adam is elementwise, and norms are recorded: what is carried is carried exactly."""
    sim, task = simulated(char() | {"max_grad_norm": 0.3}, tmp_path, anchors=3, probes=0, coords=40)
    units = units_of(sim.window, Batches(task.order), task.order[None])
    theta = replay(sim.window, units).theta[0]
    assert torch.equal(theta, sim.plan.coordinates.take(trained(task, task.order)[0]))


# Exactness on quadratics: gradients are affine in the weights, and each batch's sampled curvature is its Hessian.

SCHEDULED = {
    "sgd": sgd,
    "momentum": OPTIMIZERS["momentum"],
    "nesterov, decay": OPTIMIZERS["nesterov, decay"],
    "adamw": adam(torch.optim.AdamW, lr=0.02, weight_decay=0.1),
    "two groups": two_groups(lambda p: sgd(p, momentum=0.5), lr=0.01),
}


def exact_window(kw, path):
    sim, task = simulated(kw, path, energy=1.0, anchors=1, probes=0, sample_anchors=0, curvature_rows=1)
    return sim.window, task


def replayed(window, task, orders, **options):
    units = units_of(window, Batches(np.asarray(task.order)), orders)
    return replay(window, units, **options).theta


@pytest.mark.parametrize("max_grad_norm", [None, 2.0])
@pytest.mark.parametrize("name", SCHEDULED)
def test_a_quadratic_is_exact_for_any_order(name, max_grad_norm, tmp_path):
    kw = quadratic() | {"optimizer": SCHEDULED[name], "scheduler": cosine(6), "max_grad_norm": max_grad_norm}
    window, task = exact_window(kw, tmp_path)
    orders = permuted_steps(task.order, 1, 5)
    truth = osc.retrain(task, orders, keep_parameters=True).parameters
    torch.testing.assert_close(replayed(window, task, orders), truth, rtol=1e-8, atol=1e-8)
    assert (truth - trained(task, task.order)[0]).abs().max() > 1e-3  # order does matter here


@pytest.fixture(scope="module")
def quadratic_window(tmp_path_factory):
    return exact_window(quadratic(momentum=0.9), tmp_path_factory.mktemp("quadratic"))


@settings(max_examples=20)
@given(st.permutations(range(6)), st.permutations(range(6)))
def test_a_quadratic_is_exact_for_orders_that_hypothesis_draws(quadratic_window, first, second):
    window, task = quadratic_window
    orders = np.stack([task.order[list(first)], task.order[list(second)]])
    truth = osc.retrain(task, orders, keep_parameters=True).parameters
    torch.testing.assert_close(replayed(window, task, orders), truth, rtol=1e-8, atol=1e-8)


@settings(max_examples=20)
@given(st.permutations(range(6)), st.integers(0, 5), st.integers(0, 5))
def test_two_equal_swaps_are_the_identity(quadratic_window, steps, i, j):
    window, task = quadratic_window
    once = list(steps)
    once[i], once[j] = once[j], once[i]
    twice = list(once)
    twice[i], twice[j] = twice[j], twice[i]
    orders = np.stack([task.order[list(steps)], task.order[twice]])
    theta = replayed(window, task, orders)
    assert torch.equal(theta[0], theta[1])


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "two groups"])
def test_a_quadratic_is_exact_under_other_learning_rates(name, tmp_path):
    """Rates of the first group; the second keeps its ratio to it."""
    kw = quadratic() | {"optimizer": SCHEDULED[name]}
    window, task = exact_window(kw, tmp_path)
    factors = np.array([1.5, 0.2, 0.0, 1.0, 0.7, 2.0])
    lr = window.dynamics.hyper["lr"][:, 0] * factors

    def scheduler(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: [*factors, 1.0][t])

    other = osc.Task(**kw | {"scheduler": scheduler})
    orders = permuted_steps(task.order, 2, 3)
    truth = osc.retrain(other, orders, keep_parameters=True).parameters
    theta = replayed(window, task, orders, lr=np.tile(lr, (3, 1)))
    torch.testing.assert_close(theta, truth, rtol=1e-8, atol=1e-8)


def test_the_recorded_learning_rates_given_again_change_nothing(tmp_path):
    sim, task = simulated(classifier(), tmp_path, anchors=3, probes=2)
    orders = np.concatenate([task.order[None], permuted_steps(task.order, 3, 2)])
    plain, same = sim.predict(orders), sim.predict(orders, lr=sim.window.dynamics.hyper["lr"][:, 0])
    np.testing.assert_allclose(same.metrics["eval"], plain.metrics["eval"], rtol=1e-4)


# Slopes, as of a method's order: halve the learning rate, so halve every displacement, and see how the error falls.


def exact_factors(window, task, split):
    """Each batch's exact Gauss-Newton matrix at the start instead of the sampled one."""
    at = point(task, task.build_model(), capture(start(task)))
    coordinates = draw_coordinates(at.layout.size, at.layout.size, 0)
    factors = []
    for ids in task.order:
        matrix = gauss_newton_matrix(at, split, task.batch, ids, coordinates)
        values, vectors = torch.linalg.eigh(matrix)
        factors.append(values.clamp_min(0).sqrt()[:, None] * vectors.T)
    factor = torch.cat(factors)
    return dataclasses.replace(
        window, factor=factor, sizes=tuple(map(len, factors)), crossed=window.anchors.spread @ factor.T
    )


RATES = [0.2, 0.1, 0.05, 0.025]
SLOPES = {
    # the gradient is off by O(d) outside the anchors' span, the weights by lr times that
    "interpolated only": (False, lambda lr: lambda p: sgd(p, lr=lr), 2),
    # with curvature by O(d^2)
    "with curvature": (True, lambda lr: lambda p: sgd(p, lr=lr), 3),
    "with curvature, momentum": (True, lambda lr: lambda p: sgd(p, lr=lr, momentum=0.5), 3),
    "with curvature, adam": (True, lambda lr: adam(lr=lr / 5, eps=0.1), 3),
}


@pytest.mark.parametrize("name", SLOPES)
def test_errors_fall_with_the_order_of_the_expansion(name, tmp_path):
    """Where a displacement is d = O(lr), a gradient expanded to order p is off by O(d^(p+1)), and so is the sum of lr
    times it by O(lr^(p+2)): slope 2 for interpolation alone (p = 0), slope 3 with curvature (p = 1). Softmax regression
    is not quadratic, and its Gauss-Newton matrix is its Hessian."""
    curvature, make, expected = SLOPES[name]
    errors, travelled = [], 0.0
    for i, lr in enumerate(RATES):
        kw = logistic() | {"optimizer": make(lr)}
        (tmp_path / str(i)).mkdir()
        sim, task = simulated(kw, tmp_path / str(i), anchors=2, probes=0, sample_anchors=0)
        window = exact_factors(sim.window, task, stored_split(sim.store))
        orders = permuted_steps(task.order, 5, 4)
        truth = osc.retrain(task, orders, keep_parameters=True).parameters
        theta = replayed(window, task, orders, curvature=curvature)
        errors.append(float((theta - truth).norm()))
        travelled = float((truth - window.dynamics.start.theta).norm())
    assert expected - 0.3 < slope(RATES, errors) < expected + 0.4
    assert errors[-1] < 0.03 * travelled


def test_between_anchors_interpolation_alone_is_of_second_order(tmp_path):
    """Inside the span of the anchors the secants are the curvature: a gradient is off by O(d^2) without any other."""
    sim, task = simulated(logistic(), tmp_path, anchors=2, probes=0, sample_anchors=0)
    space, model = sim.window.anchors, task.build_model()
    origin = task.layout.flatten(task.layout.of_model(model))
    g = torch.Generator().manual_seed(0)
    directions = torch.randn(7, task.layout.size, generator=g, dtype=torch.float64)

    def gradient(theta):
        with torch.no_grad():
            for p, value in zip(task.layout.of_model(model), task.layout.unflatten(theta).values(), strict=True):
                p.copy_(value)
        loss = task.loss(model, task.batch(task.order[0])).mean()
        return torch.cat([x.reshape(-1) for x in torch.autograd.grad(loss, task.layout.of_model(model))])

    sizes, errors = [0.4, 0.2, 0.1, 0.05], []
    for size in sizes:
        states = origin + size * directions
        anchors = type(space).of(states, states[:1, None], origin, ridge=0.0)  # 7 states span all 6 weights
        theta = states.mean(0) + 0.3 * size * (directions[0] - directions[1])
        weights, remainder, _ = anchors.weights(theta[None], torch.tensor([0]))
        assert remainder.norm() < 1e-3 * size
        table = torch.stack([gradient(state) for state in [*states, states[0]]])
        errors.append(float((weights[0] @ table - gradient(theta)).norm()))
    assert 1.8 < slope(sizes, errors) < 2.3


# Orders side by side, regrouped samples, what is told.


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return simulated(classifier(), tmp_path_factory.mktemp("small"), anchors=3, probes=3)


@settings(max_examples=15)
@given(st.lists(st.permutations(range(10)), min_size=2, max_size=4))
def test_orders_do_not_see_each_other(small, permutations):
    """Products are blocked otherwise for other numbers of rows: float32 rounding, amplified by Adam."""
    sim, task = small
    orders = np.stack([task.order[list(p)] for p in permutations])
    together = sim.predict(orders)
    for i, order in enumerate(orders):
        alone = sim.predict(order)
        assert alone.metrics["eval"][0] == pytest.approx(together.metrics["eval"][i], abs=2e-5)
        assert alone.error["eval"][0] == pytest.approx(together.error["eval"][i], abs=2e-4)


@settings(max_examples=10)
@given(st.permutations(range(10)), st.randoms(use_true_random=False))
def test_the_order_inside_a_batch_does_not_matter(small, steps, rng):
    sim, task = small
    order = task.order[list(steps)]
    shuffled = np.array([rng.sample(row, len(row)) for row in order.tolist()])
    assert np.array_equal(sim.predict(order).metrics["eval"], sim.predict(shuffled).metrics["eval"])


def test_regrouped_samples_are_the_mean_of_single_gradients(tmp_path):
    """A quadratic whose samples change batches: exact but for the 8 bits of mantissa of single samples' gradients."""
    kw = quadratic() | {"groups": None}
    sim, task = simulated(kw, tmp_path, anchors=3, probes=2, sample_anchors=3)
    rng = np.random.default_rng(6)
    orders = np.stack([rng.permutation(task.order.reshape(-1)).reshape(task.order.shape) for _ in range(3)])
    units = units_of(sim.window, Batches(task.order), orders)
    assert (units.index >= len(task.order)).mean() > 0.9
    x = task.data.columns[0]
    window = sim.window
    first = Batches(task.order).index(orders)[1][0]
    design = torch.cat([x[first], torch.ones(len(first), 1, dtype=torch.float64)], 1)
    for which in window.sample_anchors:
        theta = window.anchors.states(0)[which]
        error = design @ theta - task.data.columns[1][first]
        expected = (error[:, None] * design).mean(0)
        found = regrouped_gradients(window, units.new[:1], which)[0]
        torch.testing.assert_close(found, expected, rtol=0.01, atol=0.02 * float(expected.abs().max()))
    truth = osc.retrain(task, orders, keep_parameters=True).parameters
    theta = replay(window, units).theta
    moved = (truth - window.final).norm(dim=1)
    assert bool(((theta - truth).norm(dim=1) < 0.5 * moved).all())


@pytest.mark.parametrize("groups", [None, ["a", "b", "b", "b"] * 3 + ["a"] * 12])
def test_a_regrouped_batch_learns_from_the_batches_that_its_samples_were_in(groups, tmp_path):
    """Against the formula, one sample and one anchor at a time, at states on the way; plain SGD shows the gradient.
    Float64, but single samples' gradients are kept in bfloat16, in the formula too."""
    kw = double(char(steps=6)) | {"groups": groups, "optimizer": lambda p: sgd(p, lr=0.3), "scheduler": None,
                                  "max_grad_norm": None}  # fmt: skip
    sim, task = simulated(kw, tmp_path, anchors=3, probes=2, sample_anchors=2)
    window, anchors = sim.window, sim.window.anchors
    order = np.random.default_rng(3).permutation(task.order.reshape(-1)).reshape(task.order.shape)
    units = units_of(window, Batches(task.order), order[None])
    assert (units.index >= len(task.order)).all()
    states = replay(window, units, snapshots=range(task.steps)).snapshots
    after = [*[states[t][0] for t in range(1, task.steps)], replay(window, units).theta[0]]
    table, sampled = window.table, list(window.sample_anchors)
    for t in range(task.steps):
        theta, gradient = states[t], 0.0
        only = torch.zeros(1, anchors.count, dtype=torch.bool)
        only[0, sampled] = True
        shared = anchors.weights(theta, torch.tensor([0]), only)[0][0]
        for i in order[t]:
            u = int(np.nonzero((task.order == i).any(1))[0][0])
            own = anchors.weights(theta, torch.tensor([u]), window.known[[u]])[0][0]
            apart = (
                sum(shared[a] * window.sample_rows[s, window.sample_place[i]].double() for s, a in enumerate(sampled))
                - shared @ table[u]
            )
            left, beyond = theta[0] - own @ anchors.states(u), theta[0] - shared @ anchors.states(u)
            bent = left @ window.curvature(window.fractions[u])
            group = torch.nn.functional.one_hot(torch.tensor(int(window.group_codes[i])), window.fractions.shape[1])
            bent += beyond @ window.curvature(group.float()) - beyond @ window.curvature(window.fractions[u])
            gradient += (own @ table[u] + bent + apart) / len(order[t])
        torch.testing.assert_close(after[t], theta[0] - 0.3 * gradient, rtol=1e-6, atol=1e-6)


def test_snapshots_are_the_states_on_the_way(quadratic_window):
    window, task = quadratic_window
    order = permuted_steps(task.order, 7)
    units = units_of(window, Batches(np.asarray(task.order)), order)
    kept = replay(window, units, snapshots=range(7)).snapshots
    assert torch.equal(kept[0][0], window.dynamics.start.theta)
    with_fewer = replay(window, units, snapshots=[6])
    assert torch.equal(kept[6], with_fewer.theta)
    model = task.build_model()
    optimizer = task.build_optimizer(model)
    for t, ids in enumerate(order[0]):
        optimizer.zero_grad()
        half_squared_error(model, task.batch(ids)).mean().backward()
        optimizer.step()
        torch.testing.assert_close(kept[t + 1][0], task.layout.flatten(task.layout.of_model(model)))


def test_one_group_a_batch_covers_all_samples():
    kw = one_group_a_batch(linear())
    assert len(set(kw["groups"])) == len(kw["order"])
