"""`propose`, `validate`, `positions` and `report` on a tiny task."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import click
import numpy as np
import pytest

import orderscope as osc
from commands import answer, call
from orderscope.cli.propose import wanted

TASKS = """
import tasks_tiny

def char():
    return tasks_tiny.char()
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "search_tasks.py").write_text(TASKS)
    answer("record", f"{folder / 'search_tasks.py'}:char", "--out", folder / "run", "--anchors", 3, "--probes", 3)
    return folder / "run"


@pytest.fixture
def run(recorded: Path, tmp_path: Path) -> Path:
    shutil.copytree(recorded, tmp_path / "run")
    return tmp_path / "run"


def test_propose(run: Path) -> None:
    out = run.parent / "best.npy"
    facts = answer("propose", run, "--anyway", "--budget", 60, "--verify", 1, "--out", out)
    assert facts["metric"] == "eval"
    assert facts["kept"] == "proposal/000"
    assert facts["trusted"]
    assert 0 < facts["scored"] <= 60
    order = np.load(out)
    assert order.dtype == np.int64
    assert order.tolist() == facts["order"]
    assert (np.sort(order, axis=None) == np.sort(osc.Simulator(run).order, axis=None)).all()
    assert (osc.RunStore.open(run).read("proposal/000")["order"] == order).all()
    again = answer("query", run, "--order", out)
    assert again["orders"][0]["metrics"]["eval"]["value"] == pytest.approx(facts["predicted"], abs=1e-3)


def test_propose_for_a_person(run: Path) -> None:
    result = call("propose", run, "--anyway", "--metric", "eval", "--budget", 40, "--verify", 1, "--keep-batches")
    assert result.exit_code == 0
    assert "eval: 2.8578 as recorded, " in result.stdout
    assert "trained for confirmation: " in result.stdout or "no better order" in result.stdout
    assert "random orders, truly trained at equal cost: " in result.stdout


def test_propose_under_constraints(run: Path) -> None:
    facts = answer("propose", run, "--anyway", "--budget", 80, "--verify", 1, "--constraint", "after:a:2")
    sim = osc.Simulator(run)
    groups = [sim.description["group_names"][code] for code in sim.window.group_codes]
    assert "a" not in {groups[i] for i in np.array(facts["order"])[:2].ravel()}
    wrong = call("propose", run, "--constraint", "after:nobody:2")
    assert wrong.exit_code == 1
    assert "unknown group" in wrong.stderr


def test_propose_with_schedules(run: Path) -> None:
    facts = answer("propose", run, "--anyway", "--budget", 40, "--verify", 1, "--keep-batches", "--schedules")
    assert len(facts["schedule"]["rates"]) == len(facts["order"])
    assert facts["schedule"]["confirmed"] is not None
    assert facts["schedule"]["confirmed"] <= facts["reference"]
    result = call("propose", run, "--anyway", "--budget", 40, "--verify", 1, "--keep-batches", "--schedules")
    assert "learning rates" in result.stdout


def test_weights_of_metrics() -> None:
    assert wanted([]) is None
    assert wanted(["eval"]) == "eval"
    assert wanted(["eval", "code"]) == ["eval", "code"]
    assert wanted(["eval", "code=0.5"]) == {"eval": 1.0, "code": 0.5}
    with pytest.raises(click.BadParameter, match="a weight is a number"):
        wanted(["eval=much"])


def test_propose_without_the_task_confirms_nothing(run: Path) -> None:
    (packed,) = [run.parent / "run.h5"]
    assert call("pack", run, "--out", packed).exit_code == 0
    facts = answer("propose", packed, "--anyway", "--budget", 30, "--keep-batches")
    assert facts["kept"] is None
    if facts["predicted"] != facts["reference"]:
        assert facts["confirmed"] is None


def test_propose_for_an_unknown_metric(run: Path) -> None:
    result = call("propose", run, "--metric", "bleu")
    assert result.exit_code == 1
    assert "found metric 'bleu'; expected one of eval" in result.stderr


def test_validate(run: Path) -> None:
    facts = answer("validate", run, "--orders", 4)
    scores = facts["metrics"]["eval"]
    assert facts["orders"] == len(scores["true"]) == len(scores["predicted"]) == 4
    assert scores["sigma_order"] > 0
    assert scores["noise_floor"] >= 0
    assert 0 <= scores["coverage"] <= 1
    effect = answer("query", run, "--order", "reverse")["metrics"]["eval"]
    assert effect["floor"] == pytest.approx(scores["noise_floor"])


def test_validate_for_a_person(run: Path) -> None:
    result = call("validate", run, "--orders", 3)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{run}: 3 unseen orders trained")
    assert "spearman" in result.stdout
    assert "noise floor" in call("query", run, "--order", "reverse").stdout


def test_validate_needs_the_task(run: Path) -> None:
    assert call("pack", run, "--out", run.parent / "run.h5").exit_code == 0
    result = call("validate", run.parent / "run.h5")
    assert result.exit_code == 1
    assert "pass --task file.py:name" in result.stderr


def test_positions(run: Path) -> None:
    out = run.parent / "heat.csv"
    facts = answer("positions", run, "--units", 3, "--places", 4, "--out", out)
    assert facts["kept"] == "positions/000"
    assert (facts["units"], facts["places"]) == ([0, 4, 8], [0, 3, 5, 8])
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert float(rows[5]["loss"]) == pytest.approx(facts["value"][1][1])
    assert (int(rows[5]["unit"]), int(rows[5]["place"])) == (4, 3)
    assert float(rows[5]["eval"]) == pytest.approx(facts["held_out"][1][1])
    assert [row["trusted"] == "yes" for row in rows] == np.ravel(facts["trusted"]).tolist()
    answer("positions", run, "--units", 2, "--places", 2, "--out", run.parent / "heat.npz")
    assert np.load(run.parent / "heat.npz")["value"].shape == (2, 2)


def test_positions_for_a_person(run: Path) -> None:
    result = call("positions", run, "--units", 3, "--places", 4)
    assert result.exit_code == 0
    assert "position 0 to 8" in result.stdout
    assert result.stdout.count("|") == 6
    assert "of 12 estimates" in result.stdout
    assert "not trusted" in result.stdout


def test_report(run: Path) -> None:
    page = run.parent / "report.html"
    call("query", run, "--order", "reverse", "--order", "late:a")
    facts = answer("report", run, "--out", page, "--order", "interleave")
    assert facts["bytes"] == page.stat().st_size
    assert facts["sections"] == [
        "matters",
        "orders",
        "proposal",
        "truth",
        "steps",
        "heat",
        "memory",
        "recorded",
        "limits",
    ]
    text = page.read_text(encoding="utf-8")
    for order in ("interleave", "late:a", "reverse"):
        assert f"<code>{order}</code>" in text
    assert "remembered better" in text
    assert call("report", run, "--out", run.parent / "again.html", "--order", "interleave").exit_code == 0
    assert (run.parent / "again.html").read_bytes() == page.read_bytes()


def test_report_of_a_packed_run(run: Path) -> None:
    assert call("pack", run, "--out", run.parent / "run.h5").exit_code == 0
    result = call("report", run.parent / "run.h5", "--out", run.parent / "report.html")
    assert result.exit_code == 0
    assert "open it in a browser" in result.stdout
    assert "No position map yet" in (run.parent / "report.html").read_text(encoding="utf-8")
