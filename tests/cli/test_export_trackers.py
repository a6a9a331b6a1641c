"""`orderscope export` to TensorBoard, Weights & Biases, MLflow and as a card: what readers find, without a network."""

from __future__ import annotations

import csv
import json
import os
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import orderscope as osc
from commands import answer, call
from orderscope.answers.card import cell, table
from orderscope.orders import order_hash
from orderscope.recording.costs import part_runs
from orderscope.store import RunStore
from orderscope.training import load_run

TASKS = """
import tasks_tiny

def linear():
    return tasks_tiny.linear() | {"metrics": {"=eval": tasks_tiny.linear()["metrics"]["eval"]}}
"""


@pytest.fixture(autouse=True)
def own_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb puts a hook of its own in place of sys.exit and leaves it there."""
    monkeypatch.setattr("sys.exit", sys.exit)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trackers")
    (folder / "tracker_tasks.py").write_text(TASKS)
    run = folder / "run"
    answer("record", f"{folder / 'tracker_tasks.py'}:linear", "--out", run, "--anchors", 2, "--probes", 3)
    assert call("validate", run, "--orders", 4).exit_code in (0, 3)
    assert call("propose", run, "--budget", 20, "--verify", 1, "--keep-batches", "--anyway").exit_code in (0, 3)
    return run


def curve(run: Path, name: str) -> list[tuple[int, float]]:
    """What the run itself says."""
    recorded = load_run(RunStore.open(run), name, gradients=False)
    kept = zip(recorded.boundaries, recorded.metrics, strict=True)
    return [(int(step), metrics["=eval"]) for step, metrics in kept if "=eval" in metrics]


def facts_of(run: Path) -> dict[str, float]:
    sim = osc.Simulator(run)
    return {"reference": sim.reference["=eval"], "sigma_order": sim.sigma_order("=eval")}


def test_tensorboard(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "logs" / "mine").mkdir(parents=True)
    other = tmp_path / "logs" / "mine" / "events.out.tfevents.1.host"
    other.write_bytes(b"")
    for _ in range(2):  # a second export replaces the first
        facts = answer("export", run, "--to", "tensorboard", "--out", tmp_path / "logs")
    assert facts["runs"][0] == "reference"
    assert facts["runs"][-1] == "summary"
    for name in facts["runs"][:-1]:
        (file,) = (tmp_path / "logs" / name).iterdir()
        found = EventAccumulator(str(file))
        found.Reload()
        points = [(event.step, event.value) for event in found.Scalars("=eval")]
        assert points == [(step, pytest.approx(value, rel=1e-6)) for step, value in curve(run, name)]
        assert ("batch loss" in found.Tags()["scalars"]) == (name == "reference")
    found = EventAccumulator(str(tmp_path / "logs" / "summary"))
    found.Reload()
    for key, value in facts_of(run).items():
        (event,) = found.Scalars(f"=eval/{key}")
        assert event.value == pytest.approx(value, rel=1e-6)
    (event,) = found.Scalars("=eval/validated_orders")
    assert event.value == 4
    assert "orders/text_summary" in found.Tags()["tensors"]
    assert other.exists()


def test_wandb_offline(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    facts = answer("export", run, "--to", "wandb", "--out", tmp_path / "kept", "--project", "orders")
    assert (facts["mode"], facts["project"]) == ("offline", "orders")
    folder = Path(facts["directory"])
    assert folder.is_relative_to(tmp_path / "kept")
    (log,) = folder.glob("*.wandb")
    config, summary, history = wandb_records(log)
    sim = osc.Simulator(run)
    assert config["steps"] == sim.description["steps"]
    assert config["order_hash"] == facts["order_hash"]
    for key, value in facts_of(run).items():
        assert summary[f"=eval/{key}"] == pytest.approx(value)
    assert summary["=eval/validated_orders"] == 4
    assert summary["orders"]["nrows"] > 4
    points = [(row["_step"], row["=eval/reference"]) for row in history if "=eval/reference" in row]
    assert points == [(step, pytest.approx(value)) for step, value in curve(run, "reference")]


def wandb_records(log: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Configuration, last summary and history of an offline run, by wandb's own messages."""
    from wandb.proto import wandb_internal_pb2

    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    history = []
    for data in logged(log.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        # With the run, or by itself where the run was written before.
        for item in [*record.run.config.update, *record.config.update]:
            config[item.key] = json.loads(item.value_json)
        for item in record.summary.update:
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        if record.HasField("history"):
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            history.append(row | {"_step": record.history.step.num})
    return config, summary, history


def logged(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log with wandb's header: blocks of 32 KiB, in them parts of checksum, length and kind."""
    assert data[:4] == b":W&B"
    at, parts = 7, []
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if not kind:  # zeros fill the block
            at += left
            continue
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield b"".join(parts)
            parts = []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SQLAlchemy's, about how MLflow uses it
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # MLflow leaves its connections to the collector
def test_mlflow_in_a_folder(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    out = tmp_path / "store"
    first, second = (answer("export", run, "--to", "mlflow", "--out", out, "--project", "orders") for _ in range(2))
    assert first["run"] != second["run"]
    client = MlflowClient(second["tracking_uri"])
    found = client.get_run(second["run"])
    assert found.info.status == "FINISHED"
    assert client.get_experiment(found.info.experiment_id).name == "orders"
    assert found.data.params["order_hash"] == second["order_hash"]
    for key, value in facts_of(run).items():
        assert found.data.metrics[f"_eval/{key}"] == pytest.approx(value)  # MLflow's names have no "="
    assert found.data.tags["_eval/verdict"]
    points = sorted((m.step, m.value) for m in client.get_metric_history(second["run"], "_eval/reference") if m.step)
    assert points == [(step, pytest.approx(value)) for step, value in curve(run, "reference") if step]
    order = client.download_artifacts(second["run"], "order.npy", str(tmp_path))
    assert order_hash(np.load(order)) == second["order_hash"]
    with open(client.download_artifacts(second["run"], "tables/orders.csv", str(tmp_path)), newline="") as file:
        assert len(list(csv.DictReader(file))) >= 8


def test_mlflow_needs_a_place(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = call("export", run, "--to", "mlflow")
    assert result.exit_code == 1
    assert "pass --out FOLDER, or set MLFLOW_TRACKING_URI" in result.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "mlflow", "card"])
def test_for_a_person(kind: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard" if kind == "card" else kind)
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = call("export", run, "--to", kind, "--out", tmp_path / "there")
    assert result.exit_code == 0, result.output
    assert re.search(r"^order( hash)? +[0-9a-f]{64}$", result.stdout, re.MULTILINE)
    assert str(tmp_path / "there") in result.stdout


@pytest.mark.parametrize(("kind", "module"), [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_library_that_is_missing(
    kind: str, module: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    result = call("export", run, "--to", kind, "--out", tmp_path / "there")
    assert result.exit_code == 1
    assert f"pip install 'orderscope[{kind}]'" in result.stderr
    assert not (tmp_path / "there").exists()


def test_a_card(run: Path, tmp_path: Path) -> None:
    facts = answer("export", run, "--to", "card", "--out", tmp_path / "hub")
    page, order = (tmp_path / "hub" / "README.md").read_text(), np.load(tmp_path / "hub" / "order.npy")
    assert facts["order_hash"] == order_hash(order)
    assert f"`{order_hash(order)}`" in page
    sim = osc.Simulator(run)
    assert f"`{order_hash(sim.order)}`" in page
    assert f"| {sim.sigma_order('=eval'):.5g} |" in page
    check = osc.validate(osc.Simulator(run, task_of(run)), 4)  # as it was validated before
    assert check.cost == 0
    row = next(line for line in page.splitlines() if line.startswith("| =eval | 4 |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    mae = float(np.abs(check.predicted["=eval"] - check.true["=eval"]).mean())
    assert float(cells[2]) == pytest.approx(check.spearman["=eval"], rel=1e-4)
    assert float(cells[3]) == pytest.approx(mae, rel=1e-4)
    assert cells[5] == f"{check.coverage['=eval']:.0%}"
    assert f"{sum(part_runs(sim.store).values()):.3g} trainings of the window" in page
    code = page.partition("```python\n")[2].partition("```")[0].replace("osc.play", "(lambda *_: None)")
    names: dict[str, Any] = {"data": range(sim.description["samples"]), "trainer": None}
    here = Path.cwd()
    os.chdir(tmp_path / "hub")
    try:
        exec(code, names)
    finally:
        os.chdir(here)
    assert np.stack([np.asarray(batch) for batch in names["loader"]]).tolist() == order.tolist()


def task_of(run: Path) -> osc.Task:
    from orderscope.cli.tasks import find_task

    task, _ = find_task(run, f"{run.parent / 'tracker_tasks.py'}:linear")
    return task


def test_a_card_of_a_named_order(run: Path, tmp_path: Path) -> None:
    facts = answer("export", run, "--to", "card", "--out", tmp_path, "--order", "reverse")
    sim = osc.Simulator(run)
    assert facts["order_hash"] == order_hash(sim.order[::-1])
    page = (tmp_path / "README.md").read_text()
    prediction = sim.predict(sim.order[::-1])
    assert f"| {prediction.metrics['=eval'][0]:.5g} | predicted, ±{prediction.error['=eval'][0]:.5g}" in page
    answer("export", run, "--to", "card", "--out", tmp_path, "--order", "reference")  # its own page is replaced
    assert "| trained |" in (tmp_path / "README.md").read_text()


def test_a_page_of_somebody_else_stays(run: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my model")
    result = call("export", run, "--to", "card", "--out", tmp_path)
    assert result.exit_code == 1
    assert "README.md, which no export wrote" in result.stderr
    assert (tmp_path / "README.md").read_text() == "my model"
    assert not (tmp_path / "order.npy").exists()


def test_options_that_do_not_go_together(run: Path, tmp_path: Path) -> None:
    assert call("export", run, "--to", "card").exit_code == 2
    assert "--to csv needs --out" in call("export", run).stderr
    result = call("export", run, "--out", tmp_path, "--order", "reverse")
    assert result.exit_code == 2
    assert "--order is for --to card" in result.stderr
    assert call("export", run, "--to", "card", "--out", tmp_path, "--order", "sideways").exit_code == 1


def test_names_are_no_markup() -> None:
    assert table(["a"], [[cell("x|y*`<b>")]]).splitlines()[2] == "| x\\|y\\*\\`\\<b\\> |"
    assert cell("a\nb\x1b[31m").count("\n") == 0
