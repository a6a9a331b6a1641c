"""Values and errors from runs left out."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from orderscope.engine import calibration
from orderscope.engine.calibration import AT_LEAST, LEAST, REGROUPED, SURE, Bearing, fit_calibration, interval_factor


def at(outside: np.ndarray, probes: int | None = None, regrouped: float | np.ndarray = 0.0) -> Bearing:
    """Displacements that have nothing in common, but for probes with themselves."""
    alike = np.eye(len(outside)) if probes is None else np.zeros((len(outside), probes))
    return Bearing(outside, alike, np.broadcast_to(regrouped, len(outside)).astype(float))


def test_examples() -> None:
    assert doctest.testmod(calibration).failed == 0


@pytest.mark.parametrize("runs", [6, 8, 20])
def test_intervals_hold_in_nearly_every_recording(runs: int) -> None:
    """Residuals drawn as the model says: normal, in proportion to u. Of 1,000 calibrations with 200 queries each, those
    that hold fewer than 80 % are 5 %, with a standard error of 0.7 %; fewer with many runs, where Student's t is the
    larger factor. On the whole at least 90 % are held."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(1000):
        true = 1 + 0.1 * rng.normal(size=runs + 200)
        outside = 0.5 * rng.uniform(0.5, 1.5, size=len(true))
        told = true + 0.002 * outside * rng.normal(size=len(true))
        fitted = fit_calibration(told[:runs], true[:runs], 1.0, at(outside[:runs]))
        # A unit without the effect, so that the drawn errors are in proportion to it.
        scale = fitted.factor * np.sqrt(np.mean(((told - true)[:runs] / outside[:runs]) ** 2)) * outside[runs:]
        held.append(np.mean(np.abs((told - true)[runs:]) <= scale))
    assert np.mean(np.array(held) < AT_LEAST) < 1.4 * (1 - SURE)
    assert 0.89 < np.mean(held) < 0.96


def test_errors_grow_with_effect_and_distance() -> None:
    true = 1 + np.array([0.1, -0.1, 0.2, -0.2, 0.15, -0.15])
    fitted = fit_calibration(true + 0.02, true, 1.0, at(np.full(6, 0.5)))
    _, (near, effect, most, far) = fitted.apply(np.array([1.0, 1.1, 9.0, 1.0]), at(np.array([0.5, 0.5, 0.5, 1.0]), 6))
    assert near < effect < most
    assert far == pytest.approx(2 * near)
    assert most == pytest.approx(near * (1 + 0.75) / 0.75)


def test_what_errors_of_the_weights_do_where_the_query_ends_widens_an_interval() -> None:
    """Half of the variance is theirs; unknown ones leave it to the residuals."""
    true = 1 + np.array([0.1, -0.1, 0.2, -0.2])
    fitted = fit_calibration(true + np.array([0.01, -0.01, 0.01, -0.01]), true, 1.0, at(np.full(4, 0.5)))
    where, raw = at(np.array([0.5, 1.0]), 4), np.array([1.0, 1.0])
    _, alone = fitted.apply(raw, where)
    _, unknown = fitted.apply(raw, where, np.full((2, 4), np.nan))
    np.testing.assert_array_equal(unknown, alone)
    _, none = fitted.apply(raw, where, np.zeros((2, 4)))
    np.testing.assert_allclose(none, alone / 2**0.5)
    _, much = fitted.apply(raw, where, np.full((2, 4), 0.3))
    np.testing.assert_allclose(much**2, alone**2 / 2 + fitted.factor**2 * 0.5 * (0.3 * np.array([1, 2])) ** 2)


def test_regrouped_orders_are_another_kind() -> None:
    """Wider where none was left out; with such runs it is they that say how much; those of the other kind do not."""
    true = 1 + np.resize([0.1, -0.1, 0.2, -0.2, 0.15, -0.15], 16)
    wrong = 0.01 * np.resize([1.0, -1.0], 16)
    before = fit_calibration((true + wrong)[:8], true[:8], 1.0, at(np.full(8, 0.5)))
    _, (whole, half, new) = before.apply(np.ones(3), at(np.full(3, 0.5), 8, np.array([0.0, 0.5, 1.0])))
    assert new == pytest.approx(REGROUPED * whole)
    assert whole < half < new
    wrong[8:] *= 5
    kinds = at(np.full(16, 0.5), None, np.repeat([0.0, 1.0], 8))
    after = fit_calibration(true + wrong, true, 1.0, kinds)
    _, (same, wide) = after.apply(np.ones(2), at(np.full(2, 0.5), 16, np.array([0.0, 1.0])))
    assert same == pytest.approx(whole, rel=0.1)
    assert wide > 3 * same


