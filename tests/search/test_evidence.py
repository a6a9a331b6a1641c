"""Regrouping samples is taken only where rows that no search saw tell it from whole batches."""

from __future__ import annotations

import doctest
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orderscope.search import evidence
from orderscope.search.confirm import Trained
from orderscope.search.evidence import CLEAR, compared, settled, standard_errors
from orderscope.search.objective import Objective
from orderscope.search.rows import Row

ROWS = 200
LOSS = Objective({"eval": 1.0})


def test_examples() -> None:
    assert doctest.testmod(evidence).failed == 0


def test_chance_passes_as_rarely_however_many_are_compared() -> None:
    """Orders that are as good as the other one: how often the best of them seems clearly better."""
    rng, passed = np.random.default_rng(0), {1: 0, 6: 0}
    for _ in range(2000):
        other = rng.normal(size=40)
        for count in passed:
            found = [compared(LOSS, {"eval": rng.normal(size=40)}, {"eval": other}, count) for _ in range(count)]
            passed[count] += any(each.clear for each in found)
    assert passed[1] / 2000 < 0.04
    assert passed[6] / 2000 < 0.04
    assert standard_errors(1, 10**6) == pytest.approx(CLEAR, abs=1e-3)


def test_a_raised_metric_is_better_where_it_is_more() -> None:
    low, high = {"accuracy": np.zeros(50)}, {"accuracy": np.ones(50) + np.linspace(-0.1, 0.1, 50)}
    raised = Objective({"accuracy": -1.0})
    assert compared(raised, high, low).clear
    assert not compared(raised, low, high).clear


def test_a_metric_without_rows_tells_nothing() -> None:
    assert not compared(LOSS, {"eval": np.array([1.0])}, {"eval": np.array([2.0])}).clear


def work(gains: dict[int, float], noise: float) -> tuple[Any, list[Row]]:
    """A reference 0, whole batches 1, regrouped samples 2 and above; gains over the reference on confirming rows."""
    rng = np.random.default_rng(1)
    base = rng.normal(3, 1, ROWS)
    orders = {k: np.array([[k]]) for k in (0, *gains)}
    losses = {k: base - gains.get(k, 0.0) + noise * rng.standard_normal(ROWS) * (k > 0) for k in orders}
    true = {orders[k].tobytes(): Trained({"eval": float(x.mean())}, {"eval": x}) for k, x in losses.items()}
    split = SimpleNamespace(of=lambda name: np.zeros(ROWS, dtype=bool))
    parts = SimpleNamespace(split=split, searched=SimpleNamespace(held_out=SimpleNamespace(names=("eval",))))
    notes: list[str] = []
    made = SimpleNamespace(
        parts=parts, request=SimpleNamespace(objective=LOSS, judged=True), true=true, regroup=True,
        sim=SimpleNamespace(order=orders[0]), note=notes.append, notes=notes,
    )  # fmt: skip
    rows = [Row(f"{k}", "", 0.0, 0.0, 0.0, orders[k], regroups=k > 1) for k in gains]
    return made, rows


def test_a_clear_gain_of_regrouping_is_taken() -> None:
    made, rows = work({1: 0.1, 2: 0.3}, noise=0.5)
    assert settled(made, rows) == rows
    assert made.regroup
    assert not made.notes


def test_a_gain_within_the_noise_of_the_rows_is_not() -> None:
    made, rows = work({1: 0.1, 2: 0.13}, noise=1.0)
    assert [row.name for row in settled(made, rows)] == ["1"]
    assert not made.regroup
    assert "batches are kept together" in made.notes[0]


def test_without_whole_batches_that_were_trained_the_recorded_order_is_what_it_has_to_beat() -> None:
    made, rows = work({2: 0.02}, noise=1.0)
    assert settled(made, rows) == []
    made, rows = work({2: 0.5}, noise=1.0)
    assert settled(made, rows) == rows


def test_where_regrouping_was_asked_for_nothing_has_to_be_shown() -> None:
    made, rows = work({1: 0.1, 2: 0.1}, noise=1.0)
    made.request.judged = False
    assert settled(made, rows) == rows
    assert made.regroup


def test_where_no_rows_were_set_aside_all_may_be_proposed() -> None:
    made, rows = work({1: 0.1, 2: 0.1}, noise=1.0)
    made.parts = None
    assert settled(made, rows) == rows
    assert made.regroup
