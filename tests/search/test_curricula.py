"""What the field's curricula sort by and keep."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch

import orderscope as osc
import tasks_tiny
from law_tasks import simulated
from orderscope.search import STRATEGIES, objective, step_signals, texts
from orderscope.search.crowd import rasch
from orderscope.search.sample_signals import Samples, angle_concentration
from orderscope.search.strategies import curricula, epochs, mixtures, sorts
from searching import setting, yielded


@pytest.mark.parametrize("module", [curricula, epochs, mixtures, objective, step_signals, sorts, texts])
def test_examples(module) -> None:
    assert doctest.testmod(module).failed == 0


def recorded_steps(name: str, sim: osc.Simulator) -> list[np.ndarray]:
    at = setting(sim, regroup=False)
    found = [at.steps_of(order) for order in yielded(name, at)]
    return [steps for steps in found if steps is not None]


def mean(sim: osc.Simulator, values: np.ndarray | None) -> np.ndarray:
    assert values is not None
    return values[sim.order].mean(1)


@pytest.mark.parametrize(
    ("name", "signal", "directions"),
    [
        ("compression ratio", "compression_ratio", (1, -1)),
        ("lexical diversity", "lexical_diversity", (1, -1)),
        ("easy first", "loss", (1,)),
        ("hard first", "loss", (-1,)),
        ("weak minus strong", "weak_minus_strong", (-1, 1)),
        ("unsure first", "unsureness", (1,)),
        ("concentrated first", "concentration", (-1,)),
    ],
)
def test_sorts_by_its_signal(char: osc.Simulator, name: str, signal: str, directions: tuple[int, ...]) -> None:
    values = mean(char, getattr(Samples(char), signal)())
    found = recorded_steps(name, char)
    assert len(found) == len(directions)
    for steps, way in zip(found, directions, strict=True):
        assert (np.diff(way * values[steps]) >= -1e-12).all()
        assert np.ptp(values) > 0


def test_samples_are_sorted_where_they_may_leave_their_batches(char: osc.Simulator) -> None:
    """Where sorted batches are better than the recorded order, which one of the two directions is."""
    values = Samples(char).loss()
    found = {name: yielded(name, setting(char)) for name in ("easy first", "hard first")}
    assert any(len(orders) == 2 for orders in found.values())
    for (steps, *sorted_samples), way in zip(found.values(), (1, -1), strict=True):
        assert (np.diff(way * values[steps].mean(1)) >= 0).all()
        for samples in sorted_samples:
            assert (np.diff(way * values[samples.ravel()]) >= 0).all()


def test_losses_are_the_models_at_the_anchors(char: osc.Simulator) -> None:
    """The last anchor's are those of the trained model; what they take off is learnability."""
    task, samples = char.task, Samples(char)
    assert task is not None
    truth = osc.retrain(task, char.order, keep_parameters=True)
    assert truth.parameters is not None
    model = task.build_model()
    torch.nn.utils.vector_to_parameters(truth.parameters[0], model.parameters())
    with torch.no_grad():
        true = task.loss(model, task.batch(range(task.samples))).double().numpy()
    last, first, learned = samples.losses(-1), samples.losses(0), samples.learnability()
    assert last is not None
    assert first is not None
    assert learned is not None
    np.testing.assert_allclose(last, true, rtol=1e-5)
    np.testing.assert_array_equal(learned, first - last)


def test_learnability_is_folded(char: osc.Simulator) -> None:
    values = mean(char, Samples(char).learnability())
    once, twice, _ = recorded_steps("learnability", char)
    assert (np.diff(values[once]) >= 0).all()
    falls = np.flatnonzero(np.diff(values[twice]) < 0)
    np.testing.assert_array_equal(falls, [5])  # twelve steps, two sweeps


def test_ability_gate_admits_what_the_model_is_able_for() -> None:
    difficulty = np.array([0.0, 3.0, 1.0, 2.0])
    np.testing.assert_array_equal(curricula.gated(difficulty, np.array([9.0] * 4)), [0, 1, 2, 3])
    np.testing.assert_array_equal(curricula.gated(difficulty, np.array([-9.0] * 4)), [0, 2, 3, 1])
    np.testing.assert_array_equal(curricula.gated(difficulty, np.array([1.0, 1.0, 3.0, 3.0])), [0, 2, 1, 3])


def test_rasch_finds_planted_difficulties() -> None:
    rng = np.random.default_rng(0)
    ability, difficulty = rng.normal(size=40), rng.normal(size=60)
    solved = rng.random((40, 60)) < 1 / (1 + np.exp(difficulty[None] - ability[:, None]))
    found_ability, found_difficulty = rasch(solved)
    assert np.corrcoef(found_ability, ability)[0, 1] > 0.85  # sixty answers: a standard error of 0.3
    assert np.corrcoef(found_difficulty, difficulty)[0, 1] > 0.9
    assert np.isfinite(rasch(np.ones((3, 4), dtype=bool))[1]).all()


