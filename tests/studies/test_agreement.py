"""Measures of predictions beside the truth, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from orderscope.studies.agreement import agreement, correlation


def test_measures() -> None:
    true = np.array([1.0, 2.0, 3.0, 4.0])
    found = agreement(np.array([1.5, 1.0, 3.0, 14.0]), np.array([0.5, 0.5, 0.5, 0.5]), true)
    assert found["mae"] == pytest.approx((0.5 + 1 + 0 + 10) / 4)
    assert found["mae_ratio"] == pytest.approx(11.5 / 4)  # guessing the median is off by 1 on average
    assert found["coverage"] == 0.5
    assert found["sign"] == pytest.approx(5 / 6)
    assert found["spearman"] == pytest.approx(0.8)
    assert found["pearson"] == pytest.approx(19.75 / np.sqrt(5 * 113.1875))
    assert found["sigma_order"] == pytest.approx(np.sqrt(5 / 3))


def test_orders_that_diverge_are_left_out() -> None:
    rng = np.random.default_rng(0)
    predicted, error, true = rng.normal(size=(3, 6))
    predicted[1], true[4] = np.nan, np.inf
    left = np.array([0, 2, 3, 5])
    assert agreement(predicted, np.abs(error), true) == agreement(predicted[left], np.abs(error)[left], true[left])


def test_coverage_is_of_those_that_have_an_interval() -> None:
    true, none = np.arange(4.0), np.full(4, np.nan)
    assert agreement(true, np.array([1.0, np.nan, np.inf, 1.0]), true + np.array([0, 9, 9, 2]))["coverage"] == 0.5
    assert math.isnan(agreement(true, none, true)["coverage"])


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_values(count: int) -> None:
    found = agreement(np.zeros(count), np.ones(count), np.full(count, 0.5))
    known = {"mae": 0.5, "coverage": 1.0} if count else {}
    assert {name: value for name, value in found.items() if not math.isnan(value)} == known


def test_equal_values_have_no_correlation() -> None:
    assert math.isnan(correlation(np.ones(3), np.arange(3.0)))
    assert math.isnan(agreement(np.arange(3.0), np.ones(3), np.ones(3))["mae_ratio"])
    assert correlation(np.arange(2.0), np.arange(2.0)) == pytest.approx(1.0)
