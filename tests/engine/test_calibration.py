"""Values and errors from probes left out."""

from __future__ import annotations

import numpy as np
import pytest

from orderscope.engine.calibration import fit_calibration


def members(values: np.ndarray, noise: float = 0.0) -> np.ndarray:
    return np.stack([values, values + noise, values - noise])


def test_intervals_hold_nine_times_in_ten() -> None:
    """Residuals drawn as the model says: normal, in proportion to the effect claimed. 400 calibrations of six probes
    with 50 queries each; the share that holds has a standard error of about 0.01 (calibrations vary): 0.86 to 0.94."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        true = 1 + 0.1 * rng.normal(size=56)
        told = 1 + (true - 1) + 0.2 * (np.abs(true - 1) + 0.05) * rng.normal(size=56)
        outside = np.full(56, 0.5)
        fitted = fit_calibration(members(told[:6]), true[:6], 1.0, outside[:6])
        value, error = fitted.apply(members(told[6:]), outside[6:])
        held.append(np.mean(np.abs(value - true[6:]) <= error))
    assert 0.86 < np.mean(held) < 0.94


def test_a_common_shift_is_taken_over_and_scatter_is_not() -> None:
    true = np.array([1.1, 0.9, 1.2, 0.8, 1.15, 0.85])
    outside = np.full(6, 0.5)
    shifted = fit_calibration(members(true - 0.05), true, 1.0, outside)
    assert shifted.shift > 0
    signs = np.array([1, -1, 1, -1, 1, -1])
    assert fit_calibration(members(true + 0.02 * signs * (np.abs(true - 1) + 0.08)), true, 1.0, outside).shift == 0


def test_no_better_than_a_constant_is_said() -> None:
    true = np.array([1.0, 1.1, 0.9, 1.05, 0.95, 1.02])
    assert not fit_calibration(members(2 - true), true, 1.0, np.full(6, 0.5)).skilled
    assert fit_calibration(members(true + 1e-3), true, 1.0, np.full(6, 0.5)).skilled


def test_noise_between_the_halves_widens_the_error() -> None:
    true = np.array([1.1, 0.9, 1.2, 0.8])
    fitted = fit_calibration(members(true), true, 1.0, np.full(4, 0.5))
    quiet = fitted.apply(members(np.array([1.05])), np.array([0.5]))[1]
    loud = fitted.apply(members(np.array([1.05]), 0.1), np.array([0.5]))[1]
    assert loud[0] > quiet[0]
    # Standard error of the halves' mean is half their difference, here 0.1, times Student's t for four probes.
    assert loud[0] == pytest.approx(2.132 * 0.1, rel=0.05)


def test_one_probe_is_not_enough() -> None:
    fitted = fit_calibration(members(np.array([1.0])), np.array([1.1]), 1.0, np.array([0.5]))
    assert not fitted.skilled
    assert not np.isfinite(fitted.residual)
