"""What the page says to do next, for every state a run may be in; and what is better."""

from __future__ import annotations

import doctest
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import orderscope as osc
from made_up import SCRIPT
from orderscope.report import figure, moved
from orderscope.report.direction import LOSS, Direction
from orderscope.report.material import Material, gather
from orderscope.report.onward import onward
from orderscope.report.predicted import Asked


@pytest.fixture(scope="module")
def material(full_run: Path) -> Material:
    """A run in which order matters, with predictions that hold, validated, and a proposal that was confirmed."""
    found = gather(osc.Simulator(full_run))
    effect = replace(found.effects[SCRIPT], sigma=1.0, floor=0.01, held_out=0.1)
    return replace(found, effects={**found.effects, SCRIPT: effect}, skilled=dict.fromkeys(found.skilled, True))


def facts(material: Material, **changes: object) -> Material:
    assert material.proposal is not None
    return replace(material, proposal=replace(material.proposal, facts={**material.proposal.facts, **changes}))


def command(material: Material) -> str:
    (line,) = onward(material).commands
    return line.replace(f"'{material.path}'", "RUN").replace("'<script>alert('\"'\"'é'\"'\"')</script>'", "METRIC")


def test_one_step_for_each_state(material: Material) -> None:
    assert onward(material).what == "Use this order."
    assert onward(material).order
    effect = material.effects[SCRIPT]
    none = replace(material, proposal=None)
    assert command(none) == "orderscope propose RUN --metric METRIC --out best.npy"
    assert command(replace(none, validations=[])) == "orderscope validate RUN --metric METRIC"
    unskilled = replace(none, skilled=dict.fromkeys(material.skilled, False))
    assert command(unskilled) == "orderscope validate RUN --orders 16 --metric METRIC"
    quiet = replace(none, effects={SCRIPT: replace(effect, held_out=2.0, rows=100)})
    assert onward(quiet).what == "Keep the recorded order: there is nothing to look for."
    assert onward(quiet).commands == ()
    unprobed = replace(none, effects={SCRIPT: replace(effect, runs=1)})
    assert "--probes 8" in onward(unprobed).commands[0]
    assert onward(facts(material, searched=False)).what.startswith("Keep the recorded order: there is nothing")
    untrained = facts(material, confirmed=None)
    assert onward(untrained).what == "Train the proposed order."
    assert command(untrained) == "orderscope propose RUN --metric METRIC --verify 3 --out best.npy"
    lucky = facts(material, undetectable=True)
    assert onward(lucky).what == "Keep the recorded order."
    assert command(lucky) == "orderscope propose RUN --metric METRIC --budget 400 --out best.npy"


def test_rows_that_would_tell_are_named(material: Material) -> None:
    told = facts(material, searched=False, effect={"rows_needed": 2442.1})
    assert "About 2,442 held-out rows would tell orders apart." in onward(told).why


def test_better_and_worse() -> None:
    assert [LOSS.word(x) for x in (-1, 0, 1)] == ["better", "the same", "worse"]
    assert [Direction(1).word(x) for x in (-1, 1)] == ["worse", "better"]
    assert [Direction(0).word(x) for x in (-1, 1)] == ["lower", "higher"]
    assert [LOSS.kind(-1), LOSS.kind(1), Direction(0).kind(1)] == ["good", "bad", "clear"]


def test_a_metric_that_is_no_loss_has_the_direction_of_its_proposal(material: Material) -> None:
    metrics = {**material.facts["metrics"], SCRIPT: None}
    plain = replace(material, facts={**material.facts, "metrics": metrics})
    assert plain.direction(SCRIPT) == Direction(-1)
    assert facts(plain, maximize=True).direction(SCRIPT) == Direction(1)
    assert replace(plain, proposal=None).direction(SCRIPT) == Direction(0)
    assert facts(material, maximize=True).direction(SCRIPT) == LOSS


def test_the_truth_has_the_last_word() -> None:
    asked = Asked("x", np.zeros((1, 1), int), {"m": 1.2}, {"m": 0.1}, {}, {"m": False}, {"m": True})
    assert not replace(asked, skilled={"m": False}).detectable("m", 1.0)
    assert (asked.told("m"), asked.detectable("m", 1.0), asked.held("m")) == (False, True, None)
    trained = replace(asked, true={"m": 0.9})
    assert trained.told("m")
    assert trained.difference("m", 1.0) == pytest.approx(-0.1)
    assert trained.held("m") is False
    assert replace(trained, true={"m": 1.25}).held("m") is True
    assert replace(trained, errors={"m": math.nan}).held("m") is None


def test_trained_orders_stand_with_what_was_predicted_before(full_run: Path) -> None:
    """Not with their true value and no error."""
    sim = osc.Simulator(full_run)
    found = gather(sim, orders=["reverse"])
    probes = replace(found)  # the page shows no probe unless it is asked about
    assert probes.pairs[SCRIPT][0].kind == "probes"
    assert np.isfinite(probes.pairs[SCRIPT][0].error).all()
    proposed = found.asked[-1]
    assert (proposed.values[SCRIPT], proposed.errors[SCRIPT], proposed.true[SCRIPT]) == (2.81, 0.02, 2.82)


def test_cost_adds_up(material: Material) -> None:
    assert material.proposal is not None
    assert material.cost["confirmation"] == 1  # the row without a value was not trained
    assert material.cost["validation"] == 2 + 3  # with the noise floor
    spent = material.recording + material.searched + 1
    assert spent == pytest.approx(max(material.proposal.facts["cost"], material.recording + 1))


def test_examples() -> None:
    assert doctest.testmod(figure).failed == 0
    assert doctest.testmod(moved).failed == 0


def test_where_batches_and_samples_went() -> None:
    order = np.arange(12).reshape(4, 3)
    codes = np.repeat([0, 1], 6)
    edges = moved.parts_of(4, 2)
    assert moved.mixture(order, codes, 2, edges).tolist() == [[1, 0], [0, 1]]
    assert moved.kept_batches(order, order[::-1]).tolist() == [3, 2, 1, 0]
    assert moved.flow(order, order[::-1], edges).tolist() == [[0, 1], [1, 0]]
    assert "4 of 4 train at another step" in moved.words(order, order[::-1])
    assert moved.words(order, order[:, ::-1]) == "It is the recorded order."
    new = order.T.reshape(4, 3)
    assert moved.kept_batches(order, new).tolist() == [-1] * 4
    assert moved.flow(order, new, edges).sum(1).tolist() == [1, 1]
    assert "0 of 4 batches stay together" in moved.words(order, new)
    twice = np.array([[0, 1, 2], [0, 1, 2]])
    assert moved.places(twice, 4)[:3].tolist() == [0, 0, 0]
    assert np.isnan(moved.places(twice, 4)[3])


@pytest.mark.parametrize("names", [["a"], ["a", "<b>"]])
@pytest.mark.parametrize("regrouped", [False, True])
def test_the_picture_of_a_proposal(names: list[str], regrouped: bool) -> None:
    order = np.arange(120).reshape(40, 3)
    new = np.random.default_rng(0).permutation(order.ravel()).reshape(order.shape) if regrouped else order[::-1]
    drawn = str(moved.picture(order, new, np.arange(120) % len(names), names))
    assert drawn.count("<svg") == 2
    assert ("% train at step" in drawn) == regrouped
    assert ("batch of step 0: now at step 39" in drawn) != regrouped
    assert ("&lt;b&gt; " in drawn) == (len(names) > 1)
    assert "<b>" not in drawn
