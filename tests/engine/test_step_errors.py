"""Errors of predicted gradients step by step, against what they add up to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import orderscope as osc
import tasks_tiny
from law_optimizers import OPTIMIZERS
from law_tasks import permuted_steps, quadratic, simulated
from orderscope.engine import HeldOut, Window
from orderscope.engine.left_out import left_out
from orderscope.engine.step_errors import StepErrors, mean_slope, step_errors


@pytest.fixture(scope="module")
def char(tmp_path_factory: pytest.TempPathFactory) -> osc.Simulator:
    """AdamW, clipped, from warm moments."""
    path = tmp_path_factory.mktemp("char")
    return simulated(tasks_tiny.char(steps=12), path, anchors=4, probes=8)[0]


def held_out_of(sim: osc.Simulator) -> HeldOut:
    assert sim.held_out is not None
    return sim.held_out


def crude(sim: osc.Simulator, curvature: float) -> Window:
    """The window with the last shared anchor alone, but for what runs left behind at recorded batches, and a share of
    the curvature: predicted gradients are affine in the weights then, and wrong."""
    window = sim.window
    known = torch.zeros_like(window.known)
    known[:, window.anchors.shared - 1] = True
    for run in sim.runs:
        known[:, torch.tensor([name == run for name in window.anchor_runs])] = True
    scale = curvature**0.5
    return replace(window, known=known, factor=window.factor * scale, crossed=window.crossed * scale)


def alone(window: Window, run: str) -> Window:
    """Without the anchors of the other runs under other orders."""
    others = torch.tensor([name not in ("reference", run) for name in window.anchor_runs])
    return replace(window, known=window.known & ~others)


def of_run(sim: osc.Simulator, window: Window, i: int) -> StepErrors:
    slope = mean_slope(held_out_of(sim), "eval", sim.runs[i])
    return step_errors(window, slope, sim.runs[i], sim.run_orders[i])


@pytest.mark.parametrize("curvature", [0.0, 0.5])
@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov, decay"])
def test_on_a_quadratic_effects_add_up_to_the_error(name: str, curvature: float, tmp_path: Path) -> None:
    """Exactly: the replay is affine in the gradients' errors, and the trapezoidal rule is exact."""
    sim, _ = simulated(quadratic() | {"optimizer": OPTIMIZERS[name]}, tmp_path, anchors=7, probes=3, energy=1.0)
    for i, run in enumerate(sim.runs):
        if sim.regrouped(sim.run_orders[i][None])[0]:
            continue
        window = alone(crude(sim, curvature), run)
        found = of_run(sim, window, i)
        told = left_out(window, held_out_of(sim), [run], sim.run_orders[i][None]).values["eval"][0]
        error = told - sim.run_truth["eval"][i]
        assert abs(error) > 1e-4
        assert found.effect.sum() == pytest.approx(error, rel=1e-5)
        np.testing.assert_array_equal(found.steps, np.arange(len(sim.order)))


def test_the_slope_at_the_replays_end_alone_is_not_enough(tmp_path: Path) -> None:
    sim, _ = simulated(quadratic(), tmp_path, anchors=7, probes=2, energy=1.0)
    held_out, window = held_out_of(sim), alone(crude(sim, 0.0), sim.runs[0])
    at_the_end = step_errors(window, lambda theta: held_out.slope(theta, "eval"), sim.runs[0], sim.run_orders[0])
    mean = of_run(sim, window, 0)
    assert abs(at_the_end.effect.sum() - mean.effect.sum()) > 0.01 * abs(mean.effect.sum())


def test_with_the_whole_curvature_a_quadratic_has_no_errors(tmp_path: Path) -> None:
    sim, _ = simulated(quadratic(), tmp_path, anchors=7, probes=2, energy=1.0)
    found = of_run(sim, alone(crude(sim, 1.0), sim.runs[0]), 0)
    assert found.gradient.max() < 1e-5
    assert found.interpolation.max() > 0.01
    np.testing.assert_allclose(found.cosine, 1.0, atol=1e-6)


