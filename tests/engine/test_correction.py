"""The correction of replayed weights by the errors of left-out runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tasks_tiny
from law_tasks import simulated
from orderscope.engine.correction import Correction, fit_correction

RUNS, COORDS = 6, 40


def _alike(seed: int, noise: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Center, predicted and true weights of runs whose errors are a share of what they moved, and noise."""
    rng = np.random.default_rng(seed)
    center = torch.from_numpy(rng.normal(size=COORDS))
    common = rng.normal(size=COORDS)
    moved = common + 0.3 * rng.normal(size=(RUNS, COORDS))
    error = 0.4 * np.linalg.norm(moved, axis=1, keepdims=True) * rng.normal(size=COORDS) / COORDS**0.5
    error = error + noise * rng.normal(size=(RUNS, COORDS))
    predicted = center + torch.from_numpy(moved)
    return center, predicted, predicted - torch.from_numpy(error)


def test_what_alike_runs_share_is_subtracted_in_proportion_to_the_move() -> None:
    center, predicted, true = _alike(0, noise=0.02)
    correction = fit_correction(predicted, true, center)
    assert correction is not None
    query = center + 0.5 * (predicted.mean(0) - center)
    share = (query - correction(query[None])[0]).norm() / (query - center).norm()
    # The error is 0.4 of what was moved, its random direction apart, and runs with a kernel below 1 leave some of it.
    assert 0.25 < share < 0.4
    assert torch.equal(correction(center[None])[0], center)
    opposite = correction((2 * center - query)[None])[0]
    assert torch.equal(opposite, 2 * center - query)  # nothing is known of that direction


def test_each_run_is_corrected_by_the_others_as_if_they_alone_were_known() -> None:
    center, predicted, true = _alike(1, noise=0.1)
    correction = fit_correction(predicted, true, center)
    assert correction is not None
    together = correction.without_own(predicted)
    for run in range(RUNS):
        others = [i for i in range(RUNS) if i != run]
        alone = fit_correction(predicted[others], true[others], center)
        assert alone is not None
        torch.testing.assert_close(together[run], alone(predicted[run : run + 1])[0])


def test_errors_that_have_nothing_in_common_are_left_alone() -> None:
    center, predicted, _ = _alike(2, noise=0.0)
    rng = np.random.default_rng(3)
    true = predicted - torch.from_numpy(rng.normal(size=(RUNS, COORDS)))
    assert fit_correction(predicted, true, center) is None


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_runs_correct_nothing(count: int) -> None:
    center, predicted, true = _alike(4, noise=0.0)
    assert fit_correction(predicted[:count], true[:count], center) is None


def test_known_states_stay_as_they_are(tmp_path: Path) -> None:
    sim = simulated(tasks_tiny.char(steps=8), tmp_path, anchors=2, probes=3)[0]
    held_out, final = sim.held_out, sim.window.final
    assert held_out is not None
    toward = torch.nn.functional.normalize(sim.left_out.theta - final, dim=1)
    wrong = Correction(final, toward, torch.ones_like(toward), torch.eye(len(toward), dtype=torch.float64))
    sim.__dict__["left_out"] = replace(sim.left_out, kept=1.0, correction=wrong)
    known = held_out.center + held_out.spread[[held_out.runs.index(run) for run in sim.runs]]
    torch.testing.assert_close(sim.replay_of(sim.run_orders).theta, known, atol=1e-5, rtol=0)
    shuffled = sim.order[np.random.default_rng(0).permutation(len(sim.order))]
    moved = sim.replay_of(shuffled[None]).theta
    sim.__dict__["left_out"] = replace(sim.left_out, correction=None)
    assert (moved - sim.replay_of(shuffled[None]).theta).norm() > 0.1 * (moved - final).norm()
