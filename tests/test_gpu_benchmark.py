"""benchmarks/gpu.py where there is no GPU: every part runs in its tiny form, and none that fails loses the others."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"

STAND_IN = """
import json, os, signal, sys, time
part, result = sys.argv[1:3]
row = dict(what="a figure", value=2.0, low=1.0, high=3.0, unit="s", goal=">= 1", met=True)
found = {"rows": [row], "memory": {"host": 1 << 30}, "error": None, "device": "a stand-in", "tiny": True}
def write(**more):
    with open(result, "w") as file:
        json.dump(found | more, file)
write()
if part == "kernels":
    write(error="Traceback\\nValueError: wrong", finished=True)
    sys.exit(1)
if part == "replay":
    print("about to be lost", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
if part == "together":
    time.sleep(600)
write(finished=True)
"""


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("gpu")


@pytest.mark.slow
def test_every_part_has_finite_figures_in_its_tiny_form(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--out", tmp_path, "--tiny"], capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["tiny"]
    assert found["versions"]["torch"] == torch.__version__
    assert found["device"]
    assert list(found["parts"]) == ["kernels", "replay", "together", "language"]
    rows = {}
    for part in found["parts"].values():
        assert part["error"] is None
        assert part["memory"]["host"] > 0
        assert part["rows"]
        for row in part["rows"]:
            assert all(math.isfinite(row[key]) for key in ("value", "low", "high"))
            assert row["low"] <= row["value"] <= row["high"]
            rows[row["what"].partition(": ")[2] or row["what"]] = row
    assert rows["largest difference, in what rounding allows"]["met"]
    assert rows["largest difference to plain torch, in learning rates"]["met"]
    assert rows["times quicker than plain torch"]["goal"] == ">= 5"
    assert rows["least bytes that must move, of a copy's bandwidth"]["goal"] == ">= 80"
    assert rows["largest relative difference of a loss"]["value"] < 1e-5  # float32 sums in another order, four steps
    assert any(what.startswith("a hundred answers by expansions") for what in rows)
    assert rows["gradients, curvature, metrics"]["unit"] == "trainings"
    table = (tmp_path / "gpu.md").read_text()
    assert f"torch {torch.__version__}" in table
    assert "these figures say only that everything runs" in table
    assert table.count("## ") == 4


def test_a_part_that_fails_or_is_lost_or_hangs_loses_none_of_the_others(gpu, tmp_path, monkeypatch, capsys):
    (tmp_path / "gpu_parts.py").write_text(STAND_IN)
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    monkeypatch.setattr(gpu, "PARTS", {name: (1.5, title) for name, (_, title) in gpu.PARTS.items()})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out")])
    assert gpu.main() == 1
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    errors = {name: part["error"] for name, part in found["parts"].items()}
    assert errors["kernels"] == "Traceback\nValueError: wrong"
    assert errors["replay"] == "ended with status -9\nabout to be lost\n"
    assert errors["together"].startswith("not finished after ")
    assert errors["language"] is None
    assert all(part["rows"][0]["value"] == 2.0 for part in found["parts"].values())
    assert found["device"] == "a stand-in"
    table = (tmp_path / "out" / "gpu.md").read_text()
    assert "| a figure | 2 (1 to 3) s | >= 1: met |" in table
    assert "Failed: ValueError: wrong" in table
    assert "kernels failed:" in capsys.readouterr().err


def test_all_parts_together_take_at_most_eight_minutes(gpu):
    assert sum(seconds for seconds, _ in gpu.PARTS.values()) <= 470
