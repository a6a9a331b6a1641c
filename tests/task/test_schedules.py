"""Schedules against their closed forms and torch's own."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import orderscope as osc
from orderscope import schedules
from orderscope.schedules import SCHEDULES, constant, cosine, linear, rewarm, rex, stable_then_decay


def test_examples() -> None:
    assert doctest.testmod(schedules).failed == 0


def scheduled(kind: Any, steps: int, **options: Any) -> list[float]:
    """Rates of one of torch's schedulers."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = kind(optimizer, **options)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_and_linear_are_torchs() -> None:
    found = scheduled(torch.optim.lr_scheduler.CosineAnnealingLR, 9, T_max=9, eta_min=0.03)
    np.testing.assert_allclose(cosine(9, 0.3, floor=0.1), found, rtol=1e-9)
    found = scheduled(torch.optim.lr_scheduler.LinearLR, 9, start_factor=1.0, end_factor=0.1, total_iters=9)
    np.testing.assert_allclose(linear(9, 0.3, floor=0.1), found, rtol=1e-9)


@given(st.sampled_from(list(SCHEDULES)), st.integers(1, 60), st.floats(1e-6, 10.0), st.data())
def test_rates_climb_to_the_peak_and_never_pass_it(name: str, steps: int, peak: float, data: Any) -> None:
    warmup = data.draw(st.integers(0, steps - 1))
    rates = SCHEDULES[name](steps, peak, warmup=warmup)
    assert rates.shape == (steps,)
    assert rates.dtype == np.float64
    assert ((rates >= 0) & (rates <= peak * (1 + 1e-12))).all()
    assert rates[warmup] == pytest.approx(peak)
    assert (np.diff(rates[: warmup + 1]) >= 0).all()
    assert (np.diff(rates[warmup:]) <= 1e-12 * peak).all()


@given(st.sampled_from(["linear", "cosine", "rex", "stable_then_decay"]), st.integers(1, 60), st.floats(0.0, 1.0))
def test_no_rate_is_below_the_floor(name: str, steps: int, floor: float) -> None:
    assert SCHEDULES[name](steps, 2.0, floor=floor).min() >= 2.0 * floor * (1 - 1e-12)


def test_rex_lies_above_linear() -> None:
    assert (rex(20, 1.0) >= linear(20, 1.0)).all()


def test_stable_then_decay_between_its_ends() -> None:
    np.testing.assert_array_equal(stable_then_decay(9, 1.0, decay=0.0), constant(9, 1.0))
    np.testing.assert_allclose(stable_then_decay(9, 1.0, decay=1.0), linear(9, 1.0))


def test_rewarm_repeats_the_shape() -> None:
    rates = cosine(12, 0.5)
    again = rewarm(rates, 8, warmup=1, peak=0.2)
    np.testing.assert_array_equal(again[:8], rates[:8])
    assert again[8:].max() == pytest.approx(0.2)
    assert (np.diff(again[9:]) < 0).all()
    np.testing.assert_allclose(rewarm(rates, 0), rates)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear(0, 1.0), "steps=0"),
        (lambda: linear(3, -1.0), "peak=-1.0"),
        (lambda: linear(3, float("nan")), "peak=nan"),
        (lambda: cosine(3, 1.0, warmup=3), "warmup=3 of 3 steps"),
        (lambda: cosine(3, 1.0, floor=1.5), "floor=1.5"),
        (lambda: stable_then_decay(3, 1.0, decay=2.0), "decay=2.0"),
        (lambda: rewarm(linear(3, 1.0), 3), "at=3"),
    ],
)
def test_wrong_numbers(call: Any, message: str) -> None:
    with pytest.raises(osc.OrderscopeError, match=message):
        call()
