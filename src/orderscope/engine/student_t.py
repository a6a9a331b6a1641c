"""Quantiles of Student's t and of chi-square, without scipy, whose import takes 0.2 s."""

from __future__ import annotations

import math


def two_sided(freedom: int, coverage: float) -> float:
    """The t that a variable with so many degrees of freedom stays within, either side, with this probability.

    Bisection in the angle atan(t / sqrt(freedom)), of which the probability is a finite sum.

    Source: Abramowitz & Stegun, "Handbook of mathematical functions", 1964, 26.7.3 and 26.7.4.

    Args:
        freedom: degrees of freedom, from 1.
        coverage: the probability, above 0 and below 1.

    Example:
        >>> round(two_sided(8, 0.9), 4)
        1.8595
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(freedom, middle) < coverage else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _within(freedom: int, angle: float) -> float:
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= square * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def chi_square(freedom: int, probability: float) -> float:
    """What the sum of so many squared standard normals stays below with this probability.

    Bisection; the probability is a finite sum.

    Source: Abramowitz & Stegun, "Handbook of mathematical functions", 1964, 26.4.4 and 26.4.5.

    Args:
        freedom: number of normals, from 1.
        probability: above 0 and below 1.

    Example:
        >>> round(chi_square(8, 0.05), 4)
        2.7326
    """
    low, high = 0.0, 1.0
    while _below(freedom, high) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _below(freedom, middle) < probability else (low, middle)
    return low


def _below(freedom: int, value: float) -> float:
    half = value / 2
    odd = freedom % 2
    term = math.sqrt(half / math.pi) * 2 * math.exp(-half) if odd else math.exp(-half)
    above = math.erfc(math.sqrt(half)) if odd else 0.0
    for i in range(freedom // 2):
        above += term
        term *= half / (i + 1 + odd / 2)
    return 1 - above
