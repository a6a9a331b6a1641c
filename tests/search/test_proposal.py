"""The whole search, against true training."""

from __future__ import annotations

import doctest
import shutil
from pathlib import Path

import numpy as np
import pytest

import orderscope as osc
import tasks_tiny
from law_tasks import permuted_steps, simulated
from orderscope.recording.costs import training_seconds
from orderscope.search import STRATEGIES, Proposal, Strategy, equal_cost, notes, register
from orderscope.search.confirm import Trained
from orderscope.search.equal_cost import expected_best, spent_runs
from orderscope.search.ledger import Estimates
from orderscope.search.scores import View
from searching import propose


@pytest.fixture(scope="module")
def proposal(char: osc.Simulator) -> Proposal:
    return propose(char, budget=400, seconds=30)


def test_beats_random_orders_truly_trained(char: osc.Simulator, proposal: Proposal) -> None:
    assert char.task is not None
    true = osc.retrain(char.task, permuted_steps(char.order, 5, 20)).metrics["eval"]
    assert proposal.confirmed is not None
    assert proposal.confirmed < true.min()
    assert proposal.confirmed < true.mean() - 2 * true.std()


def test_is_what_training_it_gives(char: osc.Simulator, proposal: Proposal) -> None:
    assert char.task is not None
    assert osc.retrain(char.task, proposal.order).metrics["eval"][0] == proposal.confirmed
    assert (np.sort(proposal.order, axis=None) == np.sort(char.order, axis=None)).all()
    assert proposal.order.dtype == np.int64
    told = char.predict(proposal.order).metrics["eval"][0]  # it was told beside others, which rounds differently
    assert proposal.predicted == pytest.approx(told, rel=1e-6)


def test_tells_what_was_spent_and_what_luck_would_bring(char: osc.Simulator, proposal: Proposal) -> None:
    assert 0 < proposal.scored <= 400
    assert proposal.cost > 1 + len(char.probes)
    expected = proposal.random["mean"] - proposal.random["std"] * expected_best(proposal.cost)
    assert proposal.best_of_n == pytest.approx(expected)
    assert proposal.reference == char.reference["eval"]
    assert proposal.confirmed is not None
    gain = (proposal.random["mean"] - proposal.confirmed) / proposal.random["std"]
    assert proposal.gain_sigma == pytest.approx(gain)


def test_the_table_has_every_strategy_and_the_confirmed_first(proposal: Proposal) -> None:
    silent = {note.partition(":")[0] for note in proposal.notes}
    assert {row.name for row in proposal.table} | (silent & set(STRATEGIES)) == set(STRATEGIES)
    assert {"short first", "readability", "paired reversal"} <= silent
    confirmed = [row.confirmed for row in proposal.table]
    told = [c for c in confirmed if c is not None]
    assert confirmed[: len(told)] == sorted(told)
    orders = {row.order.tobytes() for row in proposal.table if row.confirmed is not None}
    assert len(orders) == 4  # three and the reference
    for row in proposal.table:
        assert np.isfinite(row.predicted)
        assert row.order.shape == proposal.order.shape


def test_is_the_same_again(char: osc.Simulator) -> None:
    first, second = (propose(char, budget=120, verify=0, seconds=60, seed=3) for _ in range(2))
    assert (first.order == second.order).all()
    assert first.predicted == second.predicted
    assert first.scored == second.scored


def test_batches_can_be_kept_together(char: osc.Simulator) -> None:
    found = propose(char, budget=200, verify=1, regroup=False, seconds=30)
    recorded = {tuple(sorted(batch)) for batch in char.order.tolist()}
    assert {tuple(sorted(batch)) for batch in found.order.tolist()} == recorded
    assert not any("regroup" in row.name for row in found.table)
    assert found.confirmed is not None
    assert found.confirmed <= found.reference


def test_without_single_samples_batches_are_kept(kept_together: osc.Simulator) -> None:
    found = propose(kept_together, budget=100, verify=1, seconds=30)
    recorded = {tuple(sorted(batch)) for batch in kept_together.order.tolist()}
    assert {tuple(sorted(batch)) for batch in found.order.tolist()} == recorded
    with pytest.raises(osc.OrderscopeError, match=r"regroup=True.*sample_anchors"):
        propose(kept_together, regroup=True)


