"""What each strategy sorts by and keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import orderscope as osc
from orderscope.baselines.impulse import impulse_weights
from orderscope.search import STRATEGIES, Scores
from orderscope.search.sample_signals import Samples
from searching import setting, yielded

# What needs several passes, samples of different lengths, strings, or leave to repeat samples: tested by itself.
ELSEWHERE = {"short first", "readability", "paired reversal", "repeated best"}
WHOLE = [n for n, s in STRATEGIES.items() if not n.startswith("regroup") and n not in ELSEWHERE]


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ELSEWHERE])
def test_yields_rearrangements_and_the_same_again(char: osc.Simulator, name: str) -> None:
    first, second = (yielded(name, setting(char), most=60) for _ in range(2))
    assert len(first)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", WHOLE)
def test_keeps_recorded_batches(char: osc.Simulator, name: str) -> None:
    at = setting(char, regroup=False)
    for order in yielded(name, at, most=60):
        assert at.steps_of(order) is not None


@pytest.mark.parametrize("name", STRATEGIES)
def test_has_a_source(name: str) -> None:
    assert STRATEGIES[name].name == name
    assert STRATEGIES[name].source


def steps(name: str, sim: osc.Simulator) -> np.ndarray:
    """The recorded steps of the only order of a rule."""
    at = setting(sim, regroup=False)
    (order,) = yielded(name, at)
    found = at.steps_of(order)
    assert found is not None
    return found


def test_reference_and_reverse(char: osc.Simulator) -> None:
    assert (steps("reference", char) == np.arange(12)).all()
    assert (steps("reverse", char) == np.arange(12)[::-1]).all()


def test_even_losses_mixes_easy_and_hard_at_every_scale(char: osc.Simulator) -> None:
    rank = np.argsort(np.argsort(Samples(char).loss()[char.order].mean(1)))
    placed = rank[steps("even losses", char)]
    for length in (4, 6):  # every stretch of a third, of a half of the run: some of each third of the ranks
        for start in range(0, char.window.steps - length + 1, length):
            assert set(placed[start : start + length] // 4) == {0, 1, 2}


def test_easy_and_hard_first_sort_by_the_loss_on_the_starting_weights(char: osc.Simulator) -> None:
    assert char.task is not None
    model = char.task.build_model()
    with torch.no_grad():
        losses = np.array([float(char.task.loss(model, char.task.batch(ids)).mean()) for ids in char.order])
    assert (np.diff(losses[steps("easy first", char)]) >= -1e-6).all()
    assert (np.diff(losses[steps("hard first", char)]) <= 1e-6).all()


def test_losses_without_the_task_are_the_recorded_ones(char: osc.Simulator) -> None:
    recorded, started = Samples(osc.Simulator(char.path)).loss(), Samples(char).loss()
    np.testing.assert_allclose(recorded[char.order[0]], started[char.order[0]], rtol=1e-5)
    assert not np.allclose(recorded, started)


def test_gradient_sorts(char: osc.Simulator) -> None:
    norms = char.window.table[:, 0].norm(dim=1).numpy()
    assert (np.diff(norms[steps("small gradients first", char)]) >= 0).all()
    assert (np.diff(norms[steps("large gradients first", char)]) <= 0).all()


def test_blocks_are_all_sequences_of_whole_groups(char: osc.Simulator) -> None:
    at = setting(char)
    seen = set()
    for order in yielded("blocks", at):
        found = at.steps_of(order)
        assert found is not None
        labels = [at.labels[s] for s in found]
        runs = [a for a, b in zip(labels, [None, *labels[:-1]], strict=True) if a != b]
        assert len(runs) == len(set(runs)) == 3
        seen.add(tuple(runs))
    assert len(seen) == 6


def test_interleave_spreads_groups(char: osc.Simulator) -> None:
    at = setting(char)
    found = [at.labels[s] for s in steps("interleave", char)]
    for name in set(found):
        places = np.flatnonzero(np.array(found) == name)
        assert np.diff(places).max() <= 2 * 12 / len(places)


def test_impulse_sort_pairs_large_weights_with_large_effects(char: osc.Simulator) -> None:
    at, window = setting(char), char.window
    assert at.expansion is not None
    mean = window.table[:, : window.anchors.shared].mean(1)
    effects = (mean @ (at.expansion.gradient / (mean.pow(2).mean(0).sqrt() + 1e-8))).numpy()
    h = {name: values[0, 0] for name, values in window.dynamics.hyper.items()}
    weights = impulse_weights(
        window.dynamics.hyper["lr"][:, 0], beta1=h["beta1"], weight_decay=h["weight_decay"],
        count=window.dynamics.slices[0].count,
    )  # fmt: skip
    placed = effects[steps("impulse sort", char)]
    assert (np.diff(placed[np.argsort(-weights, kind="stable")]) <= 0).all()


def test_impulse_sort_is_turned_round_to_maximize(char: osc.Simulator) -> None:
    less, more = (yielded("impulse sort", setting(char, sign=sign))[0] for sign in (1.0, -1.0))
    assert (less == more[::-1]).all()


def test_guided_strategies_end_better_than_they_start(char: osc.Simulator) -> None:
    for name in ("regroup", "descent", "conditional gradient", "regroup by assignment"):
        at = setting(char)
        yielded(name, at)
        assert at.ledger.ranked()[0].bound < char.reference["eval"]


def test_what_is_led_by_gradients_asks_nothing_where_there_are_none(classifier: osc.Simulator) -> None:
    for name in ("assignment", "descent", "conditional gradient", "regroup", "impulse sort"):
        assert not len(yielded(name, setting(classifier, metric="accuracy", sign=-1.0)))


def test_bounds_are_cautious() -> None:
    scores = Scores(np.array([1.0, 2.0]), np.array([0.5, np.nan]))
    assert scores.bound[0] > 1.0
    assert scores.bound[1] == 2.0
