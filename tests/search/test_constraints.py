"""Orders that keep to constraints."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import orderscope as osc
from orderscope.search import After, Before, Fixed, Share, constraints, parse_constraint
from orderscope.search.constraints import Rules
from searching import propose

ORDER = np.arange(48).reshape(12, 4)
CODES = np.repeat(np.arange(12) % 3, 4)  # one group a batch
MIXED = np.arange(48) % 3  # all groups in every batch
NAMES = ["a", "b", "c"]


def shares(order: np.ndarray, codes: np.ndarray, code: int, window: int) -> np.ndarray:
    held = (codes[order] == code).mean(1)
    return np.convolve(held, np.ones(window) / window, mode="valid")


def test_examples() -> None:
    assert doctest.testmod(constraints).failed == 0


@given(st.integers(0, 10_000))
def test_repaired_orders_hold_and_keep_batches(seed: int) -> None:
    rules = Rules([After("a", 3), Before("b", 10), Fixed((11,)), Share("c", 0.2, 0.6, 5)], ORDER, CODES, NAMES)
    order = ORDER[np.random.default_rng(seed).permutation(12)]
    (found,) = rules.repaired(order[None])
    assert rules.holds(found[None])[0]
    assert not (CODES[found[:3]] == 0).any()
    assert not (CODES[found[10:]] == 1).any()
    np.testing.assert_array_equal(found[11], ORDER[11])
    share = shares(found, CODES, 2, 5)
    assert (share >= 0.2 - 1e-9).all()
    assert (share <= 0.6 + 1e-9).all()
    assert {tuple(b) for b in found.tolist()} == {tuple(b) for b in ORDER.tolist()}


def test_an_order_that_holds_is_left_alone_and_others_change_little() -> None:
    rules = Rules([After("a", 2)], ORDER, CODES, NAMES)
    fine = ORDER[[1, 2, 0, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
    np.testing.assert_array_equal(rules.repaired(fine[None])[0], fine)
    changed = (rules.repaired(ORDER[None])[0] != ORDER).any(1).sum()
    assert 0 < changed <= 3


def test_samples_leave_their_batches_only_where_they_may() -> None:
    with pytest.raises(osc.OrderscopeError, match="regroup=True"):
        Rules([After("a", 2)], ORDER, MIXED, NAMES)
    rules = Rules([After("a", 2)], ORDER, MIXED, NAMES, regroup=True)
    (found,) = rules.repaired(ORDER[None])
    assert not (MIXED[found[:2]] == 0).any()
    np.testing.assert_array_equal(np.sort(found, axis=None), np.arange(48))


def test_shares_of_mixed_batches() -> None:
    rules = Rules([Share("a", 0.25, 0.5, 3)], ORDER, MIXED, NAMES, regroup=True)
    sorted_ = np.argsort(MIXED, kind="stable").reshape(12, 4)
    assert not rules.holds(sorted_[None])[0]
    (found,) = rules.repaired(sorted_[None])
    share = shares(found, MIXED, 0, 3)
    assert share.min() >= 0.25 - 1e-9
    assert share.max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([After("d", 1)], "unknown group; expected one of a, b, c"),
        ([After("a", 13)], "expected a step from 0 to 12"),
        ([Fixed((12,))], "expected steps from 0 to 11"),
        ([Fixed(())], "expected steps from 0"),
        ([Share("a", 0.5, 1.0, 4)], "16 of 48 samples are of that group; expected shares around 0.333"),
        ([Share("a", 0.0, 0.2, 4)], "expected shares around 0.333"),
        ([Share("a", 0.5, 0.2, 4)], "0 <= least <= most <= 1"),
        ([Share("a", 0.0, 0.5, 0)], "a window of 1 to 12 steps"),
        ([After("a", 8), Before("a", 8)], "no order that meets After"),
        ([After("a", 10)], "no order that meets After"),
    ],
)
def test_what_cannot_be_is_said(given: list, message: str) -> None:
    with pytest.raises(osc.OrderscopeError, match=message.replace("(", r"\(")):
        Rules(given, ORDER, CODES, NAMES)


@pytest.mark.parametrize("text", ["after:a", "share:a:0.1:2", "fixed:x", "never", "before:a:x"])
def test_texts_that_are_no_constraints(text: str) -> None:
    with pytest.raises(osc.OrderscopeError, match="expected after:GROUP:STEP"):
        parse_constraint(text)


def test_texts() -> None:
    assert parse_constraint("after:a:b:12") == After("a:b", 12)
    assert parse_constraint("before:code:3") == Before("code", 3)
    assert parse_constraint("fixed:0,4") == Fixed((0, 4))


def test_a_proposal_keeps_to_them(char: osc.Simulator) -> None:
    codes = char.window.group_codes
    kept = [After("a", 4), "fixed:11"]
    found = propose(char, constraints=kept, budget=250, verify=2)
    assert found.confirmed is not None
    for row in found.table:
        assert row.name == "reference" or not (codes[row.order[:4]] == 0).any()
    assert not (codes[found.order[:4]] == 0).any()
    np.testing.assert_array_equal(np.sort(found.order[11]), np.sort(char.order[11]))
    assert any("does not meet the constraints" in note for note in found.notes)
    whole = propose(char, constraints=["after:a:4"], budget=120, verify=1, regroup=False)
    assert {tuple(sorted(b)) for b in whole.order.tolist()} == {tuple(sorted(b)) for b in char.order.tolist()}
    with pytest.raises(osc.OrderscopeError, match="no order that meets"):
        propose(char, constraints=["after:a:11"])
