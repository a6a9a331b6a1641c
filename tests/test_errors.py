"""Errors keep what they hold on the way between processes, and are one line whatever they quote."""

from __future__ import annotations

import copy
import pickle

import pytest

from orderscope.errors import DamagedRun, IncompleteRun, OrderscopeError, check_whole
from orderscope.text import plain, plain_lines


class Own(OrderscopeError):
    """With arguments of its own."""

    exit_code = 7

    def __init__(self, step: int) -> None:
        super().__init__(f"step {step}", "another", "go back")
        self.step = step


@pytest.mark.parametrize("error", [OrderscopeError("a", "b", "c"), DamagedRun("a", "b", "c"),
                                   IncompleteRun("a", "b", "c"), Own(3)], ids=repr)  # fmt: skip
def test_errors_are_pickled_whole(error: OrderscopeError) -> None:
    error.add_note("said beside it")
    for back in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(back) is type(error)
        assert str(back) == str(error)
        assert back.__dict__ == error.__dict__
        assert back.exit_code == error.exit_code


HARMFUL = ["\x1b[2J", "\a", "\b", "\r", "\x7f", "\x9b31m", "\x85", "\u202e", "\u2066", "\u200b", "\u2028", "\ufeff",
           "\ud800", "\U000e0041", "\0"]  # fmt: skip


@pytest.mark.parametrize("text", HARMFUL, ids=ascii)
def test_no_character_steers(text: str) -> None:
    shown = plain(f"a{text}b")
    assert shown.isascii()
    assert shown.isprintable()
    assert plain(shown) == shown
    assert str(OrderscopeError(f"a{text}b", "c", "d")) == f"found {shown}; expected c; d"
    assert plain_lines(f"one\n{text}") == f"one\n{plain(text)}"


@pytest.mark.parametrize("text", ["", "plain", "é ß λ σ ± − …", "日本語", "a\u00a0b", "🎲"])
def test_other_characters_stay(text: str) -> None:
    assert plain(text) == text


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", "two", None, float("nan"), float("inf"), [3]], ids=repr)
def test_whole_numbers(value: object) -> None:
    check_whole(1, jobs=1, probes=3.0)
    with pytest.raises(OrderscopeError) as caught:
        check_whole(1, jobs=2, probes=value)
    assert str(caught.value) == f"found probes={value!r}; expected a whole number from 1; change probes="
