"""Held-out losses from what is known where the recorded runs ended."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from law_tasks import logistic, quadratic, simulated, slope
from orderscope.engine import Expansion, HeldOut, Replayed
from orderscope.engine.calibration import clearly_positive
from orderscope.engine.curvature import Curvature
from orderscope.engine.held_out import scaled_as_known
from orderscope.engine.left_out import share_kept
from orderscope.engine.metrics import evaluated
from orderscope.sketching import draw_coordinates
from tasks_tiny import char, classifier, generator

SIZE = 30


def normal(*shape, seed):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def made_up(states, value, factor, take=slice(None), weight=1.0):
    """Known states [K, P] of one loss, a function of the weights; its curvature is A^T A for the factor A."""
    rows = states.clone().requires_grad_()
    values = torch.stack([value(row) for row in rows])
    slopes = torch.autograd.grad(values.sum(), rows)[0]
    d = states - states[0]
    return HeldOut(
        names=("eval",),
        runs=("reference", *(f"probe-{i}" for i in range(len(states) - 1))),
        center=states[0, take],
        spread=d[:, take],
        weight=weight,
        gram=d @ d.T,
        values=values.detach()[None],
        slopes=slopes[None, :, take],
        along=(slopes @ d.T)[None],
        factor=factor[:, take],
        shares=torch.ones(1, len(factor), dtype=torch.float64),
        crossed=factor @ d.T,
    )


FACTOR, TILT = normal(12, SIZE, seed=1), normal(SIZE, seed=2)


def bowl(theta):
    return 3 + theta @ TILT + (FACTOR @ theta).square().sum() / 2


def wave(theta):
    return bowl(theta) + torch.sin(theta).sum() + 0.1 * (theta**3).sum()


def told(known, theta, without=None):
    return known(theta, ("eval",), without)["eval"]


@pytest.mark.parametrize("states", [1, 2, 6, SIZE + 5])
def test_a_quadratic_is_exact_everywhere(states):
    """However many states are known, more than there are weights too, and without any one of them."""
    known = made_up(normal(states, SIZE, seed=3), bowl, FACTOR)
    theta = 4 * normal(5, SIZE, seed=4)
    expected = np.array([float(bowl(row)) for row in theta])
    np.testing.assert_allclose(told(known, theta), expected, rtol=1e-9)
    if states > 1:
        np.testing.assert_allclose(told(known, theta, [known.runs[i % states] for i in range(5)]), expected, rtol=1e-9)


def test_any_loss_is_exact_at_known_states():
    states = normal(6, SIZE, seed=3)
    known = made_up(states, wave, FACTOR)
    np.testing.assert_allclose(told(known, states), known.values[0], rtol=1e-6)


def test_between_two_known_states_the_error_is_of_third_order():
    """The trapezoidal rule, without any curvature."""
    sizes, errors = [0.4, 0.2, 0.1, 0.05], []
    first, direction = normal(SIZE, seed=3), normal(SIZE, seed=5)
    for size in sizes:
        states = torch.stack([first, first + size * direction])
        middle = first + 0.5 * size * direction
        known = made_up(states, lambda x: wave(x) - bowl(x), FACTOR[:0])
        errors.append(abs(float(told(known, middle[None])[0]) - float(wave(middle) - bowl(middle))))
    assert 2.7 < slope(sizes, errors) < 4.3  # of fourth order in the very middle


@pytest.mark.parametrize("states", [2, 6])
def test_what_errors_of_the_weights_do_is_the_gradient_times_the_error(states):
    """Exact on a quadratic, wherever the query is; a run whose end is not known says nothing."""
    known = made_up(normal(states, SIZE, seed=3), bowl, FACTOR)
    ends = known.center + known.spread[1:]
    error = 0.1 * normal(states, SIZE, seed=9)
    missed = known.missed([*known.runs[1:], "validated-0"], torch.cat([ends, ends[:1]]) + error)
    theta = (4 * normal(5, SIZE, seed=4)).requires_grad_()
    gradient = torch.autograd.grad(sum(bowl(row) for row in theta), theta)[0]
    found = known.pushed(theta.detach(), "eval", missed)
    np.testing.assert_allclose(found[:, :-1], gradient @ error[:-1].T, rtol=1e-8)
    assert np.isnan(found[:, -1]).all()


def test_a_state_that_is_left_out_is_not_used():
    states = normal(5, SIZE, seed=3)
    known = made_up(states, wave, FACTOR)
    other = {name: getattr(known, name).clone() for name in ("values", "slopes", "along")}
    other["values"][:, 2] += 7
    other["slopes"][:, 2] += normal(SIZE, seed=6)
    other["along"][:, 2] += normal(5, seed=7)
    changed = replace(known, **other)
    theta = torch.cat([states, normal(3, SIZE, seed=8)])
    without = ["probe-1"] * len(theta)
    np.testing.assert_array_equal(told(known, theta, without), told(changed, theta, without))
    assert not np.allclose(told(known, theta), told(changed, theta))
    fewer = made_up(states[[0, 1, 3, 4]], wave, FACTOR)
    np.testing.assert_allclose(told(known, theta, without), told(fewer, theta), rtol=0.02)  # its scale is another


def test_drawn_weights_keep_what_known_states_span_and_a_share_of_the_rest():
    states = normal(4, SIZE, seed=3)
    known = made_up(states, bowl, FACTOR)
    weights = torch.tensor([0.5, 0.2, 0.4, -0.1], dtype=torch.float64)
    aside = normal(SIZE, seed=8)
    aside -= torch.linalg.lstsq((states - states[0])[1:].T, aside[:, None]).solution.T[0] @ (states - states[0])[1:]
    within = (weights[:, None] * states).sum(0)
    theta = torch.stack([states[2], within + 1e-3 * aside])
    assert torch.equal(known.drawn(theta, 1.0), theta)
    half = known.drawn(theta, 0.5)
    assert torch.equal(half[0], theta[0])  # a known state
    # A ridge on distances moves the weights a little.
    torch.testing.assert_close(half[1], within + 5e-4 * aside, rtol=0, atol=0.02 * float((within - states[0]).norm()))
    off = known.drawn(theta, 0.0, ["probe-1", None])
    assert not torch.allclose(off[0], states[2], atol=0.1)  # which a run that is left out does not know


def ended(theta):
    """Replays of recorded batches that ended so."""
    rows = len(theta)
    return Replayed(
        theta,
        torch.ones(rows, dtype=torch.float64),
        torch.zeros(rows, dtype=torch.float64),
        torch.zeros(rows, dtype=torch.bool),
        {},
    )


@pytest.mark.parametrize(("noise", "expected"), [(6.0, "less"), (0.0, "all")])
def test_the_share_kept_is_that_of_prediction_in_the_rest(noise, expected):
    """Weights of left-out runs whose remainder is mostly noise are drawn in, exact ones are left as they are."""
    states = normal(9, SIZE, seed=3)
    known = made_up(states, bowl, FACTOR)
    replayed = states[1:] + noise * normal(8, SIZE, seed=5)
    kept = share_kept(known, ended(replayed), known.runs[1:], states[0])
    if expected == "all":
        assert kept == 1
        return
    assert kept < 0.6
    errors = [
        np.abs(told(known, known.drawn(replayed, share, known.runs[1:]), known.runs[1:]) - known.values[0, 1:].numpy())
        for share in (kept, 1.0)
    ]
    assert errors[0].mean() < 0.5 * errors[1].mean()


def test_few_runs_say_nothing_of_the_share():
    known = made_up(normal(3, SIZE, seed=3), bowl, FACTOR)
    assert share_kept(known, ended(9 * normal(2, SIZE, seed=5)), known.runs[1:], known.center) == 1


def test_on_some_coordinates_what_known_states_span_is_told():
    """Products among known states are of all weights; those with other states are estimated, but for what is left."""
    states = torch.cat([normal(1, 500, seed=3), normal(1, 500, seed=3) + 0.1 * normal(4, 500, seed=4)])
    factor = normal(10, 500, seed=5)

    def loss(theta):
        return (factor @ theta).square().sum() / 2

    coordinates = draw_coordinates(500, 250, 0)
    take = coordinates.indices
    known = made_up(states, loss, factor, take, coordinates.weight)
    theta = torch.stack([*states, states[:3].mean(0)])
    true = np.array([float(loss(row)) for row in theta])
    apart = np.abs(told(known, theta[:, take]) - true)
    assert apart[0] < 1e-6 * true[0]
    assert apart.max() < 0.25 * np.abs(true - true[0]).max()


def test_the_slope_is_that_of_the_loss():
    known = made_up(normal(4, SIZE, seed=3), bowl, FACTOR)
    theta = normal(SIZE, seed=9).requires_grad_()
    value = bowl(theta)
    expected = torch.autograd.grad(value, theta)[0]
    found, gradient = known.slope(theta.detach(), "eval")
    assert found == pytest.approx(float(value.detach()), rel=1e-9)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)


def test_the_expansion_is_the_reference_runs_end_alone():
    known = made_up(normal(4, SIZE, seed=3), bowl, FACTOR)
    theta = normal(3, SIZE, seed=9)
    expected = torch.stack([bowl(row) for row in theta])
    torch.testing.assert_close(known.expansion("eval")(theta), expected)


def test_a_curvature_of_the_wrong_size_is_scaled_as_the_known_states_say():
    right = made_up(normal(8, SIZE, seed=3), bowl, FACTOR)
    torch.testing.assert_close(scaled_as_known(right).shares, right.shares)
    for factor in (0.25, 3.0):
        wrong = replace(right, shares=factor * right.shares)
        scaled = scaled_as_known(wrong).shares[0, 0]
        assert abs(float(scaled) - 1) < 0.5 * abs(factor - 1)
    few = made_up(normal(3, SIZE, seed=3), bowl, FACTOR)
    assert scaled_as_known(few) is few


def test_a_far_state_that_is_set_apart_does_not_scale_the_curvature():
    states = normal(8, SIZE, seed=3)
    far = torch.cat([states, 20 * normal(1, SIZE, seed=5)])

    def saturating(theta):
        return torch.log1p(bowl(theta))

    usual, every = made_up(states, saturating, FACTOR), made_up(far, saturating, FACTOR)
    apart = scaled_as_known(every, ["probe-7"]).shares[0, 0]
    expected, decided = scaled_as_known(usual).shares[0, 0], scaled_as_known(every).shares[0, 0]
    assert abs(float(apart - expected)) < 0.3 * abs(float(decided - expected))


# As recorded.


@pytest.mark.parametrize("probes", [0, 5])
def test_a_quadratic_task_is_exact_everywhere(probes, tmp_path):
    """The sampled Gauss-Newton matrix of its held-out rows is their Hessian."""
    sim, task = simulated(quadratic(), tmp_path, anchors=1, probes=probes)
    theta = 5 * normal(6, task.layout.size, seed=1)
    expected = evaluated(task)(theta, ("eval",))["eval"]
    np.testing.assert_allclose(told(sim.held_out, theta), expected, rtol=1e-8)


def test_another_loss_is_right_to_first_order(tmp_path):
    """Its curvature is a sample, its gradient exact: what is left falls with the square of the displacement."""
    sim, task = simulated(logistic(), tmp_path, anchors=1, probes=0)
    direction = normal(task.layout.size, seed=2)
    sizes = np.array([0.2, 0.1, 0.05])
    theta = torch.stack([sim.window.final + s * direction for s in sizes])
    missed = np.abs(told(sim.held_out, theta) - evaluated(task)(theta, ("eval",))["eval"])
    assert 1.7 < slope(sizes, missed) < 3.6


@pytest.mark.parametrize("make", [classifier, char])
def test_where_runs_ended_the_real_loss_is_told(make, tmp_path):
    sim, task = simulated(make(), tmp_path, anchors=1, probes=4)
    assert sim.held_out.runs == ("reference", "probe-0", "probe-1", "probe-2", "probe-3")
    assert sim.held_out.names == ("eval",)
    ends = torch.cat([sim.window.final[None], sim.replay_of(sim.probe_orders).theta])
    true = np.append(sim.reference["eval"], sim.truth["eval"])
    np.testing.assert_allclose(told(sim.held_out, ends), true, rtol=0, atol=1e-6)
    np.testing.assert_allclose(evaluated(task)(ends, ("eval",))["eval"], true, rtol=0, atol=1e-6)
    left = told(sim.held_out, ends[1:], sim.probes)
    assert (np.abs(left - true[1:]) > 1e-8).all()
    assert np.abs(left - true[1:]).max() < np.abs(true[1:] - true[0]).max()


def test_the_linear_term_of_an_expansion_is_unbiased_over_the_coordinates_carried():
    """Horvitz-Thompson: g . d from m of P coordinates, times P / m."""
    gradient, d = normal(300, seed=3), normal(300, seed=4)
    values = []
    for seed in range(400):
        c = draw_coordinates(300, 60, seed)
        center, none = torch.zeros(60, dtype=torch.float64), torch.zeros(0, 60, dtype=torch.float64)
        values.append(float(Expansion(center, 0.0, c.take(gradient) * c.weight, Curvature.of(none))(c.take(d))))
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values) - float(gradient @ d)) < 4 * error


def test_curvature_counts_the_coordinates_that_are_not_carried(tmp_path):
    """Along a held-out sample's own input, half of the coordinates tell its square to a fifth."""
    kw = quadratic(width=200, lr=1e-4)
    sim, _ = simulated(kw, tmp_path, anchors=1, probes=0, coords=100)
    inputs, _ = kw["metrics"]["eval"].columns
    d = 0.01 * torch.cat([inputs[0], torch.zeros(1, dtype=torch.float64)])
    expansion = sim.held_out.expansion("eval")
    on = sim.plan.coordinates.take(d)
    there, back = (float(expansion(expansion.center + way * on)) for way in (1, -1))
    exact = float((inputs @ d[:-1]).square().mean() / 2)
    assert (there + back) / 2 - expansion.value == pytest.approx(exact, rel=0.2)


def test_a_large_gain_in_some_runs_need_not_be_clear():
    """Two runs of eight gain much: the interval of the mean gain reaches zero, and a quarter of the error is gone."""
    states = normal(9, SIZE, seed=3)
    known = made_up(states, bowl, FACTOR)
    noise = torch.tensor([8.0, 8.0, *[0.0] * 6], dtype=torch.float64)[:, None]
    replayed = states[1:] + noise * normal(8, SIZE, seed=5)
    true = known.values[0, 1:].numpy()
    gain = np.abs(told(known, replayed, known.runs[1:]) - true) - np.abs(
        told(known, known.drawn(replayed, 0.5, known.runs[1:]), known.runs[1:]) - true
    )
    assert not clearly_positive(gain)
    assert share_kept(known, ended(replayed), known.runs[1:], states[0]) < 1
