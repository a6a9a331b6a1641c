import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import hessian

import orderscope as osc
from law_tasks import double, logistic, quadratic, slope
from orderscope.sketching import draw_coordinates
from orderscope.sketching.gradients import point
from orderscope.sketching.outputs import find_split
from orderscope.sketching.pseudo_gradients import gauss_newton_matrix, pseudo_gradients, uniform_noise
from orderscope.training.loop import start
from orderscope.training.state import capture
from tasks_tiny import Rows, char, classifier, generator


def several_outputs(loss):
    """Three linear outputs a sample."""
    g = generator(20)
    x, y = torch.randn(12, 2, generator=g), torch.rand(12, 3, generator=g)
    weights = torch.randn(3, 2, generator=g)

    def build():
        model = torch.nn.Linear(2, 3, bias=False)
        with torch.no_grad():
            model.weight.copy_(weights)
        return model

    return double({
        "model": build, "loss": loss, "data": Rows(x, y), "optimizer": lambda p: torch.optim.SGD(p, lr=0.1),
        "metrics": {}, "order": np.arange(12).reshape(3, 4),
    })  # fmt: skip


TASKS = {
    "softmax": lambda: double(classifier(steps=3)),
    "tokens": lambda: double(char(steps=3, context=4)),
    "squared error": lambda: several_outputs(lambda m, b: ((m(b[0]) - b[1]) ** 2).sum(1)),
    "binary cross-entropy": lambda: several_outputs(
        lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]), b[1], reduction="none").mean(1)
    ),
    "dense": lambda: several_outputs(lambda m, b: F.cross_entropy(m(b[0]) / 0.7, b[1].argmax(1), reduction="none")),
}


def prepared(kw, carried=None):
    task = osc.Task(**kw)
    at = point(task, task.build_model(), capture(start(task)))
    ids = task.order.reshape(-1)
    split = find_split(at, task.batch(ids[:4]))
    size = at.layout.size
    return task, at, ids, split, draw_coordinates(size, carried or size, 0)


def rows_of(task, at, ids, split, coordinates, *, draws=1, seed=0, micro_batch=64):
    return pseudo_gradients(
        at, split, task.batch, ids, coordinates, draws=draws, seed=seed, micro_batch=micro_batch
    )  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_the_sampled_curvature_converges_at_the_rate_of_independent_draws(name):
    """|C_n - GGN| falls as 1/sqrt(n), with nothing left over: the mean of A^T A is the Gauss-Newton matrix."""
    task, at, ids, split, coordinates = prepared(TASKS[name](), carried=30)
    ids, passes = ids[:4], 512
    exact = gauss_newton_matrix(at, split, task.batch, ids, coordinates)
    rows = rows_of(task, at, np.tile(ids, passes), split, coordinates, micro_batch=512)  # every place has its own noise
    rows = rows.view(passes, len(ids), -1)
    single = torch.einsum("psi,psj->pij", rows, rows) / len(ids)
    counts = np.array([1, 4, 16, 64])
    errors = [np.sqrt(np.mean([float((p.mean(0) - exact).norm()) ** 2 for p in single.split(int(n))])) for n in counts]
    assert -0.6 < slope(counts, errors) < -0.4  # the last point is a root mean square over 8: 10 per cent
    assert float((single.mean(0) - exact).norm()) < 3 * errors[0] / passes**0.5


def test_one_draw_is_exact_for_one_output():
    """Squared error with one output has nothing to draw but a sign: every draw gives the whole curvature."""
    task, at, ids, split, coordinates = prepared(quadratic())
    rows = rows_of(task, at, ids, split, coordinates, seed=7)[:, 0]
    exact = gauss_newton_matrix(at, split, task.batch, ids, coordinates)
    torch.testing.assert_close(rows.T @ rows / len(ids), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [quadratic, logistic])
def test_gauss_newton_is_the_hessian_of_a_model_that_is_linear_in_its_weights(make):
    task, at, ids, split, coordinates = prepared(make())

    def mean_loss(theta):
        return at.loss(at.layout.unflatten(theta), at.rest, task.batch(ids)).mean()

    theta = at.layout.flatten(at.layout.of_model(at.model))
    exact = gauss_newton_matrix(at, split, task.batch, ids, coordinates)
    torch.testing.assert_close(exact, hessian(mean_loss)(theta), rtol=1e-9, atol=1e-12)


def test_draws_of_one_sample_cover_the_softmax_more_evenly_than_independent_ones():
    """Counts of a class are off by a fraction of one instead of by a binomial: for 16 draws about a quarter."""
    task, at, ids, split, coordinates = prepared(logistic())
    ids, draws, times = ids[:1], 16, 64
    exact = gauss_newton_matrix(at, split, task.batch, ids, coordinates)

    def error(rows):
        return np.mean([float((r.T @ r / draws - exact).norm()) for r in rows.view(times, draws, -1)])

    together = rows_of(task, at, np.tile(ids, times), split, coordinates, draws=draws, micro_batch=512)
    apart = rows_of(task, at, np.tile(ids, draws * times), split, coordinates, micro_batch=512)
    assert error(together) < 0.4 * error(apart)


@settings(max_examples=8)
@given(st.integers(1, 40), st.integers(1, 5))
def test_draws_do_not_depend_on_the_micro_batch(micro_batch, draws):
    task, at, ids, split, coordinates = prepared(logistic(), carried=4)
    rows = rows_of(task, at, ids, split, coordinates, draws=draws, seed=1, micro_batch=micro_batch)
    assert rows.shape == (len(ids), draws, 4)
    expected = rows_of(task, at, ids, split, coordinates, draws=draws, seed=1, micro_batch=1000)
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-14)
    again = rows_of(task, at, ids, split, coordinates, draws=draws, seed=1, micro_batch=micro_batch)
    assert torch.equal(rows, again)


@given(st.integers(1, 150), st.integers(1, 6), st.integers(0, 99))
def test_noise_is_uniform_stratified_and_the_same_for_any_number_of_samples(samples, draws, seed):
    noise = uniform_noise(samples, draws, (2, 3), seed)
    assert noise.shape == (samples, draws, 2, 3)
    assert bool(((noise >= 0) & (noise < 1)).all())
    assert torch.equal(noise, uniform_noise(samples + 70, draws, (2, 3), seed)[:samples])
    # one number in each of `draws` equal parts of [0, 1); 1e-9 for those that fall on an edge
    parts = (noise * draws - 1e-9).clamp_min(0).floor().sort(1).values
    steps = torch.arange(draws, dtype=parts.dtype).view(1, draws, 1, 1)
    assert bool(((parts - steps).abs() <= 1).all())
