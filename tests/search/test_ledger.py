"""No order twice, none beyond the budget."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

import orderscope as osc
from orderscope.search.ledger import Estimates, Ledger, Spent

ORDER = np.arange(12).reshape(4, 3)


def ledger(budget: int = 10, seconds: float = 60.0) -> tuple[Ledger, list[int]]:
    calls: list[int] = []

    def score(orders: np.ndarray) -> Estimates:
        calls.append(len(orders))
        value = orders[:, 0, 0].astype(float)
        return Estimates(value, np.full(len(orders), 0.1), 0 * value, value[:, None], value, 0 * value)

    return Ledger(ORDER, score, budget, time.perf_counter() + seconds), calls


def orders(count: int) -> np.ndarray:
    return np.stack([ORDER[np.random.default_rng(i).permutation(4)] for i in range(count)])


def test_an_order_is_scored_once_also_with_its_batches_written_otherwise() -> None:
    book, calls = ledger()
    first = book(ORDER[None], ["a"])
    again = book(np.concatenate([ORDER[None, :, ::-1], ORDER[None]]), ["a", "a"])
    assert calls == [1]
    assert book.scored == 1
    assert (again.value == first.value).all()


def test_recorded_batches_are_scored_many_at_once_and_regrouped_ones_few() -> None:
    book, calls = ledger(budget=100)
    whole = np.stack([ORDER[list(p)] for p in itertools.permutations(range(4))])
    regrouped = np.stack([np.random.default_rng(i).permutation(12).reshape(4, 3) for i in range(20)])
    book(np.concatenate([regrouped[:10], whole, regrouped[10:]]), ["a"] * 44)
    assert calls == [24, 8, 8, 4]
    assert book.scored == 44


def test_the_budget_is_kept() -> None:
    book, calls = ledger(budget=3)
    many = np.stack([ORDER[list(p)] for p in ([0, 1, 2, 3], [1, 0, 2, 3], [2, 1, 0, 3], [3, 1, 2, 0], [0, 2, 1, 3])])
    scores = book(many, ["a"] * 5)
    assert np.isfinite(scores.value).sum() == 3
    assert sum(calls) == book.scored == 3
    with pytest.raises(Spent):
        book(many[3:], ["a"] * 2)
    assert np.isfinite(book(many[:3], ["a"] * 3).value).all()


def test_time_is_kept() -> None:
    book, _ = ledger(seconds=-1.0)
    with pytest.raises(Spent):
        book(ORDER[None], ["a"])


def test_what_diverges_is_worse_than_any() -> None:
    book, _ = ledger()
    nought = np.zeros(1)
    book.score = lambda orders: Estimates(nought + np.nan, nought, nought, nought[:, None], nought, nought)
    assert np.isinf(book(ORDER[None], ["a"]).value[0])
    assert not book.ranked()


def test_steps_are_found_again() -> None:
    book, _ = ledger()
    assert book.steps_of(ORDER[[2, 0, 3, 1]][:, ::-1]) is not None
    np.testing.assert_array_equal(book.steps_of(ORDER[[2, 0, 3, 1]][:, ::-1]), [2, 0, 3, 1])
    regrouped = ORDER.copy()
    regrouped[0, 0], regrouped[1, 0] = regrouped[1, 0], regrouped[0, 0]
    assert book.steps_of(regrouped) is None


def test_batches_that_come_twice_are_told_apart() -> None:
    twice = np.concatenate([ORDER, ORDER])
    book = Ledger(
        twice,
        lambda o: Estimates(*(np.zeros(len(o)) for _ in range(3)), np.zeros((len(o), 1)), *np.zeros((2, len(o)))),
        10,
    )
    found = book.steps_of(twice[::-1])
    assert found is not None
    assert sorted(found) == list(range(8))


@pytest.mark.parametrize("wrong", [ORDER[:3], ORDER + 1, ORDER.astype(float), np.zeros((2, 4, 3), dtype=int)])
def test_something_else_than_a_rearrangement_names_its_strategy(wrong: np.ndarray) -> None:
    book, _ = ledger()
    with pytest.raises(osc.OrderscopeError, match="from strategy 'odd' that does not rearrange"):
        book.checked(wrong, "odd")