def test_the_crowd_grows_able(char: osc.Simulator) -> None:
    ability = Samples(char).abilities()
    assert ability is not None
    assert ability[-1] > ability[0]


def test_re_ranked_takes_the_easiest_by_the_anchor_at_hand() -> None:
    losses = np.array([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    np.testing.assert_array_equal(curricula.re_ranked(losses, np.array([0, 2])), [3, 2, 0, 1])


def test_annealed_weights_favour_the_easy_at_first() -> None:
    rng, rank = np.random.default_rng(0), np.linspace(0, 1, 30)
    sharp = np.mean([curricula.drawn(rank, 32.0, rng) for _ in range(50)], axis=0)
    flat = np.mean([curricula.drawn(rank, 0.0, rng) for _ in range(50)], axis=0)
    assert sharp[:5].mean() < 6
    assert abs(flat[:5].mean() - 14.5) < 3


def test_brackets_are_what_two_steps_in_either_sequence_differ_by(char: osc.Simulator) -> None:
    window, at = char.window, setting(char)
    assert at.expansion is not None
    duels = step_signals.brackets(window, at.expansion)
    np.testing.assert_allclose(duels, -duels.T, atol=1e-9)
    g = window.table[:, : window.anchors.shared].mean(1).double()
    scale = 1 / (g.pow(2).mean(0).sqrt() + 1e-8)
    u, v, a = 2, 7, at.expansion.gradient.double()

    def bent(x: torch.Tensor, unit: int) -> torch.Tensor:
        """C x of a unit."""
        factors = window.factor.double().split(list(window.sizes))
        return sum(
            (share * (a.T @ (a @ x)) for share, a in zip(window.fractions[unit].tolist(), factors, strict=True)),
            torch.zeros_like(x),
        )

    # theta - D g_u - D (g_v - C_v D g_u) against the same with u and v exchanged
    expected = (a * scale) @ (bent(scale * g[u], v) - bent(scale * g[v], u))
    assert duels[u, v] == pytest.approx(float(expected), rel=1e-2)  # rows are rounded to the curvature's 8 bits


def test_bracket_tournament_puts_winners_first(char: osc.Simulator) -> None:
    at = setting(char)
    assert at.expansion is not None
    wins = step_signals.borda(step_signals.brackets(char.window, at.expansion))
    steps, groups = recorded_steps("bracket tournament", char)
    assert (np.diff(wins[steps]) <= 0).all()
    labels = [at.labels[s] for s in groups]
    assert sum(a != b for a, b in zip(labels, labels[1:], strict=False)) == 2  # three groups in blocks


def test_influence_sort_ends_with_the_most_helpful(char: osc.Simulator) -> None:
    at = setting(char)
    assert at.expansion is not None
    influence = step_signals.influences(char.window, at.expansion)
    last, first = recorded_steps("influence sort", char)
    assert last[-1] == first[0] == influence.argmin()
    assert (np.diff(influence[last]) <= 0).all()


def test_groups_by_loss(char: osc.Simulator) -> None:
    at = setting(char)
    losses, labels = mean(char, Samples(char).loss()), np.array(at.labels)
    easy, hard = recorded_steps("easy groups first", char)
    means = [losses[labels == labels[s]].mean() for s in easy]
    assert (np.diff(means) >= -1e-12).all()
    assert labels[hard[0]] == labels[easy[-1]]


def test_two_stages_keep_a_share_for_the_second() -> None:
    special = np.arange(20) % 4 == 0
    steps = mixtures.two_stages(special, 0.4)
    assert special[steps[:3]].all()
    assert special[steps[3:]].sum() == 2
    assert not special[steps[3]]
    np.testing.assert_array_equal(np.sort(steps), np.arange(20))


def test_best_data_last(char: osc.Simulator) -> None:
    at = setting(char)
    assert at.expansion is not None
    influence = step_signals.influences(char.window, at.expansion)
    for steps, kept in zip(recorded_steps("best data last", char), (1, 2, 4), strict=True):
        np.testing.assert_array_equal(steps[-kept:][::-1], np.argsort(influence)[:kept])
        assert (np.diff(steps[:-kept]) > 0).all()


def test_valley_is_where_the_running_mean_is_least() -> None:
    values = np.ones(24)
    values[10:14] = 0.0
    assert mixtures.valley(values) == 12


def test_a_valley_holds_one_group(char: osc.Simulator) -> None:
    at = setting(char)
    for steps in recorded_steps("valley of the average", char):
        labels = np.array(at.labels)[steps]
        assert any(np.ptp(np.flatnonzero(labels == name)) == (labels == name).sum() - 1 for name in set(labels))


def test_the_bandit_learns_what_pays(char: osc.Simulator) -> None:
    """Fed scores that like group a early, it comes to draw a early."""
    at = setting(char)
    is_a = np.array(at.labels) == "a"
    asking = STRATEGIES["group bandit"].orders(at)
    orders, places = next(asking), []
    while orders is not None:
        steps = [at.steps_of(order) for order in orders]
        value = np.array([np.flatnonzero(is_a[s]).mean() for s in steps if s is not None])
        places.append(value.mean())
        try:
            orders = asking.send(type(at.ledger(orders[:1], ["group bandit"]))(value, np.zeros(len(value))))
        except StopIteration:
            break
    assert len(places) == mixtures.ROUNDS
    assert places[-1] < places[0] - 1


def test_herding_keeps_sums_small() -> None:
    g = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    g[:32] += 1.0  # a drift that an order should not follow

    def largest(order: np.ndarray) -> float:
        return float((g - g.mean(0))[torch.from_numpy(order)].cumsum(0).norm(dim=1).max())

    order = epochs.herded(g, 3)
    np.testing.assert_array_equal(np.sort(order), np.arange(64))
    assert largest(order) < 0.5 * largest(np.arange(64))


def test_passes_over_the_same_samples() -> None:
    order = np.arange(12).reshape(4, 3)
    assert epochs.epochs(order) == 1
    assert epochs.epochs(np.concatenate([order, order[::-1], order[:, ::-1]])) == 3


def test_several_epochs(tmp_path: Path) -> None:
    kw = tasks_tiny.classifier(steps=4)
    first = kw["order"]
    rng = np.random.default_rng(0)
    second = rng.permutation(first.ravel()).reshape(first.shape)
    sim, _ = simulated(kw | {"order": np.concatenate([first, second])}, tmp_path, anchors=3, probes=2)
    at = setting(sim)
    (reversed_,) = yielded("paired reversal", at)
    np.testing.assert_array_equal(reversed_, np.concatenate([first, first[::-1]]))
    for order in yielded("herding", at):
        for part, own in ((order[:4], first), (order[4:], second)):
            assert {tuple(b) for b in part.tolist()} == {tuple(b) for b in own.tolist()}


def test_texts_of_samples() -> None:
    ids = torch.tensor([5, 6, 7, 0, 0])
    assert texts.text_of("abc") == "abc"
    assert texts.text_of(b"abc") == "abc"
    assert texts.text_of((torch.tensor(1), "abc")) == "abc"
    assert texts.text_of([3, 1, 4, 1, 5]).tolist() == [3, 1, 4, 1, 5]
    assert texts.text_of({"label": 1, "input_ids": ids, "attention_mask": ids > 0}).tolist() == [5, 6, 7]
    assert texts.text_of((torch.randn(8), torch.tensor(2))) is None
    assert texts.compression_ratio("ab" * 200) < 0.1 < texts.compression_ratio("the quick brown fox")
    hard = texts.readability("Incomprehensibilities notwithstanding, institutionalization characterizes bureaucracies.")
    easy = texts.readability("The cat sat. The dog ran.")
    assert hard is not None
    assert easy is not None
    assert hard > easy
    assert texts.readability(ids.numpy()) is None


class Sentences(torch.utils.data.Dataset):
    """Rows of a task with a text of its own length beside each."""

    def __init__(self, rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int):
        return (*self.rows[i], "word " * (1 + 7 * i % 13) + "end.")


def test_strings_are_sorted_by_length_and_readability(tmp_path: Path) -> None:
    kw = tasks_tiny.classifier(steps=5)
    collate = torch.utils.data.default_collate
    kw |= {"data": Sentences(kw["data"]), "collate": lambda rows: collate([row[:2] for row in rows])}
    sim, _ = simulated(kw, tmp_path, anchors=3, probes=2)
    lengths = np.array([len("word " * (1 + 7 * i % 13) + "end.") for i in range(20)])
    (steps, samples), readable = yielded("short first", setting(sim)), recorded_steps("readability", sim)
    assert (np.diff(lengths[samples.ravel()]) >= 0).all()
    assert (np.diff(lengths[steps].mean(1)) >= 0).all()
    assert len(readable) == 2
    values = mean(sim, Samples(sim).readability())
    assert (np.diff(values[readable[0]]) >= 0).all()


def test_angle_concentration() -> None:
    same = torch.ones(1, 5, 3)
    apart = torch.eye(3)[None]
    found = angle_concentration(torch.cat([same[:, :3], apart]))
    np.testing.assert_allclose(found, [1.0, 1 / 3], rtol=1e-6)


def test_what_cannot_be_told_is_said(classifier: osc.Simulator) -> None:
    """Two-dimensional points have no text, and the last layer sees one vector a sample."""
    at = setting(classifier)
    for name in ("short first", "compression ratio", "lexical diversity", "readability", "concentrated first"):
        assert not len(yielded(name, at))
        assert any(note.startswith(f"{name}: ") for note in at.notes)


def test_repeated_best_needs_leave(char: osc.Simulator) -> None:
    at = setting(char)
    assert not len(yielded("repeated best", at))
    at.ledger.any_samples = True
    for order in yielded("repeated best", at):
        counts = np.bincount(order.ravel(), minlength=48)
        assert counts.max() == 2
        assert counts.min() == 0
