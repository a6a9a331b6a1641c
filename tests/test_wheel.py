"""The wheel, installed without the test set: only what a user gets by `pip install orderscope` can be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Refuses what belongs to no distribution that the core asks for, directly or by others.
ONLY_THE_CORE = """
import importlib.metadata as metadata, re, sys

def closure(name, seen):
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in seen:
        return
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return
    seen.add(key)
    for need in found.requires or ():
        if "extra ==" not in need:
            closure(re.match(r"[A-Za-z0-9._-]+", need)[0], seen)

core = set()
closure("orderscope", core)
blocked = {
    module
    for module, owners in metadata.packages_distributions().items()
    if not core & {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners}
}

class OfTheCore:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in blocked else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [OfTheCore(finder) for finder in sys.meta_path]
assert {"pytest", "sphinx", "transformers"} <= blocked, sorted(blocked)
assert not blocked & {"torch", "numpy", "h5py", "click"}
"""
TASK = """
import numpy as np, torch
from torch import nn
import orderscope as osc

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(3, 1)
    def forward(self, x):
        return self.line(x)

def loss(model, batch):
    x, y = batch
    return (model(x)[:, 0] - y) ** 2

def task():
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(40, 3, generator=draw)
    rows = [(a, a.sum()) for a in x]
    return osc.Task(
        model=Model, loss=loss, data=rows[:24], metrics={"eval": rows[24:]}, order=np.arange(24).reshape(6, 4),
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.05), scheduler=None,
    )
"""


def test_the_installed_wheel_needs_only_the_core(tmp_path: Path) -> None:
    source, place = tmp_path / "source", tmp_path / "place"
    ignore = [".venv", ".git", "build", "dist", "docs", "tests", "benchmarks", "*.egg-info", "__pycache__"]
    subprocess.run(
        ["cp", "-r", *(str(p) for p in ROOT.iterdir() if p.name not in ignore), str(_made(source))], check=True
    )
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run(wheel, check=True, stderr=subprocess.PIPE)
    (built,) = tmp_path.glob("orderscope-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(place), str(built)], check=True)
    (tmp_path / "my_run.py").write_text(TASK)
    main = f"""
import sys
sys.path[:0] = [{str(place)!r}]
{ONLY_THE_CORE}
import orderscope
assert orderscope.__file__.startswith({str(place)!r}), orderscope.__file__
from orderscope.cli.main import main
sys.argv[0] = "orderscope"
main()
"""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HOME": str(tmp_path)}

    def call(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", main, *args], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode in (0, 3), done.stderr
        return done.stdout

    assert "record" in call("--help")
    call("record", "my_run.py:task", "--out", "run")
    assert json.loads(call("query", "run", "--order", "reverse", "--json"))["orders"]
    call("report", "run", "--out", "report.html")
    assert "<html" in (tmp_path / "report.html").read_text()


def _made(path: Path) -> Path:
    path.mkdir()
    return path
