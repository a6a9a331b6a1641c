"""The task file of a recorded loop: written where it can be and trusted as this user's, otherwise the
reason."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import orderscope as osc
import tasks_tiny
from loops_plain import make
from orderscope import trust
from orderscope.cli.tasks import find_task
from orderscope.loops.remembered import bound_names, trains_on_import


def build() -> torch.nn.Module:
    return tasks_tiny.classifier()["model"]()


def recorded(path: Path, **changes: Any) -> osc.Task:
    loop = make("plain")
    with osc.Recorder(path, loop.model, loop.opt, loop.sched) as rec:
        loop.run(rec)
    parts = {"model": build, "loss": tasks_tiny.cross_entropy, "data": loop.data, "metrics": {"eval": loop.data},
             "groups": [f"g{i % 2}" for i in range(len(loop.data))]} | changes  # fmt: skip
    task = rec.task(**parts)
    osc.record(task, path, probes=0, sketch=False)
    return task


def test_what_has_names_is_found_again_as_the_recorded_task(tmp_path: Path) -> None:
    task = recorded(tmp_path / "run")
    found, told = find_task(tmp_path / "run", None)
    assert found is not None, told
    assert told == f"{tmp_path}/run_task.py:task, as recorded"
    assert found.fingerprint() == task.fingerprint()
    assert (tmp_path / "run_task.pt").is_file()  # the samples, which have no name
    assert (tmp_path / "run_task.py").read_text().startswith("# Written by Orderscope when 'run' was recorded")


def test_on_another_machine_its_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(tmp_path / "run")
    monkeypatch.setenv(trust.STATE, str(tmp_path / "other-user"))
    (tmp_path / "run_task.py").write_text("raise SystemExit('was run')\n")
    found, told = find_task(tmp_path / "run", None)
    assert found is None
    assert "you never recorded or named" in told


def test_a_file_that_gives_another_task_is_not_used(tmp_path: Path) -> None:
    recorded(tmp_path / "run")
    file = tmp_path / "run_task.py"
    file.write_text(file.read_text().replace("tasks_tiny.cross_entropy", "lambda m, b: tasks_tiny.cross_entropy(m, b)"))
    found, told = find_task(tmp_path / "run", None)
    assert found is None
    assert "another loss" in told


UNNAMED: dict[str, tuple[dict[str, Any], str]] = {
    "a lambda": ({"loss": lambda m, b: tasks_tiny.cross_entropy(m, b)}, r"loss= is a lambda: define it at the top"),
    "a closure": ({"model": tasks_tiny.classifier()["model"]}, r"model= is .* inside a function: define it at the top"),
    "a model": ({"model": None}, "model= is an object of"),
    "samples": ({"data": "arrays"}, "data= has samples of tuple that are no tensors and plain values"),
}


@pytest.mark.parametrize("name", UNNAMED)
def test_what_has_no_name_is_said_where_a_task_is_needed(name: str, tmp_path: Path) -> None:
    changes, why = UNNAMED[name]
    loop = make("plain")
    if changes.get("data") == "arrays":
        changes = {"data": [(x.numpy(), int(y)) for x, y in loop.data], "metrics": {}}
    if changes.get("model", 0) is None:
        changes = {"model": loop.build()}
    recorded(tmp_path / "run", **changes)
    assert not (tmp_path / "run_task.py").exists()
    _, told = find_task(tmp_path / "run", None)
    assert re.search(why, told), told
    assert "--task file.py:name" in told


def test_a_file_of_the_users_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "run_task.py").write_text("mine = 1\n")
    recorded(tmp_path / "run")
    assert (tmp_path / "run_task.py").read_text() == "mine = 1\n"
    _, told = find_task(tmp_path / "run", None)
    assert "run_task.py is a file of yours" in told


def test_nothing_is_written_where_that_is_not_wanted(tmp_path: Path) -> None:
    recorded(tmp_path / "run", remember=False)
    assert not (tmp_path / "run_task.py").exists()


SCRIPT = """
    import sys, torch
    import orderscope as osc

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, x):
            return self.layer(x)

    def loss(model, batch):
        return model(batch).square().mean(1)

    {guard}
    {indent}data = list(torch.randn(8, 2, generator=torch.Generator().manual_seed(1)))
    {indent}model = Net()
    {indent}optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    {indent}with osc.Recorder(sys.argv[1], model, optimizer) as rec:
    {indent}    for t in range(4):
    {indent}        loss(model, torch.stack(data[2 * t:2 * t + 2])).mean().backward()
    {indent}        optimizer.step()
    {indent}        optimizer.zero_grad()
    {indent}        rec.step([2 * t, 2 * t + 1])
    {indent}osc.record(rec.task(loss=loss, data=data, metrics={{"eval": data}}), sys.argv[1], probes=0, sketch=False)
"""


@pytest.mark.parametrize("guarded", [True, False])
def test_a_script_is_named_only_where_importing_it_trains_nothing(guarded: bool, tmp_path: Path) -> None:
    guard, indent = ('if __name__ == "__main__":', "    ") if guarded else ("# no guard", "")
    file = tmp_path / "train.py"
    file.write_text(textwrap.dedent(SCRIPT).format(guard=guard, indent=indent))
    done = subprocess.run(
        [sys.executable, str(file), str(tmp_path / "run")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    task, told = find_task(tmp_path / "run", None)
    if guarded:
        assert task is not None, told
        assert trains_on_import(file) is None
        assert {"Net", "loss", "torch"} <= bound_names(file)
        assert "data" not in bound_names(file)
    else:
        assert task is None
        assert "trains when it is imported" in told
        assert 'put the training under if __name__ == "__main__":' in told


def test_a_data_set_may_be_called_train(tmp_path: Path) -> None:
    """A call of that name trains, a variable of that name does not."""
    file = tmp_path / "script.py"
    file.write_text("train = list(range(3))\nfit = train\n")
    assert trains_on_import(file) is None
    file.write_text("model = object()\nmodel.fit(3)\n")
    assert trains_on_import(file) == 2
