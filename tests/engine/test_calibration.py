"""Values and errors from runs left out."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from orderscope.engine import calibration
from orderscope.engine.calibration import Bearing, fit_calibration
from orderscope.engine.error_bars import AT_LEAST, LEAST


def at(outside: np.ndarray, probes: int | None = None, regrouped: float | np.ndarray = 0.0) -> Bearing:
    """Displacements that have nothing in common, but for probes with themselves."""
    alike = np.eye(len(outside)) if probes is None else np.zeros((len(outside), probes))
    new = np.broadcast_to(regrouped, len(outside)).astype(float)
    return Bearing(outside, alike, new, np.zeros(len(outside), dtype=bool))


def test_examples() -> None:
    assert doctest.testmod(calibration).failed == 0


def test_errors_grow_with_effect_and_distance() -> None:
    true = 1 + np.array([0.1, -0.1, 0.2, -0.2, 0.15, -0.15])
    fitted = fit_calibration(true + 0.02, true, 1.0, at(np.full(6, 0.5)))
    _, (near, effect, much, most, far) = fitted.apply(
        np.array([1.0, 1.1, 2.0, 9.0, 1.0]), at(np.array([0.5, 0.5, 0.5, 0.5, 1.0]), 6)
    )
    assert near < effect < much == most  # an effect beyond the runs' spread adds nothing
    assert far == pytest.approx(2 * near, rel=0.1)


def test_an_error_of_the_weights_is_not_held_against_its_own_run() -> None:
    """What a run's error does to its own loss is that run's residual."""
    true = 1 + np.array([0.1, -0.1, 0.2, -0.2])
    raw, where = true + np.array([0.01, -0.01, 0.01, -0.01]), at(np.full(4, 0.5))
    others = np.full((4, 4), 0.02)
    fitted = [
        fit_calibration(raw, true, 1.0, where, pushed=np.where(np.eye(4), own, others)) for own in (0.0, 9.0, np.nan)
    ]
    for each in fitted[1:]:
        np.testing.assert_array_equal(each.error, fitted[0].error)


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
    where = Bearing(np.full(6, 0.5), 0.9 * ways @ ways.T + 0.1 * np.eye(6), np.zeros(6), np.zeros(6, dtype=bool))
    unit = np.abs(true - 1) + 0.05
    fitted = fit_calibration(true - 0.2 * unit * ways[:, 0], true, 1.0, where)
    query = Bearing(np.full(2, 0.5), 0.9 * np.eye(2) @ ways.T, np.zeros(2), np.zeros(2, dtype=bool))
    value, _ = fitted.apply(np.array([1.1, 1.1]), query)
    assert value[0] == pytest.approx(1.1 + 0.2 * (0.1 + fitted.sigma / 3), rel=0.02)
    assert value[1] == pytest.approx(1.1, abs=1e-9)
    assert np.linalg.norm(fitted.predicted - true) < 0.5 * np.linalg.norm(0.2 * unit * ways[:, 0])
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
        where = Bearing(np.full(7, 0.5), ways @ ways.T, np.zeros(7), np.zeros(7, dtype=bool))
        shifted, alone = (fit_calibration(raw, true, 1.0, a) for a in (where, at(np.full(7, 0.5))))
        ratio.append(np.linalg.norm(shifted.predicted - true) / np.linalg.norm(alone.predicted - true))
    assert np.mean(np.isclose(ratio, 1)) > 0.6
    assert np.mean(np.log(ratio)) > -0.1


def test_runs_that_sort_samples_say_nothing_of_orders_that_do_not() -> None:
    rng = np.random.default_rng(3)
    true = np.array([1.1, 0.9, 1.05, 0.95, 1.2, 4.0])
    raw = true + np.array([0.01, -0.01, 0.01, -0.02, 0.01, 1.0])
    sorting, alike = np.arange(6) == 5, rng.uniform(-1, 1, size=(6, 6)) + 2 * np.eye(6)
    every = Bearing(np.full(6, 0.5), alike, sorting.astype(float), sorting)
    five = Bearing(np.full(5, 0.5), alike[:5, :5], np.zeros(5), sorting[:5])
    pushed = 0.01 + 0.01 * rng.uniform(size=(6, 6))
    fitted = fit_calibration(raw, true, 1.0, every, pushed=pushed)
    alone = fit_calibration(raw[:5], true[:5], 1.0, five, pushed=pushed[:5, :5])
    query, values = (
        Bearing(np.full(3, 0.5), alike[:3], np.zeros(3), np.array([False, False, True])),
        np.array([1.1, 1.4, 1.1]),
    )
    found = fitted.apply(values, query, pushed[:3])
    usual = alone.apply(values, Bearing(query.outside, alike[:3, :5], np.zeros(3), query.sorting), pushed[:3, :5])
    np.testing.assert_array_equal(np.stack(found)[:, 0], np.stack(usual)[:, 0])
    assert fitted.sigma == alone.sigma < 0.2
    assert fitted.outlying(values, query.sorting).tolist() == [False, True, True]  # 0.4 is twice the largest effect
    assert (found[1][1:] > 3 * usual[1][1:]).all()
    assert fitted.beyond is not None
    np.testing.assert_array_equal(fitted.true, true)
    np.testing.assert_array_equal(fitted.predicted[5], fitted.beyond.predicted[5])


def test_no_error_is_smaller_than_rounding_or_a_share_of_sigma() -> None:
    true = np.array([1.1, 0.9, 1.2, 0.8])
    fitted = fit_calibration(true, true, 1.0, at(np.full(4, 0.5)), eps=0.1)
    value, error = fitted.apply(np.array([1.05]), at(np.array([0.5]), 4))
    assert value[0] == pytest.approx(1.05)
    assert error[0] == pytest.approx(0.4)
    exact = fit_calibration(true, true, 1.0, at(np.full(4, 0.5)))
    assert exact.apply(np.array([1.0]), at(np.array([0.0]), 4))[1][0] == pytest.approx(LEAST * exact.sigma)


def test_no_better_than_a_constant_is_said() -> None:
    true = np.array([1.0, 1.1, 0.9, 1.05, 0.95, 1.02])
    assert not fit_calibration(2 - true, true, 1.0, at(np.full(6, 0.5))).skilled
    assert fit_calibration(true + 1e-3, true, 1.0, at(np.full(6, 0.5))).skilled


def test_one_probe_is_not_enough() -> None:
    fitted = fit_calibration(np.array([1.0]), np.array([1.1]), 1.0, at(np.array([0.5])))
    assert not fitted.skilled
    assert np.isinf(fitted.apply(np.array([1.0]), at(np.array([0.5]), 1))[1][0])
