"""Characters that steer a terminal or a page, in everything that comes from a run or a task: none gets out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import orderscope as osc
import tasks_tiny
from commands import call
from made_up import heat, proposal
from orderscope.answers.stored import keep_heat, keep_proposal
from orderscope.store import RunStore
from orderscope.text import plain_lines

BAD = "\x1b[2J\a\x9b31m\u202e\u2066\x85\r\u200b\x7f"
TASK = f"""
import sys
sys.path.insert(0, {str(Path(tasks_tiny.__file__).parent)!r})
import tasks_tiny

BAD = {BAD!a}

def char():
    parts = tasks_tiny.char()
    names = {{name: name + BAD for name in tasks_tiny.GROUPS}}
    metrics = {{"eval" + BAD: parts["metrics"]["eval"]}}
    return parts | {{"groups": [names[g] for g in parts["groups"]], "metrics": metrics}}

def broken():
    raise ValueError("hurt" + BAD)
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything in it that can have a name has a bad one."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("rims")
    (folder / "bad_tasks.py").write_text(TASK)
    run = folder / f"run{BAD}"
    done = call("record", f"{folder / 'bad_tasks.py'}:char", "--out", run, "--anchors", 3, "--probes", 3)
    assert done.exit_code == 0, done.stderr
    check(done.output)
    task = osc.Task(**tasks_tiny.char())
    made = proposal(task)
    made.metric, made.notes = "eval" + BAD, ["note" + BAD]
    made.table[0].name = made.table[0].source = "row" + BAD
    map_ = heat(task.steps)
    with RunStore.create(run) as store:
        keep_proposal(store, made)
        keep_heat(store, map_)
        store.log({"event": "query", "orders": ["reverse", "late:" + BAD, BAD]})
    return run


@pytest.fixture
def run(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / recorded.name))


def check(text: str) -> None:
    assert plain_lines(text) == text, ascii(text)


@pytest.mark.parametrize(
    "words",
    [
        ["query", "--order", "reverse", "--order", f"late:a{BAD}"],
        ["query", "--order", "reverse", "--train"],
        ["query", "--order", BAD],
        ["query", "--order", f"late:{BAD}"],
        ["query", "--order", f"{BAD}.npy"],
        ["query", "--order", "reverse", "--metric", BAD],
        ["query", "--order", "reverse", "--lr", BAD],
        ["query", "--order", "reverse", "--estimator", BAD],
        ["query", "--order", "reverse", "--task", BAD],
        ["query", "--order", "reverse", "--task", f"{BAD}.py:char"],
        ["query", "--order", "reverse", "--task", f"{BAD}:char"],
        ["query", BAD],
        ["propose", "--budget", "20", "--verify", "1"],
        ["propose", "--constraint", BAD],
        ["propose", "--metric", f"{BAD}=x"],
        ["propose", "--metric", f"x={BAD}"],
        ["validate", "--orders", "2"],
        ["positions", "--units", "2", "--places", "2"],
        ["inspect"],
        ["pack", "--out", f"/nowhere{BAD}/run.h5"],
        ["report", "--out", f"/nowhere{BAD}/page.html"],
        ["sketch", "--plan"],
        ["sketch", "--worker", BAD],
        [BAD],
    ],
    ids=ascii,
)
def test_the_terminal(run: Path, words: list[str]) -> None:
    done = call(words[0], run, *words[1:])
    check(done.output)
    check(done.stdout)
    check(done.stderr)
    assert done.output
    if words[0] not in ("sketch", "pack", "report", BAD):
        check(call(words[0], run, *words[1:], "--json").output)


def test_an_error_of_the_task(run: Path) -> None:
    done = call("query", run, "--order", "reverse", "--task", f"{run.parent / 'x.py'}:broken")
    check(done.output)
    (run.parent / "x.py").write_text(TASK)
    done = call("query", run, "--order", "reverse", "--task", f"{run.parent / 'x.py'}:broken")
    assert "ValueError: hurt\\x1b" in done.stderr
    check(done.output)


def test_damage(run: Path) -> None:
    """Names in damaged lines are shown too."""
    with open(run / "manifest.jsonl", "ab") as file:
        file.write(f'{{"name":"{BAD}","check":"0"}}\n'.encode())
    (run / f"file{BAD}").write_text("")
    (run / f"file{BAD}.h5").write_text("")
    done = call("inspect", run)
    assert done.exit_code == 4
    check(done.output)
    assert "file\\x1b" in done.output


def test_the_page(run: Path) -> None:
    page = run.parent / "page.html"
    assert call("report", run, "--out", page, "--order", f"late:a{BAD}").exit_code == 0
    text = page.read_text(encoding="utf-8")
    check(text)
    assert "eval\\x1b[2J" in text
    assert "row\\x1b" in text


def test_the_map(run: Path) -> None:
    out = run.parent / "heat.csv"
    assert call("positions", run, "--units", 2, "--places", 2, "--out", out).exit_code == 0
    check(out.read_text().replace("\r\n", "\n"))


def test_errors_in_python(run: Path) -> None:
    sim = osc.Simulator(run)
    for act in (lambda: sim.predict(np.zeros((3, 3), int)), lambda: sim.predict(sim.order, metrics=[BAD]),
                lambda: osc.RunStore.open(run).read(BAD)):  # fmt: skip
        with pytest.raises(osc.OrderscopeError) as caught:
            act()
        check(str(caught.value))
