"""Simple forms of a proposed order: what it is close to, and what that keeps."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest

import orderscope as osc
import searching
from orderscope.search import notes, readable
from orderscope.search.forms import scheduled, sorted_alike
from orderscope.search.notes import kept_words, worth_showing
from orderscope.search.readable import nearest_sort
from orderscope.search.request import checked_request
from orderscope.search.rows import REFERENCE_ROW, Row, Simple
from orderscope.search.work import Work


@pytest.mark.parametrize("module", [notes, readable])
def test_examples(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


def made(sim: osc.Simulator) -> Work:
    return Work(sim, checked_request(sim, "eval", False, None, (), None, {}, None), 1.0, None, 0, None)


def row(sim: osc.Simulator, order: np.ndarray, gain: float) -> Row:
    return Row("found", "by a test", sim.reference["eval"] - gain, 0.0, None, order)


@pytest.mark.parametrize("falling", [False, True])
def test_a_sort_is_recognised(char: osc.Simulator, falling: bool) -> None:
    setting = searching.setting(char)
    losses = setting.samples.loss()[char.order].mean(1)
    steps = np.argsort(-losses if falling else losses, kind="stable")
    best = row(char, char.order[steps], 0.01)
    found = sorted_alike(made(char), setting, best, train=False)
    assert found is not None
    assert (found.by.signal, found.by.falling) == ("loss", falling)
    assert found.by.correlation == pytest.approx(1)
    assert (found.order == best.order).all()
    assert found.predicted == char.predict(best.order).metrics["eval"][0]
    assert found.kept == pytest.approx((char.reference["eval"] - found.predicted) / 0.01)


def test_a_sort_of_samples_is_recognised_in_regrouped_batches(char: osc.Simulator) -> None:
    setting = searching.setting(char)
    flat = char.order.reshape(-1)
    order = flat[np.argsort(setting.samples.loss()[flat], kind="stable")].reshape(char.order.shape)
    assert setting.steps_of(order) is None
    found = sorted_alike(made(char), setting, row(char, order, 0.01), train=False)
    assert found is not None
    assert found.by.signal == "loss"
    assert found.by.correlation > 0.95  # samples of a batch share their position
    assert (found.order == order).all()


def test_a_shuffle_is_no_sort(char: osc.Simulator) -> None:
    rng = np.random.default_rng(0)
    setting, work = searching.setting(char), made(char)
    shuffled = [char.order[rng.permutation(len(char.order))] for _ in range(12)]
    assert [sorted_alike(work, setting, row(char, order, 0.01), train=False) for order in shuffled] == [None] * 12
    own = Row(REFERENCE_ROW, "as recorded", 0.0, 0.0, 0.0, char.order)
    assert sorted_alike(work, setting, own, train=False) is None
    assert scheduled(work, setting, own, train=False) is None


def test_a_form_is_trained_where_that_is_allowed(char: osc.Simulator, tmp_path: Any) -> None:
    import shutil

    shutil.copytree(char.path, tmp_path / "run")
    sim = osc.Simulator(tmp_path / "run", char.task)
    setting, work = searching.setting(sim), made(sim)
    losses = setting.samples.loss()[sim.order].mean(1)
    found = sorted_alike(work, setting, row(sim, sim.order[np.argsort(losses)], 0.01), train=True)
    assert found is not None
    assert sim.task is not None
    assert found.confirmed == osc.retrain(sim.task, found.order).metrics["eval"][0]


def test_a_schedule_that_is_better_than_what_it_was_read_off_is_proposed(
    char: osc.Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict = {"strategies": ["random"], "budget": 20, "verify": 1, "regroup": False}
    plain = searching.propose(char, **options)
    better = searching.propose(char, budget=150, verify=1)
    assert plain.confirmed is not None
    assert better.confirmed is not None
    assert better.confirmed < plain.confirmed
    assert plain.simple is not None

    def schedule(work: Work, *_: Any) -> Simple:
        work.confirm([better.order])
        assert plain.simple is not None
        return Simple(better.order, better.predicted, 1.5, better.confirmed, schedule=plain.simple.schedule)

    monkeypatch.setattr("orderscope.search.proposal.scheduled", schedule)
    found = searching.propose(char, **options)
    assert (found.order == better.order).all()
    assert found.confirmed == better.confirmed
    assert found.simple is not None
    assert found.simple.kept == 1
    row = next(row for row in found.table if (row.order == better.order).all())
    assert (row.name, row.confirmed) == ("group schedule", better.confirmed)
    assert found.parts == row.parts


def test_few_ranks_are_close_to_anything() -> None:
    """Of five steps some number nearly always goes with the position."""
    steps = np.arange(5)
    assert nearest_sort({"loss": steps.astype(float)}, steps) is None
    assert nearest_sort({"loss": np.full(40, 2.0), "length": np.full(40, np.nan)}, np.arange(40)) is None


def test_what_keeps_next_to_nothing_is_not_told() -> None:
    little, much = {"kept": 0.1, "confirmed": 2.8}, {"kept": 0.5, "confirmed": None, "by": "loss, rising"}
    assert kept_words({"simple": little, "sort": None}) == "no simple form keeps this gain"
    assert kept_words({"simple": little | {"kept": -0.4}, "sort": much | {"kept": 0.19}}).startswith("no simple form")
    assert (
        kept_words({"simple": little, "sort": much}) == "a sort by loss, rising keeps 50 % of this gain, as predicted"
    )
    assert kept_words({"simple": None, "sort": None}) == ""
    assert kept_words({"simple": little | {"kept": None}}) == ""
    assert not worth_showing(little)
    assert worth_showing(much)
