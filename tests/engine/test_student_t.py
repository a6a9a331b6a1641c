"""Quantiles of Student's t distribution, against scipy's."""

from __future__ import annotations

import doctest

import pytest
from scipy.special import stdtrit

from orderscope.engine import student_t as student


def test_examples() -> None:
    assert doctest.testmod(student).failed == 0


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.99])
def test_quantiles(coverage: float) -> None:
    for freedom in range(1, 60):
        expected = stdtrit(freedom, 0.5 + coverage / 2)
        assert student.two_sided(freedom, coverage) == pytest.approx(expected, rel=1e-10)
