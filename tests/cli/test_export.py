"""`orderscope export`: tables, experiment trackers, and the card of an order."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

import orderscope as osc
from commands import answer, call

TASKS = """
import tasks_tiny

def linear():
    return tasks_tiny.linear() | {"metrics": {"=eval": tasks_tiny.linear()["metrics"]["eval"]}}
"""
NAMES = ["orders", "proposals", "positions", "curves", "steps", "trials"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    (folder / "export_tasks.py").write_text(TASKS)
    spec, run = f"{folder / 'export_tasks.py'}:linear", folder / "run"
    np.save(folder / "gone.npy", np.arange(32).reshape(8, 4))
    answer("record", spec, "--out", run, "--anchors", 2, "--probes", 3)
    assert call("query", run, "--order", "reverse", "--order", folder / "gone.npy").exit_code in (0, 3)
    assert call("query", run, "--order", "interleave", "--train").exit_code in (0, 3)
    assert call("propose", run, "--budget", 20, "--verify", 1, "--keep-batches").exit_code in (0, 3)
    answer("positions", run, "--units", 2, "--places", 2, "--verify", 1)
    study = osc.Study(osc.Simulator(run), "=eval", anyway=True, regroup=False, budget=20)
    study.tell(study.ask(), 2.5)
    (folder / "gone.npy").unlink()
    return run


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_tables_as_csv(run: Path, tmp_path: Path) -> None:
    facts = answer("export", run, "--to", "csv", "--out", tmp_path / "tables")
    files = {name: tmp_path / "tables" / f"{name}.csv" for name in NAMES}
    found = {name: rows(file) for name, file in files.items()}
    assert facts["files"] == {str(file): len(found[name]) for name, file in files.items()}
    assert facts["left_out"][0].startswith(str(run.parent / "gone.npy"))
    sim = osc.Simulator(run)
    orders = {(row["kind"], row["order"]): row for row in found["orders"]}
    assert [row["kind"] for row in found["orders"]] == ["recorded"] * 4 + ["asked"] * 2 + ["validated"]
    value = float(orders["asked", "reverse"]["value"])
    assert value == pytest.approx(sim.predict(sim.order[::-1]).metrics["=eval"][0], rel=1e-6)  # float32, in a batch
    assert orders["asked", "reverse"]["true"] == ""
    assert orders["asked", "reverse"]["trusted"] in ("true", "false")
    assert float(orders["asked", "interleave"]["true"]) == float(orders["validated", "validation/000, order 0"]["true"])
    assert [row["rank"] for row in found["proposals"]] == [str(i) for i in range(len(found["proposals"]))]
    assert sum(row["true"] != "" for row in found["proposals"]) >= 1
    assert sum(row["true_loss"] != "" for row in found["positions"]) == 1
    assert len(found["positions"]) == 4
    steps = [int(row["step"]) for row in found["curves"] if row["run"] == "reference"]
    assert steps[-1] == 8
    assert len(found["steps"]) == 8
    assert [(row["trial"], row["state"], row["value"]) for row in found["trials"]] == [("1", "told", "2.5")]


def test_tables_as_parquet(run: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "tables").mkdir()
    assert call("export", run, "--to", "csv", "--out", tmp_path / "tables").exit_code == 0
    facts = answer("export", run, "--to", "parquet", "--out", tmp_path / "tables")
    assert len(facts["files"]) == len(NAMES)
    for name in NAMES:
        typed = parquet.read_table(tmp_path / "tables" / f"{name}.parquet").to_pylist()
        shown = rows(tmp_path / "tables" / f"{name}.csv")
        text = [
            {key: "" if v is None else str(v).lower() if isinstance(v, bool) else str(v) for key, v in row.items()}
            for row in typed
        ]
        assert text == shown
    assert isinstance(parquet.read_table(tmp_path / "tables" / "orders.parquet").to_pylist()[0]["trusted"], bool)


def test_for_a_person(run: Path, tmp_path: Path) -> None:
    result = call("export", run, "--out", tmp_path)
    assert result.exit_code == 0
    assert f"{tmp_path / 'steps.csv'}" in result.stdout
    assert "8 rows" in result.stdout
    assert "left out: " in result.stdout


def test_pyarrow_that_is_missing_is_told(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    result = call("export", run, "--to", "parquet", "--out", tmp_path / "tables")
    assert result.exit_code == 1
    assert result.stderr == (
        "orderscope: found --to parquet, and no pyarrow here; expected pyarrow, which writes it; "
        "pip install 'orderscope[parquet]', or take --to csv\n"
    )
    assert not (tmp_path / "tables").exists()


def test_places_that_cannot_be(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert call("export", run, "--out", tmp_path / "file").exit_code == 2
    assert call("export", run, "--out", run / "tables").exit_code == 1
    assert call("export", run, "--out", tmp_path / "no" / "tables").exit_code == 1
    assert call("export", tmp_path / "no-run", "--out", tmp_path / "tables").exit_code == 1
    assert call("export", run, "--to", "xlsx", "--out", tmp_path / "tables").exit_code == 2
