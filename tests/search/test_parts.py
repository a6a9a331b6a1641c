"""Rows to search on and rows to confirm on."""

from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import orderscope as osc
import tasks_tiny
from law_tasks import permuted_steps, simulated
from orderscope.engine.row_spread import row_spread
from orderscope.search import readable
from orderscope.search.confirm import recorded
from orderscope.search.objective import Objective
from orderscope.search.parts import Parts, parts_of, split_rows
from orderscope.search.readable import nearest_schedule, played
from orderscope.search.score_cache import ScoreCache
from orderscope.search.scores import View
from orderscope.simulation.verdict import Verdict
from orderscope.task import Task


class Rows(torch.utils.data.Dataset):
    """Rows with a label each."""

    def __init__(self, rows: torch.Tensor, groups: list[str] | None = None) -> None:
        self.rows = rows
        if groups is not None:
            self.groups = groups

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.rows[i]


def many_rows() -> dict:
    kw = tasks_tiny.char(steps=12)
    data = torch.stack([torch.as_tensor(kw["data"][i]) for i in range(len(kw["data"]))])
    generator = torch.Generator().manual_seed(3)
    drawn = data[torch.randint(len(data), (40, data.shape[1]), generator=generator), torch.arange(data.shape[1])]
    return kw | {"metrics": {"eval": Rows(drawn, ["x"] * 10 + ["y"] * 30), "some": Rows(drawn[:20])}}


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> osc.Simulator:
    return simulated(many_rows(), tmp_path_factory.mktemp("rows"), anchors=2, probes=4)[0]


@pytest.fixture(scope="module")
def parts(sim: osc.Simulator) -> Parts:
    assert sim.task is not None
    split = split_rows(sim.task)
    assert split is not None
    return parts_of(sim, sim.task, ["eval"], split)


def test_a_row_is_in_the_same_part_of_all_metrics_and_groups_are_split_alike(sim: osc.Simulator) -> None:
    assert sim.task is not None
    split = split_rows(sim.task)
    assert split is not None
    mine = split.of("eval")
    assert (split.of("some") == mine[:20]).all()
    assert mine[:10].sum() == 5
    assert abs(int(mine[:20].sum()) - 10) <= 1
    assert mine.sum() == 20
    again = split_rows(sim.task)
    assert again is not None
    assert (again.searched == split.searched).all()


def test_too_few_rows_are_not_split() -> None:
    assert split_rows(Task(**tasks_tiny.char())) is None


def test_parts_are_told_exactly_where_runs_ended_and_add_up_to_the_whole(sim: osc.Simulator, parts: Parts) -> None:
    assert sim.held_out is not None
    known = sim.held_out.center + sim.held_out.spread
    for part in (parts.searched, parts.confirming):
        np.testing.assert_allclose(part.held_out(known, ["eval"])["eval"], part.true["eval"], atol=2e-5)
    sizes = parts.searched.rows["eval"], parts.confirming.rows["eval"]
    assert sizes == (20, 20)
    theta = sim.replay_of(permuted_steps(sim.order, 7, 3)).theta
    mean = np.mean([part.held_out(theta, ["eval"])["eval"] for part in (parts.searched, parts.confirming)], axis=0)
    np.testing.assert_allclose(mean, sim.held_out(theta, ["eval"])["eval"], atol=2e-3)


def test_the_standard_error_over_rows_is_that_of_true_runs(sim: osc.Simulator, parts: Parts) -> None:
    assert sim.task is not None
    orders = permuted_steps(sim.order, 11, 6)
    losses = osc.retrain(sim.task, orders).losses["eval"].astype(np.float64)
    mine = parts.split.of("eval")
    apart = (losses - recorded(sim, None, None).losses["eval"])[:, mine]
    true = apart.std(1, ddof=1) / np.sqrt(mine.sum())
    found = View(sim, Objective({"eval": 1.0}), parts)(orders).spread
    assert np.abs(np.log(found / true)).mean() < 0.25


def test_the_slope_of_the_standard_error() -> None:
    generator = torch.Generator().manual_seed(0)
    center, rows = torch.randn(5, generator=generator), torch.randn(7, 5, generator=generator)
    spread = row_spread(center.double(), rows.double(), 7, 1.0)
    theta = (center + torch.randn(5, generator=generator)).double().requires_grad_()
    value = spread(theta)
    direct = (rows.double() @ (theta - center.double())).std() / 7**0.5
    torch.testing.assert_close(value, direct)
    value.backward()
    size, slope = spread.slope(theta.detach())
    assert size == pytest.approx(float(value.detach()))
    torch.testing.assert_close(slope, theta.grad)


def test_a_proposal_tells_both_parts(sim: osc.Simulator, tmp_path: Path) -> None:
    from searching import propose

    found = propose(sim, budget=150, verify=1, strategies=["random", "group schedule", "descent"])
    assert not found.refined
    assert [part.part for part in found.parts] == ["confirming", "searched"]
    assert sum(part.rows for part in found.parts) == 40
    assert found.confirmed is not None
    values = [found.true[f"eval:{part}"] for part in ("confirming", "searched")]
    assert np.mean(values) == pytest.approx(found.confirmed, abs=1e-5)
    assert found.reference - found.confirmed == pytest.approx(np.mean([part.gain for part in found.parts]), abs=1e-5)
    assert found.simple is not None
    assert found.simple.confirmed is not None
    assert (np.sort(found.simple.order, axis=None) == np.sort(sim.order, axis=None)).all()
    row = next(row for row in found.table if row.confirmed is not None)
    assert row.parts[0].standard_error is not None
    assert found.elsewhere is not None
    assert found.elsewhere.gain == found.parts[0].gain
    # Student's t of 19 degrees, 90 %, from a table.
    assert found.parts[0].rows == 20
    assert found.parts[0].standard_error is not None
    assert found.elsewhere.error == pytest.approx(1.7291 * found.parts[0].standard_error, rel=1e-3)
    assert replace(found, parts=found.parts[1:]).elsewhere is None
    untrained = [replace(part, confirmed=None, standard_error=None) for part in found.parts]
    assert replace(found, parts=untrained).elsewhere is None


