"""`inspect` and `pack` on whole, unfinished and damaged runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from orderscope.cli.main import main
from orderscope.sketching.plan import Anchor, SketchPlan
from orderscope.store import RunStore

TASK = {
    "model": "Net", "size": 35_200, "dtype": "float32", "steps": 24, "batch": 4, "samples": 96,
    "group_names": ["code", "prose\x1b[2J"], "metrics": {"eval": 32, "accuracy": None}, "optimizer": "AdamW",
    "param_groups": 2, "scheduler": None, "warm": False, "max_grad_norm": 1.0, "parameters": [{}] * 7,
    "environment": {"torch": "2.13.0", "threads": 1},
}  # fmt: skip
BOUNDARIES = [0, 12, 24]
PLAN = SketchPlan(
    size=35_200,
    carried=4096,
    seed=0,
    anchors=[Anchor("reference", k, step, False) for k, step in enumerate(BOUNDARIES)],
    blocks=[(0, 12), (12, 24)],
    curvature_anchor=1,
    curvature_ids=[list(range(32)), list(range(32, 64))],
    draws=3,
    metrics={"eval": 32},
    probes=1,
    held_out_ids=[list(range(16)), list(range(16, 32))],
    batch=4,
    steps=24,
)


def segment(store: RunStore, run: str, index: int) -> None:
    attrs = {"stop": BOUNDARIES[index], "boundaries": BOUNDARIES, "metrics": {"eval": 2.5 - index}}
    store.write(f"record/{run}/segment-{index:03d}", {"theta": np.arange(100.0)}, attrs)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with RunStore.create(tmp_path / "run") as store:
        store.write("record/task", {"order": np.arange(96).reshape(24, 4)}, TASK)
        for name in ("reference", "probe-0"):
            for index in range(3):
                segment(store, name, index)
                store.log({"event": "segment", "run": name, "index": index, "train_seconds": 0.4, "seconds": 0.5})
        store.write("sketch/plan", {}, PLAN.attrs())
        for unit in PLAN.units():
            store.write(unit, {"rows": np.zeros((4, 5))})
        store.log({"event": "sketched", "unit": "sketch/rows/a00-b000", "seconds": 0.24})
        store.log({"event": "sketched", "unit": "sketch/known/reference", "cpu": 0.12, "seconds": 9.0})
        store.log({"event": "sketched"})  # the journal is not checked
        store.write("calibration", {"residuals": np.zeros(3)})
    return tmp_path / "run"


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 4
    file.write_bytes(raw)


def test_a_complete_run(run: Path) -> None:
    result = call("inspect", run)
    assert result.exit_code == 0
    head, *rest = result.output.splitlines()
    assert head.startswith(f"{run}: complete, directory of ")
    assert head.endswith(", 21 shards")
    assert [line.strip() for line in rest if line] == [
        "not yet: unseen orders, trained to check the predictions",
        "not yet: a proposed order",
        "not yet: a map of how well batches are remembered",
        f"next: orderscope sketch {run}",
        "builds the table that predictions are computed from",
        "model        Net: 35,200 float32 weights in 7 tensors",
        "order        24 steps of 4 samples, from 96",
        "groups       code, prose\\x1b[2J",
        "optimizer    AdamW, 2 parameter groups, no scheduler, clipped at 1.0, from the",
        "start",
        "metrics      accuracy (a function), eval (32 rows)",
        "sketch       4,096 coordinates, 3 anchors, 192 curvature rows, seed 0",
        "recorded on  threads 1, torch 2.13.0",
        "time         reference 1.5 s, probes 1.5 s, gradients 0.24 s, curvature 0 s,",
        "held-out losses 0.12 s, table 0 s",
        "cost         2.8 runs (reference 1.25, probes 1.25, gradients 0.2, curvature",
        "0, held-out losses 0.1, table 0)",
        "run        states at steps  eval",
        "reference  0 12 24          0.5",
        "probe-0    0 12 24          0.5",
        "part              shards  size",
        *(line.strip() for line in rest[-6:]),
    ]
    parts = [("sketch/plan", 1), ("sketch/rows", 6), ("sketch/curvature", 2), ("sketch/known", 2),
             ("sketch/held-out", 2), ("calibration", 1)]  # fmt: skip
    assert [line.split()[:2] for line in rest[-6:]] == [[name, str(count)] for name, count in parts]


def test_json_says_the_same(run: Path) -> None:
    facts = json.loads(call("inspect", run, "--json").output)
    assert (facts["state"], facts["damage"], facts["missing"]) == ("complete", [], [])
    assert facts["runs"][0] == {
        "name": "reference",
        "anchors": BOUNDARIES,
        "planned": 3,
        "steps": 24,
        "metrics": {"eval": 0.5},
        "finished": True,
    }
    assert facts["task"]["optimizer"] == "AdamW"
    assert facts["parts"]["sketch/rows"]["shards"] == 6


def test_an_unfinished_run(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run") as store:
        for state in (
            ["the task's description", "the reference run", "the sketch"],
            ["the reference run", "the sketch"],
            ["the sketch", "run reference after step 0 of 24"],
            ["the sketch", "run reference after step 12 of 24"],
            ["the sketch"],
        ):
            result = call("inspect", store.path)
            assert result.exit_code == 5
            assert [line[11:] for line in result.output.splitlines() if line.startswith("  missing: ")] == state
            if "record/task" not in store:
                store.write("record/task", {}, TASK)
            elif len(store.names()) < 4:
                segment(store, "reference", len(store.names()) - 1)


def next_command(run: Path) -> str:
    """What `inspect` says to do, the path of the run left out."""
    (line,) = (line for line in call("inspect", run).output.splitlines() if line.startswith("  next: "))
    return line.removeprefix("  next: ").replace(str(run), "RUN")


def test_the_one_command_that_goes_on(tmp_path: Path, run: Path) -> None:
    assert next_command(run) == "orderscope sketch RUN"
    call("pack", run, "--out", tmp_path / "early.h5")
    assert next_command(tmp_path / "early.h5") == "orderscope query RUN --order reverse"
    for name, then in (
        ("table/left-out-000", "orderscope validate RUN"),
        ("validation/000", "orderscope propose RUN --out best.npy"),
        ("proposal/000", "orderscope report RUN --out report.html"),
    ):
        with RunStore.create(run) as store:
            store.write(name, {"x": np.zeros(4)})
        assert next_command(run) == then
    call("pack", run, "--out", tmp_path / "run.h5")
    assert next_command(tmp_path / "run.h5") == "orderscope query RUN --order reverse"
    flip(run / "record+reference+segment-001.h5")
    assert next_command(run).startswith("copy the run again from an undamaged source")


def test_an_interrupted_recording_goes_on_with_its_task(tmp_path: Path, run: Path) -> None:
    whole = RunStore.open(run)
    with RunStore.create(tmp_path / "begun run") as store:
        store.write("record/task", whole.read("record/task"), whole.attrs("record/task"))
        assert next_command(store.path) == "orderscope record my_run.py:task --out 'RUN'"
        store.log({"event": "task", "spec": "/home/me/own.py:fine tune", "file": "/home/me/own.py"})
    facts = json.loads(call("inspect", tmp_path / "begun run", "--json").output)
    assert facts["next"]["command"] == f"orderscope record '/home/me/own.py:fine tune' --out '{tmp_path / 'begun run'}'"


def test_a_half_made_sketch(tmp_path: Path, run: Path) -> None:
    whole = RunStore.open(run)
    with RunStore.create(tmp_path / "half") as store:
        for name in whole.names():
            if name.removeprefix("sketch/") not in ("rows/a01-b001", "rows/a02-b000", "known/probe-0", "held-out/b001"):
                store.write(name, whole.read(name), whole.attrs(name))
    result = call("inspect", tmp_path / "half")
    assert result.exit_code == 5
    assert [line for line in result.output.splitlines() if "missing" in line] == [
        "  missing: 2 of 6 units of sketch/rows",
        "  missing: 1 of 2 units of sketch/known",
        "  missing: 1 of 2 units of sketch/held-out",
    ]
    assert next_command(tmp_path / "half") == "orderscope sketch RUN"


def test_nothing_is_missing_once_the_table_is_built(run: Path) -> None:
    with RunStore.create(run) as store:
        for name in ("window", "held-out", "left-out"):
            assert json.loads(call("inspect", run, "--json").output)["missing"] == []
            store.write(f"table/{name}-000", {"x": np.zeros(4)})
        store.drop(store.names("sketch/rows/") + store.names("sketch/held-out/"))
    facts = json.loads(call("inspect", run, "--json").output)
    assert (facts["state"], facts["missing"], facts["unlisted"]) == ("complete", [], [])
    assert "sketch/rows" not in facts["parts"]
    assert facts["parts"]["table/left-out-000"]["shards"] == 1


def test_what_is_kept_of_predicted_weights_is_shown_where_it_is_not_all(run: Path) -> None:
    def shown() -> str:
        return CliRunner().invoke(main, ["inspect", str(run)]).stdout

    words = "drawn towards recorded ones: 50% is kept of what recorded ends do not span"
    with RunStore.create(run) as store:
        store.write("table/left-out-000", {"theta": np.zeros(3)}, {"kept": 1.0})
    assert "predicted ends" not in shown()
    with RunStore.create(run) as store:
        store.write("table/left-out-001", {"theta": np.zeros(3)}, {"kept": 0.5})
    assert words in " ".join(shown().split())


def test_a_damaged_shard(run: Path) -> None:
    flip(run / "record+reference+segment-001.h5")
    result = call("inspect", run)
    assert result.exit_code == 4
    shard = "shard record/reference/segment-001 (record+reference+segment-001.h5)"
    assert f"  damaged: {shard}: its bytes are not what was written\n" in result.output
    assert "probe-0    0 12 24" in result.output
    facts = json.loads(call("inspect", run, "--json").output)
    assert facts["state"] == "damaged"
    assert len(facts["damage"]) == 1


def test_a_damaged_task_is_not_called_missing(run: Path) -> None:
    flip(run / "record+task.h5")
    result = call("inspect", run)
    assert result.exit_code == 4
    assert "missing" not in result.output


def test_a_damaged_manifest(run: Path) -> None:
    manifest = run / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes().replace(b"probe-0/segment-002", b"probe-1/segment-002"))
    result = call("inspect", run)
    assert result.exit_code == 4
    assert "damaged: manifest.jsonl, line 7: not what was written (shard record/probe-1/segment-002)" in result.output


def test_pack(run: Path) -> None:
    out = run.parent / "run.h5"
    assert call("pack", run, "--out", out).output.startswith(f"{out}: 21 shards, ")
    packed, plain = (json.loads(call("inspect", path, "--json").output) for path in (out, run))
    assert packed.pop("packed")
    assert not plain.pop("packed")
    for facts in (packed, plain):
        del facts["path"], facts["disk_bytes"], facts["next"]
    assert packed == plain
    again = call("pack", run, "--out", out)
    assert again.exit_code == 1
    assert again.stderr.startswith(f"orderscope: found an existing {out}; expected")
    facts = json.loads(call("pack", run, "--out", run.parent / "other.h5", "--json").output)
    assert facts == {"file": str(run.parent / "other.h5"), "bytes": out.stat().st_size, "shards": 21}


def test_a_damaged_run_is_not_packed(run: Path) -> None:
    flip(run / "calibration.h5")
    result = call("pack", run, "--out", run.parent / "run.h5")
    assert result.exit_code == 4
    assert "calibration.h5" in result.stderr
    assert len(result.stderr.splitlines()) == 1