def test_is_never_worse_than_the_reference(char: osc.Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all that was trained turns out worse, it says so and proposes what was recorded."""
    worse = Trained({"eval": 99.0}, {"eval": np.full(12, 99.0)})
    monkeypatch.setattr("orderscope.search.confirm._train_only", lambda *args: worse)
    monkeypatch.setattr("orderscope.search.confirm._train_in_run", lambda *args: None)
    found = propose(char, budget=70, seconds=30)
    assert (found.order == char.order).all()
    assert found.confirmed == found.predicted == char.reference["eval"]
    assert found.undetectable
    assert any("no better order" in note for note in found.notes)


def test_a_better_order_that_was_trained_before_is_named(char: osc.Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would take the proposal who has a better order already."""
    truth = char.run_truth["eval"]
    worse = Trained({"eval": float(truth.min()) + 1e-3}, {"eval": np.full(12, float(truth.min()) + 1e-3)})
    monkeypatch.setattr("orderscope.search.confirm._train_only", lambda *args: worse)
    monkeypatch.setattr("orderscope.search.confirm._train_in_run", lambda *args: None)
    found = propose(char, budget=70, seconds=30)
    best = min(float(found.reference if found.confirmed is None else found.confirmed), found.reference)
    (note,) = [note for note in found.notes if "trained before" in note]
    i = int(truth.argmin())
    assert truth[i] < best
    assert f"eval {truth[i]:.5g} in run {char.runs[i]}; Simulator.run_orders[{i}]" in note


def test_a_proposal_that_had_been_trained_is_foretold_without_its_own_run(tmp_path: Path) -> None:
    """The table and the summary say the same of it."""
    sim, _ = simulated(tasks_tiny.char(steps=12), tmp_path, anchors=3, probes=4)
    for _ in range(2):
        found = propose(sim, budget=60, verify=1, seconds=30, regroup=False)
        ours = [row for row in found.table if np.array_equal(row.order, found.order)]
        assert ours
        assert {(row.predicted, row.error) for row in ours} == {(found.predicted, found.error)}
        sim = osc.Simulator(sim.path, sim.task)


@pytest.mark.parametrize("budget", [1, 2, 7, 30])
def test_small_budgets_are_kept(char: osc.Simulator, budget: int) -> None:
    found = propose(char, budget=budget, verify=1, seconds=30)
    assert found.scored <= budget
    assert found.confirmed is not None
    assert found.confirmed <= char.reference["eval"]


def test_where_there_is_nothing_to_look_for_it_stops_unless_told_to_go_on(char: osc.Simulator) -> None:
    """Twelve held-out rows tell no orders apart."""
    found = osc.propose(char)
    assert found.verdict.startswith("nothing to look for with these 12 rows")
    assert not found.searched
    assert found.scored == 0
    assert (found.order == char.order).all()
    assert any("anyway=True" in note for note in found.notes)
    assert propose(char, budget=20, verify=0, anyway=True).searched


def test_without_the_task_nothing_is_confirmed(char: osc.Simulator) -> None:
    found = propose(osc.Simulator(char.path), budget=80, seconds=30)
    assert found.confirmed is None
    assert any("needs the task" in note for note in found.notes)
    assert found.predicted < found.reference


def test_a_metric_that_is_no_loss_can_be_maximized(classifier: osc.Simulator) -> None:
    found = propose(classifier, metric="accuracy", maximize=True, budget=60, seconds=30)
    assert found.confirmed is not None
    assert found.confirmed >= classifier.reference["accuracy"]
    assert any("no stored expansion" in note for note in found.notes)


def test_a_loss_can_be_maximized(char: osc.Simulator) -> None:
    found = propose(char, maximize=True, budget=100, verify=1, seconds=30)
    assert found.confirmed is not None
    assert found.confirmed > char.reference["eval"]
    assert found.gain_sigma > 0


def test_two_strategies_with_the_same_best_order_have_a_row_each(
    char: osc.Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orderscope.search.strategy.STRATEGIES", dict(STRATEGIES))

    @register
    class Backwards(Strategy):
        name, source = "backwards", "the same as reverse"

        def orders(self, setting):
            yield setting.order[::-1][None]

    found = propose(char, strategies=["reverse", "backwards"], verify=1)
    rows = [row for row in found.table if row.name != "group schedule"]  # the schedule nearest to it may be better
    assert {row.name for row in rows} == {"reverse", "backwards"}
    assert {row.confirmed for row in rows} == {rows[0].confirmed}


def test_strategies_that_find_nothing_new_end(tmp_path: Path) -> None:
    """Three steps have six orders: a population of them breeds nothing else, and no clock ends it."""
    sim, _ = simulated(tasks_tiny.classifier(steps=3), tmp_path, anchors=2, probes=2, sample_anchors=0)
    names = ["genetic", "random restarts", "local search", "descent"]
    found = propose(sim, strategies=names, budget=2000, verify=1, seconds=float("inf"))
    assert found.scored <= 6


def test_time_is_limited(char: osc.Simulator) -> None:
    found = propose(char, seconds=0.01, verify=0)
    assert found.scored <= 64
    assert any("seconds=" in note for note in found.notes)


def test_a_strategy_takes_ten_lines(char: osc.Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orderscope.search.strategy.STRATEGIES", dict(STRATEGIES))

    @register
    class Zigzag(Strategy):
        name, source = "zigzag", "an idea"

        def orders(self, setting):
            steps = np.r_[0 : setting.steps : 2, 1 : setting.steps : 2]
            yield setting.order[np.stack([steps, steps[::-1]])]

    found = propose(char, strategies=["zigzag"], verify=1)
    (row,) = found.table
    assert (row.name, row.source) == ("zigzag", "an idea")
    assert found.scored <= 4

    class Other(Zigzag):
        pass

    with pytest.raises(osc.OrderscopeError, match="a second strategy named 'zigzag'"):
        register(Other)


def test_an_interrupted_search_gives_the_best_so_far(char: osc.Simulator) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done > 60:
            raise KeyboardInterrupt

    found = propose(char, progress=interrupt, seconds=30)
    assert any("interrupted" in note for note in found.notes)
    assert found.confirmed is None or (found.order == char.order).all()


def test_an_interrupted_confirmation_keeps_what_was_confirmed(char: osc.Simulator) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "confirm" and done:
            raise KeyboardInterrupt

    found = propose(char, budget=80, progress=interrupt, seconds=30)
    assert found.confirmed is not None
    assert any("not all candidates" in note for note in found.notes)


def test_progress_is_told(char: osc.Simulator) -> None:
    told: list[tuple[str, int, int]] = []
    propose(char, budget=70, verify=2, seconds=30, progress=lambda *args: told.append(args))
    assert told[-1] == ("confirm", 2, 2)
    searched = [done for stage, done, total in told if stage == "search" and total == 70]
    assert searched == sorted(searched)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "bleu"}, "metric 'bleu'; expected one of eval"),
        ({"budget": 0}, "budget=0; expected a whole number from 1"),
        ({"budget": 1.5}, "budget=1.5"),
        ({"verify": -1}, "verify=-1; expected a whole number from 0"),
        ({"rounds": 0}, "rounds=0; expected a whole number from 1"),
        ({"strategies": ["guess"]}, "strategy 'guess'; expected one of reference"),
        ({"strategies": []}, "no strategies"),
        ({"seconds": 0}, "seconds=0"),
    ],
)
def test_wrong_questions(char: osc.Simulator, options: dict, message: str) -> None:
    with pytest.raises(osc.OrderscopeError, match=message):
        propose(char, **options)