def test_what_holds_on_unseen_rows_is_improved_on_all(sim: osc.Simulator) -> None:
    """The gain on unseen rows is that of the order that was searched without them."""
    from searching import propose

    found = propose(sim, budget=200, verify=2, strategies=["random", "descent", "local search"], regroup=False, seed=1)
    assert found.refined
    first = next(row for row in found.table if row.parts and row.parts[0].confirmed is not None)
    assert found.parts == first.parts
    assert found.parts[0].gain > 0
    assert found.confirmed is not None
    assert first.confirmed is not None
    assert found.confirmed < first.confirmed
    assert not next(row for row in found.table if row.confirmed == found.confirmed).parts
    values = [found.true[f"eval:{part}"] for part in ("confirming", "searched")]
    assert np.mean(values) == pytest.approx(found.confirmed, abs=1e-5)


def test_other_rows_can_confirm(sim: osc.Simulator) -> None:
    from searching import propose

    other = Rows(torch.stack([sim.task.metrics["eval"][i] for i in range(9)]))  # pyright: ignore
    found = propose(sim, budget=40, verify=1, strategies=["random", "descent"], confirming=other)
    assert [part.rows for part in found.parts] == [9, 40]
    with pytest.raises(osc.OrderscopeError, match="confirming= without rows"):
        propose(sim, confirming={"some": other})


def test_nothing_to_look_for_is_said_first(sim: osc.Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Verdict("eval", 0.1, 0.2, 0.2, 9, 40)
    monkeypatch.setattr("orderscope.search.work.Work.effect", lambda self: nothing)
    found = osc.propose(sim)
    assert found.verdict.startswith("nothing to look for with these 40 rows")
    assert not found.searched
    assert found.scored == 0
    assert (found.order == sim.order).all()
    assert found.confirmed == sim.reference["eval"]


@pytest.mark.parametrize(
    ("sigma", "noise", "word", "rows"),
    [(1.0, 0.25, "order matters", None), (1.0, 1.0, "on these rows", 800.0), (1.0, 2.0, "nothing to look for", np.inf)],
)
def test_verdicts(sigma: float, noise: float, word: str, rows: float | None) -> None:
    found = Verdict("eval", sigma, noise, noise, 9, 100)
    assert found.word == word
    assert found.words.startswith("nothing to look for" if word.startswith("nothing") else "order matters")
    if rows is not None:
        assert found.rows_needed == pytest.approx(rows)


def test_of_a_function_of_the_model_the_choice_of_rows_is_not_known() -> None:
    assert "not known: the noise from the choice of rows" in Verdict("accuracy", 1.0, 1e-9, np.nan, 9, 0).words
    assert "not known" not in Verdict("eval", 1.0, 1e-9, 1e-9, 9, 100).words


def test_an_interrupted_search_goes_on(sim: osc.Simulator, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(sim.path, tmp_path / "run")
    options: dict = {"budget": 120, "verify": 0, "strategies": ["random", "descent", "genetic"], "anyway": True}

    def interrupt(stage: str, done: int, total: int) -> None:
        if done > 30:
            raise KeyboardInterrupt

    whole = osc.propose(osc.Simulator(tmp_path / "run", sim.task), **options)
    part = osc.propose(osc.Simulator(tmp_path / "run", sim.task), progress=interrupt, **options)
    assert part.scored < whole.scored
    with osc.RunStore.open(tmp_path / "run") as store:
        assert store.names("search/")
    again = osc.propose(osc.Simulator(tmp_path / "run", sim.task), **options)
    assert any(note.startswith("resumed") for note in again.notes)
    assert (again.order == whole.order).all()
    assert again.scored == whole.scored
    with osc.RunStore.open(tmp_path / "run") as store:
        assert not store.names("search/")
        assert store.verify() == []


def test_scores_are_remembered(sim: osc.Simulator, tmp_path: Path) -> None:
    view = View(sim, Objective({"eval": 1.0}))
    orders, calls = permuted_steps(sim.order, 5, 4), []

    def counted(some: np.ndarray):
        calls.append(len(some))
        return view(some)

    asking = ScoreCache(counted, tmp_path / "no-run", "eval")
    first, again = asking(orders[:3]), asking(orders)
    assert calls == [3, 1]
    assert (first.value == again.value[:3]).all()


def test_a_schedule_comes_back_from_the_order_it_makes() -> None:
    codes = np.repeat([0, 1, 2], 32)
    density = np.array([[2.0, 0.5, 0.5], [1.0, 1.0, 1.0], [0.5, 2.0, 0.5], [0.5, 0.5, 2.0]])
    order = played(codes, density)[:, None]
    found = nearest_schedule(order, codes, ["a", "b", "c"])
    assert found is not None
    assert found.groups == ("a", "b", "c")
    again = found.order(np.arange(96)[:, None], codes, regroup=False)
    assert np.abs(codes[again[:, 0]] - codes[order[:, 0]]).mean() < 0.15
    assert nearest_schedule(order, np.zeros(96, dtype=int), ["a"]) is None


def test_examples() -> None:
    assert doctest.testmod(readable).failed == 0