def test_runs_that_intervals_did_not_hold_withdraw_trust_from_their_kind() -> None:
    true = 1 + np.resize([0.1, -0.1, 0.2, -0.2, 0.15, -0.15], 16)
    fitted = fit_calibration(true + 0.01, true, 1.0, at(np.full(16, 0.5)))
    assert fitted.held[0] == 1
    assert np.isnan(fitted.held[1])
    assert fitted.holds(np.array([0.0, 1.0])).all()
    pushed = np.zeros((16, 16))
    wrong = np.r_[np.full(12, 0.001), [0.1, -0.1, 0.1, -0.1]]
    rough = fit_calibration(true + wrong, true, 1.0, at(np.full(16, 0.5)), pushed=pushed)
    assert rough.held[0] < AT_LEAST
    np.testing.assert_array_equal(rough.holds(np.array([0.0, 1.0])), [False, True])


def test_what_is_wrong_alike_is_shifted_and_scatter_is_not() -> None:
    """Three probes lead one way and three another; all that lead one way are told too low by 0.2 of their unit."""
    rng = np.random.default_rng(1)
    true = 1 + np.array([0.1, -0.1, 0.2, -0.2, 0.15, -0.15])
    ways = np.repeat([[1.0, 0.0], [0.0, 1.0]], 3, axis=0)
    where = Bearing(np.full(6, 0.5), 0.9 * ways @ ways.T + 0.1 * np.eye(6), np.zeros(6))
    unit = np.abs(true - 1) + 0.05
    fitted = fit_calibration(true - 0.2 * unit * ways[:, 0], true, 1.0, where)
    query = Bearing(np.full(2, 0.5), 0.9 * np.eye(2) @ ways.T, np.zeros(2))
    value, _ = fitted.apply(np.array([1.1, 1.1]), query)
    assert value[0] == pytest.approx(1.1 + 0.2 * (0.1 + fitted.sigma / 3), rel=0.02)
    assert value[1] == pytest.approx(1.1, abs=1e-9)
    assert fitted.residual < 0.05  # 0.1 without the shift
    scattered = [fit_calibration(true + 0.2 * unit * rng.permutation([1, -1, 1, -1, 1, -1]), true, 1.0,
                                 at(np.full(6, 0.5))).shift for _ in range(9)]  # fmt: skip
    assert np.abs(scattered).max() < 1e-12


def test_a_shift_that_is_chosen_by_chance_is_not_made() -> None:
    """Residuals that have nothing to do with where runs lead: with the ridge chosen among seven, half of such draws
    look better from the others; told by a choice that never saw the run, few do, and widths do not shrink by it."""
    rng = np.random.default_rng(2)
    ratio = []
    for _ in range(200):
        ways = rng.normal(size=(7, 4))
        ways /= np.linalg.norm(ways, axis=1, keepdims=True)
        true = 1 + 0.1 * rng.normal(size=7)
        raw = true + 0.01 * rng.normal(size=7)
        where = Bearing(np.full(7, 0.5), ways @ ways.T, np.zeros(7))
        ratio.append(
            fit_calibration(raw, true, 1.0, where).residual
            / fit_calibration(raw, true, 1.0, at(np.full(7, 0.5))).residual
        )
    assert np.mean(np.array(ratio) == 1) > 0.6
    assert np.mean(np.log(ratio)) > -0.1


def test_no_error_is_smaller_than_rounding_or_a_share_of_sigma() -> None:
    true = np.array([1.1, 0.9, 1.2, 0.8])
    fitted = fit_calibration(true, true, 1.0, at(np.full(4, 0.5)), eps=1e-2)
    value, error = fitted.apply(np.array([1.05]), at(np.array([0.5]), 4))
    assert value[0] == pytest.approx(1.05)
    assert error[0] == pytest.approx(0.04)
    exact = fit_calibration(true, true, 1.0, at(np.full(4, 0.5)))
    assert exact.apply(np.array([1.05]), at(np.array([0.5]), 4))[1][0] == pytest.approx(LEAST * exact.sigma)


def test_no_better_than_a_constant_is_said() -> None:
    true = np.array([1.0, 1.1, 0.9, 1.05, 0.95, 1.02])
    assert not fit_calibration(2 - true, true, 1.0, at(np.full(6, 0.5))).skilled
    assert fit_calibration(true + 1e-3, true, 1.0, at(np.full(6, 0.5))).skilled


def test_one_probe_is_not_enough() -> None:
    fitted = fit_calibration(np.array([1.0]), np.array([1.1]), 1.0, at(np.array([0.5])))
    assert not fitted.skilled
    assert not np.isfinite(fitted.residual)


def test_more_runs_make_a_narrower_interval() -> None:
    factors = [interval_factor(n) for n in range(2, 60)]
    assert factors == sorted(factors, reverse=True)
