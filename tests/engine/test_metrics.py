import numpy as np
import pytest
import torch

import orderscope as osc
from law_tasks import logistic, permuted_steps, quadratic, simulated
from orderscope.engine.metrics import Expansion, evaluated, expanded, load_expansions, member_values
from orderscope.engine.reduce import reduced_expansion
from orderscope.sketch import draw_coordinates
from tasks_tiny import classifier, generator


def expansions(sim):
    return load_expansions(sim.store, sim.window.final, sim.reference, sim.window.dynamics.weight)


def test_the_expansion_of_a_quadratic_loss_is_exact_everywhere(tmp_path):
    sim, task = simulated(quadratic(), tmp_path, anchors=2, probes=0)
    theta = 5 * torch.randn(6, task.layout.size, generator=generator(1), dtype=torch.float64)
    expected = evaluated(task)(theta, ("eval",))["eval"]
    mine = expanded(expansions(sim))(theta, ("eval",))["eval"]
    np.testing.assert_allclose(mine, expected, rtol=1e-9)


def test_the_expansion_of_another_loss_is_right_to_first_order(tmp_path):
    """Its curvature is a sample, its gradient exact: what is left falls with the square of the displacement."""
    sim, task = simulated(logistic(), tmp_path, anchors=2, probes=0)
    direction = torch.randn(task.layout.size, generator=generator(2), dtype=torch.float64)
    sizes = np.array([0.2, 0.1, 0.05])
    theta = torch.stack([sim.window.final + s * direction for s in sizes])
    missed = np.abs(expanded(expansions(sim))(theta, ("eval",))["eval"] - evaluated(task)(theta, ("eval",))["eval"])
    assert 1.7 < np.polyfit(np.log(sizes), np.log(missed), 1)[0] < 2.6


def test_its_linear_term_is_unbiased_over_the_coordinates_carried():
    """Horvitz-Thompson: g . d from m of P coordinates, times P / m."""
    size = 300
    g = generator(3)
    gradient, d = (
        torch.randn(size, generator=g, dtype=torch.float64),
        torch.randn(size, generator=g, dtype=torch.float64),
    )
    values = []
    for seed in range(400):
        c = draw_coordinates(size, 60, seed)
        center, none = torch.zeros(60, dtype=torch.float64), torch.zeros(0, 60, dtype=torch.float64)
        values.append(float(Expansion(center, 0.0, c.take(gradient) * c.weight, none)(c.take(d))))
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values) - float(gradient @ d)) < 4 * error


def test_its_curvature_counts_the_coordinates_that_are_not_carried(tmp_path):
    """Along a held-out sample's own input, half of the coordinates tell its square to a fifth."""
    kw = quadratic(width=200, lr=1e-4)
    sim, _ = simulated(kw, tmp_path, anchors=2, probes=0, coords=100)
    inputs, _ = kw["metrics"]["eval"].columns
    d = 0.01 * torch.cat([inputs[0], torch.zeros(1, dtype=torch.float64)])
    expansion = expansions(sim)["eval"]
    on = sim.plan.coordinates.take(d)
    there, back = (float(expansion(expansion.center + way * on)) for way in (1, -1))
    exact = float((inputs @ d[:-1]).square().mean() / 2)
    assert (there + back) / 2 - expansion.value == pytest.approx(exact, rel=0.2)


def test_the_real_model_is_the_metric_of_its_weights():
    task = osc.Task(**classifier())
    orders = permuted_steps(task.order, 1, 2)
    truth = osc.retrain(task, orders, keep_parameters=True)
    found = evaluated(task)(truth.parameters, ("eval", "accuracy"))
    for name, values in truth.metrics.items():
        assert np.array_equal(found[name], values)


def test_of_the_halves_only_their_middle_is_evaluated_where_there_is_an_expansion(tmp_path):
    """The loss is quadratic, so its expansion is exact; a metric without one is evaluated for every member."""
    kw = quadratic()
    kw["metrics"] = kw["metrics"] | {"length": lambda model: float(sum(p.norm() for p in model.parameters()))}
    sim, task = simulated(kw, tmp_path, anchors=2, probes=0)
    theta = sim.window.final + torch.randn(3, 4, task.layout.size, generator=generator(1), dtype=torch.float64)
    model, asked = evaluated(task), {}

    def counted(rows, names):
        asked[names] = len(rows)
        return model(rows, names)

    found = member_values(counted, expansions(sim), theta, ("eval", "length"))
    assert asked == {("eval",): 8, ("length",): 12}
    for name, values in found.items():
        np.testing.assert_allclose(values.ravel(), model(theta.flatten(0, 1), (name,))[name], rtol=1e-9)


def test_a_metric_without_an_expansion_is_named(tmp_path):
    sim, _ = simulated(classifier(), tmp_path, anchors=2, probes=0)
    with pytest.raises(osc.OrderscopeError, match=r"metric 'accuracy'.*stored expansion: eval"):
        expanded(expansions(sim))(sim.window.final[None], ("accuracy",))


def made_up(size, rows, seed):
    g = generator(seed)
    center, gradient = (torch.randn(size, generator=g, dtype=torch.float64) for _ in range(2))
    return Expansion(center, 2.0, gradient, torch.randn(rows, size, generator=g, dtype=torch.float64))


def test_an_expansion_on_some_coordinates_knows_the_states_it_was_given():
    """Products with known states are exact however few coordinates are taken (up to its ridge)."""
    whole = made_up(500, 10, 4)
    states = whole.center + 0.1 * torch.randn(4, 500, generator=generator(5), dtype=torch.float64)
    chosen = torch.randperm(500, generator=generator(6))[:60].sort().values
    some = reduced_expansion(whole, states, chosen)
    between = whole.center + 0.5 * (states[:2] - whole.center).sum(0)
    for theta in (*states, between):
        change = float(whole(theta)) - whole.value
        assert float(some(theta[chosen])) - some.value == pytest.approx(change, rel=0.1)
    theta = whole.center + 0.1 * torch.randn(500, generator=generator(7), dtype=torch.float64)
    every = reduced_expansion(whole, states, torch.arange(500))
    torch.testing.assert_close(every(theta), whole(theta), rtol=1e-9, atol=1e-9)
