"""The example of a thousand steps in a small form: the same commands, a narrow model, 24 steps, few held-out rows."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import orderscope as osc

EXAMPLES = Path(__file__).parents[1] / "examples"
STEPS = 24


@pytest.fixture(scope="module")
def thousand() -> ModuleType:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(EXAMPLES))
        return importlib.import_module("thousand")


@pytest.fixture(scope="module")
def out(thousand: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a recorded loop."""
    folder = tmp_path_factory.mktemp("thousand")
    with pytest.MonkeyPatch.context() as monkeypatch:
        small(thousand, monkeypatch)
        thousand.record(folder, STEPS, probes=4, jobs=1)
    return folder


@pytest.fixture(autouse=True)
def _small(thousand: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    small(thousand, monkeypatch)


def small(thousand: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WIDTH": 16, "WARM_UP": 60, "HELD_OUT": 12}.items():
        monkeypatch.setattr(thousand, name, value)


def test_the_loop_is_recorded_as_it_was_trained(thousand: ModuleType, out: Path) -> None:
    assert thousand.recorded_steps(out / "run") == STEPS
    task = thousand.recorded_task(out / "run")
    assert task.order.tolist() == np.arange(STEPS * thousand.BATCH).reshape(STEPS, -1).tolist()
    domains = np.array(task.groups)[task.order]
    assert all(len(set(batch)) == 1 for batch in domains)
    assert sorted(set(domains[:, 0])) == sorted([*thousand.DOMAINS, thousand.GOOD])


def test_every_order_has_the_recorded_batches(thousand: ModuleType, out: Path) -> None:
    task = thousand.recorded_task(out / "run")
    batches = sorted(task.order.tolist())
    found = {name: order for _, orders in thousand.questions(task).values() for name, order in orders.items()}
    assert len(found) == 10
    assert all(sorted(order.tolist()) == batches for order in found.values())
    domain = np.array(task.groups)[task.order[:, 0]]
    for name, order in found.items():
        turns = np.array(task.groups)[order[:, 0]]
        assert ("within" not in name) or turns.tolist() == domain.tolist()
    easy = thousand.starting_losses(task)[found["sort:start within each domain"]].mean(1)
    assert all((np.diff(easy[domain == name]) >= 0).all() for name in set(domain))


def test_good_batches_are_spread_evenly(thousand: ModuleType) -> None:
    order = np.arange(12).reshape(12, 1)
    groups = ["good" if i < 3 else "prose" for i in range(12)]
    assert thousand.spread(order, groups)[:, 0].tolist() == [3, 4, 0, 5, 6, 7, 1, 8, 9, 10, 2, 11]


def test_no_held_out_passage_is_trained_on(thousand: ModuleType) -> None:
    text = thousand.torch.arange(50_000)  # so that a row says where it was taken
    trained, held = (thousand.passages(text, 500, 0, held_out=kept) for kept in (False, True))
    assert not set(trained.ravel().tolist()) & set(held.ravel().tolist())
    assert (held // thousand.BLOCK % 10 == 0).all()


def test_answers_stand_beside_truths(
    thousand: ModuleType, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = thousand.train(out)
    assert capsys.readouterr().out.count("| `") == len(found["truths"]) == len(found["changes"]) == 10
    rows = found["answers"]["rows"]
    told, true = np.array([row["carried"]["change"] for row in rows]), np.array(found["changes"])
    by_all = np.array([row["metric"] == "eval" for row in rows])
    assert np.abs(told - true)[by_all].mean() < np.abs(true)[by_all].mean()  # better than "nothing changes"
    task = thousand.recorded_task(out / "run")
    names = [row["order"] for row in rows]
    order = thousand.questions(task)["which domain last"][1]["late:code"]
    place, again_trained = names.index("late:code"), osc.retrain(task, order).metrics
    assert found["truths"][place]["eval"] == pytest.approx(again_trained["eval"][0], abs=1e-6)
    assert true[place] == pytest.approx(again_trained["eval"][0] - osc.Simulator(out / "run").reference["eval"])
    assert set(found["costs"]) == {"recording", "carried", "proxy", "trained"}
    assert all(cost > 0 for cost in found["costs"].values())

    def again(*_: object, **__: object) -> None:
        raise AssertionError("trained or asked a second time")

    for name in ("trained", "answered", "fine_tune"):
        monkeypatch.setattr(thousand, name, again)
    assert thousand.train(out) == found
    capsys.readouterr()
    assert thousand.ask(out) == found["answers"]
    assert capsys.readouterr().out.count("| - |") == 10  # the truth is not told before it is trained
    files = {path: path.read_bytes() for path in (out / "run").glob("*.h5")}
    thousand.record(out, STEPS, probes=4, jobs=1)
    assert files == {path: path.read_bytes() for path in (out / "run").glob("*.h5")}


def test_without_a_loop(thousand: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="found no finished loop"):
        thousand.ask(tmp_path)