def test_errors_are_those_of_gradients_computed_anew(char: osc.Simulator) -> None:
    """What interpolation and curvature predict in the states of a run, beside autograd's gradient there."""
    task, window, run = char.task, char.window, char.runs[0]
    assert task is not None
    found = of_run(char, window, 0)
    own = [k for k, name in enumerate(window.anchor_runs) if name == run]
    allowed = torch.tensor([name != run for name in window.anchor_runs])
    order = char.run_orders[0]
    for t in (2, 7, 11):
        unit = int(np.flatnonzero((np.sort(char.order, axis=1) == np.sort(order[t])).all(1))[0])
        theta = window.anchors.states(unit)[own[0]]
        model = task.build_model()
        torch.nn.utils.vector_to_parameters(theta, model.parameters())
        loss = task.loss(model, task.batch(order[t])).mean()
        true = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])
        weights, rest, _ = window.anchors.weights(
            theta[None], torch.tensor([unit]), (window.known[unit] & allowed)[None]
        )
        interpolated = weights[0].float() @ window.gradients(unit)
        group = int(window.fractions[unit].argmax())
        assert float(window.fractions[unit, group]) == 1
        factor = window.factor.split(list(window.sizes))[group].float()
        predicted = interpolated + factor.T @ (factor @ rest[0])
        assert found.interpolation[t] == pytest.approx(float((interpolated - true).norm() / true.norm()), rel=1e-3)
        assert found.gradient[t] == pytest.approx(float((predicted - true).norm() / true.norm()), rel=1e-3)


def test_effects_add_up_to_errors_of_left_out_runs(char: osc.Simulator) -> None:
    rows = [i for i in range(len(char.runs)) if not char.regrouped(char.run_orders[i][None])[0]]
    assert len(rows) > 5
    sums = [of_run(char, char.window, i).effect.sum() for i in rows]
    errors = (char.left_out.values["eval"] - char.run_truth["eval"])[rows]
    assert np.corrcoef(sums, errors)[0, 1] > 0.8
    assert 0.5 < np.linalg.norm(sums) / np.linalg.norm(errors) < 2
    truth = char.run_truth["eval"][rows]
    of_the_weights = held_out_of(char)(char.left_out.theta[rows], ["eval"])["eval"] - truth
    np.testing.assert_allclose(sums, of_the_weights, atol=0.05 * np.abs(of_the_weights).max())


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if "nadam" not in name])
@pytest.mark.parametrize("clipped", [False, True])
def test_with_affine_gradients_any_optimizer_adds_up(name: str, clipped: bool, tmp_path: Path) -> None:
    """The secants of Adam's moments, of amsgrad's maximum, of clipping and of coupled decay."""
    kw = quadratic() | {"optimizer": OPTIMIZERS[name], "max_grad_norm": 1.0 if clipped else None}
    sim, _ = simulated(kw, tmp_path, anchors=7, probes=3, energy=1.0)
    errors, sums = [], []
    for i, run in enumerate(sim.runs):
        if not sim.regrouped(sim.run_orders[i][None])[0]:
            window = alone(crude(sim, 0.5), run)
            sums.append(of_run(sim, window, i).effect.sum())
            told = left_out(window, held_out_of(sim), [run], sim.run_orders[i][None]).values["eval"][0]
            errors.append(told - sim.run_truth["eval"][i])
    # amsgrad's maximum is split between its two arguments, and not by its secant
    np.testing.assert_allclose(sums, errors, rtol=0, atol=(0.1 if "amsgrad" in name else 1e-4) * np.abs(errors).max())


def test_regrouped_batches_are_left_out(char: osc.Simulator) -> None:
    window, order = char.window, char.run_orders[0].copy()
    order[3, 0], order[5, 0] = order[5, 0], order[3, 0]
    found = step_errors(window, mean_slope(held_out_of(char), "eval", char.runs[0]), char.runs[0], order)
    np.testing.assert_array_equal(found.steps, [t for t in range(len(order)) if t not in (3, 5)])
    mixed = np.random.default_rng(0).permutation(order.ravel()).reshape(order.shape)
    nothing = step_errors(window, mean_slope(held_out_of(char), "eval", char.runs[0]), char.runs[0], mixed)
    assert len(nothing.steps) == len(nothing.effect) == 0


def test_batches_that_come_again_have_their_own_anchors(tmp_path: Path) -> None:
    """Two epochs: the second visit of a batch is compared with the gradient of that visit."""
    kw = tasks_tiny.char(steps=6)
    order = np.concatenate([kw["order"], permuted_steps(kw["order"], 2)[0]])
    kw |= {"order": order, "scheduler": tasks_tiny.cosine(len(order))}
    sim, task = simulated(kw, tmp_path, anchors=4, probes=3)
    i = next(i for i in range(len(sim.runs)) if not sim.regrouped(sim.run_orders[i][None])[0])
    found = of_run(sim, sim.window, i)
    np.testing.assert_array_equal(found.steps, np.arange(len(order)))
    assert found.gradient.max() < 0.5  # another visit's gradient would be as good as any other batch's
    assert len(task.order) == 12


def test_a_run_whose_end_is_not_known_has_the_slope_at_the_replays(char: osc.Simulator) -> None:
    held_out = held_out_of(char)
    value, gradient = mean_slope(held_out, "eval", "validated-0")(char.window.final)
    expected = held_out.slope(char.window.final, "eval")
    assert value == expected[0]
    assert gradient.equal(expected[1])