def test_scores_that_are_not_finite(char: osc.Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(view: View, orders: np.ndarray) -> Estimates:
        unknown = np.full(len(orders), np.nan)
        return Estimates(unknown, unknown, unknown, unknown[:, None], unknown, unknown)

    monkeypatch.setattr(View, "__call__", nothing)
    with pytest.raises(osc.OrderscopeError, match="no finite score of metric 'eval'"):
        propose(char, strategies=["reverse", "random"])


def test_a_second_round_starts_from_what_the_first_confirmed(char: osc.Simulator, tmp_path: Path) -> None:
    shutil.copytree(char.path, tmp_path / "run")
    sim = osc.Simulator(tmp_path / "run", char.task)
    options: dict = {"budget": 160, "verify": 1, "strategies": ["random", "descent", "local search"], "regroup": False}
    once = propose(char, **options | {"budget": 80})
    found = osc.propose(sim, rounds=2, anyway=True, **options)
    assert char.task is not None
    assert once.confirmed is not None
    assert found.confirmed is not None
    assert found.confirmed < char.reference["eval"]
    assert found.confirmed == osc.retrain(char.task, found.order).metrics["eval"][0]
    assert found.scored <= 160
    confirmed = [row for row in found.table if row.confirmed is not None and row.name != "reference"]
    assert len({row.order.tobytes() for row in confirmed}) == 2  # strategies with the same best order have a row each
    later = osc.Simulator(sim.path, sim.task)
    assert set(later.runs) - set(sim.probes) >= {"confirmed-0", "confirmed-1"}  # and a simple schedule
    assert later.probes == char.probes
    assert later.sigma_order("eval") == char.sigma_order("eval")  # what was chosen was not drawn
    told = later.predict(np.stack([row.order for row in confirmed]))
    np.testing.assert_array_equal(told.metrics["eval"], [row.confirmed for row in confirmed])
    assert (told.error["eval"] == 0).all()
    assert later.store.verify() == []


def test_two_epochs(tmp_path: Path) -> None:
    """An order that holds every sample twice keeps it so."""
    kw = tasks_tiny.classifier(steps=5)
    kw = kw | {"order": np.concatenate([kw["order"], kw["order"][::-1]])}
    sim, _ = simulated(kw, tmp_path, anchors=3, probes=3)
    found = propose(sim, budget=100, verify=1, seconds=30)
    assert (np.bincount(found.order.ravel()) == 2).all()


def test_costs_are_told_in_runs(char: osc.Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    run = training_seconds(char.store)
    assert run is not None
    assert spent_runs(char, 5 * run, 3) == pytest.approx(spent_runs(char, 0.0, 0) + 8)
    monkeypatch.setattr(equal_cost, "training_seconds", lambda store: None)
    assert spent_runs(char, 5.0, 3) == pytest.approx(1 + len(char.probes) + sum(char.plan.cost().values()) + 3)


@pytest.mark.parametrize("module", [equal_cost, notes])
def test_examples(module) -> None:
    assert doctest.testmod(module).failed == 0


def test_the_best_of_many_draws() -> None:
    draws = np.random.default_rng(0).normal(size=(4000, 30)).max(axis=1)
    assert expected_best(30) == pytest.approx(draws.mean(), abs=0.03)
    assert expected_best(0.2) == pytest.approx(expected_best(1), abs=1e-12)
