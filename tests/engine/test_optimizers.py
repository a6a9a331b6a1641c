"""The engine's step on many rows at once against torch's own optimizers, row by row."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from law_optimizers import FACTORS, MAKE, SHAPES, SIZES, STEPS, dynamics, parameters
from orderscope.engine.optimizers import clip, slices, start_states, step
from orderscope.task.hyper import group_rates
from tasks_tiny import generator


def by_torch(make, start, grads, active, *, rates=None, max_grad_norm=None):
    """[steps, 8] gradients of one row -> final weights."""
    own = parameters(start)
    optimizer = make(own)
    first = [group["lr"] for group in optimizer.param_groups]
    for t in range(STEPS):
        for group, lr in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = lr * FACTORS[t] if rates is None else rates[t] * lr / first[0]
        for i, (p, g) in enumerate(zip(own, grads[t].split(SIZES), strict=True)):
            p.grad = g.view(p.shape).clone() if active[t, i] else None
        if max_grad_norm:
            torch.nn.utils.clip_grad_norm_(own, max_grad_norm)
        optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in own])


@pytest.mark.parametrize("name", MAKE)
def test_rows_have_the_bits_of_torch(name):
    g = generator(1)
    start, grads = torch.randn(8, generator=g), torch.randn(4, STEPS, 8, generator=g)
    dyn = dynamics(MAKE[name], start)
    states = start_states(dyn, 4)
    for t in range(STEPS):
        step(dyn, states, grads[:, t], t, None, None)
    always = torch.ones(STEPS, 3, dtype=torch.bool)
    for row in range(4):
        assert torch.equal(states.theta[row], by_torch(MAKE[name], start, grads[row], always))


@settings(max_examples=25)
@given(st.sampled_from(sorted(MAKE)), st.integers(0, 10**6))
def test_parameters_that_skip_steps_keep_the_bits_too(name, seed):
    """Each row has its own pattern of missing gradients, so counts and moments differ between rows."""
    g = generator(seed)
    start, grads = torch.randn(8, generator=g), torch.randn(4, STEPS, 8, generator=g)
    active = torch.rand(4, STEPS, 3, generator=g) < 0.6
    dyn = dynamics(MAKE[name], start, masked=True)
    states = start_states(dyn, 4)
    for t in range(STEPS):
        step(dyn, states, grads[:, t], t, None, active[:, t])
    for row in range(4):
        assert torch.equal(states.theta[row], by_torch(MAKE[name], start, grads[row], active[row]))


@pytest.mark.parametrize("name", MAKE)
def test_other_learning_rates(name):
    """One schedule a row, for the first group; the second keeps its ratio. Tensor rates round differently: 1e-6."""
    g = generator(2)
    start, grads = torch.randn(8, generator=g), torch.randn(3, STEPS, 8, generator=g)
    rates = torch.tensor([[0.01] * STEPS, [0.02, 0.0, 0.03, 0.01, 0.005], [0.0] * STEPS], dtype=torch.float64)
    for masked in (False, True):
        active = torch.ones(3, STEPS, 3, dtype=torch.bool)
        active[:, 1, 0] = not masked
        dyn = dynamics(MAKE[name], start, masked=masked)
        states = start_states(dyn, 3)
        given = torch.from_numpy(group_rates(rates.numpy(), dyn.hyper["lr"], 3)).float()
        for t in range(STEPS):
            step(dyn, states, grads[:, t], t, given[:, t], active[:, t] if masked else None)
        for row in range(3):
            true = by_torch(MAKE[name], start, grads[row], active[row], rates=rates[row].tolist())
            torch.testing.assert_close(states.theta[row], true, rtol=2e-6, atol=2e-6)
    assert torch.equal(states.theta[2], start)


@given(st.floats(0.01, 10), st.integers(0, 10**6))
def test_clipping_is_torchs(limit, seed):
    rows = torch.randn(3, 8, generator=generator(seed), dtype=torch.float64)
    dyn = dynamics(MAKE["sgd"], torch.zeros(8, dtype=torch.float64), max_grad_norm=limit)
    for row, mine in zip(rows, clip(dyn, rows), strict=True):
        own = parameters(torch.zeros(8, dtype=torch.float64))
        for p, g in zip(own, row.split(SIZES), strict=True):
            p.grad = g.view(p.shape).clone()
        torch.nn.utils.clip_grad_norm_(own, limit)
        torch.testing.assert_close(mine, torch.cat([p.grad.reshape(-1) for p in own]), rtol=1e-12, atol=0)
    norm = torch.full((3,), 2 * limit, dtype=torch.float64)  # known to be twice the limit
    torch.testing.assert_close(clip(dyn, rows, norm), rows / 2, rtol=1e-4, atol=0)  # torch adds 1e-6 to the norm
    assert clip(dynamics(MAKE["sgd"], torch.zeros(8)), rows) is rows


def test_clipping_estimates_the_norm_from_the_coordinates_carried():
    """m of P coordinates stand for P / m each: the estimate of the squared norm is unbiased."""
    g = generator(3)
    whole = torch.randn(4000, generator=g)
    limit = float(whole.norm()) / 4
    dyn = dynamics(MAKE["sgd"], torch.zeros(8), max_grad_norm=limit)
    dyn = dataclasses.replace(dyn, weight=4000 / 400)
    factors = []
    for _ in range(200):
        some = whole[torch.randperm(4000, generator=g)[:400]]
        factors.append(float((clip(dyn, some[None])[0] / some).mean()))
    assert abs(np.mean(factors) - 0.25) < 0.005


def test_slices_join_what_is_alike():
    counts, present = torch.tensor([3.0, 3.0, 0.0]), torch.tensor([True, True, False])
    described = [{"shape": s, "group": 0} for s in SHAPES]
    joined = slices(described, None, counts, present, False)
    assert [(s.coords.start, s.coords.stop, s.count) for s in joined] == [(0, 7, 3.0), (7, 8, 0.0)]
    assert len(slices(described, None, counts, present, True)) == 3
    some = slices(described, torch.tensor([0, 2, 7]), counts, present, True)  # none of the second parameter's
    assert [(s.coords.start, s.coords.stop, s.parameter) for s in some] == [(0, 2, 0), (2, 3, 2)]
