"""Ctrl-C, and code of a task that ends the program: what is told, and with which exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands import answer, call
from orderscope.store import RunStore
from run_bytes import digests

SLOW = """
import os, sys, time
import tasks_tiny

def char():
    parts = tasks_tiny.char()
    loss = parts["loss"]
    def slow(model, batch):
        if "SLOW" in os.environ:
            print("at work", file=sys.stderr, flush=True)
            time.sleep(0.05)
        return loss(model, batch)
    return parts | {"loss": slow}
"""
# Whoever runs the tests in the background may have them ignore Ctrl-C, which children inherit.
MAIN = (
    "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from orderscope.cli.main import main\nmain(sys.argv[1:])\n"
)


def interrupted(words: list[object], until: str, later: float) -> tuple[int, list[str]]:
    """What a command says to Ctrl-C, pressed at a terminal `later` than a line: all processes of its group hear it."""
    child = subprocess.Popen(
        [sys.executable, "-u", "-c", MAIN, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"SLOW": "1"}, start_new_session=True,
    )  # fmt: skip
    assert child.stderr is not None
    lines = []
    for line in child.stderr:
        lines.append(line.rstrip("\n"))
        if until in line:
            time.sleep(later)
            os.killpg(child.pid, signal.SIGINT)
            break
    _, rest = child.communicate(timeout=60)
    told = [line for line in [*lines, *rest.splitlines()] if line != "at work"]
    return child.returncode, [line for line in told if not line.endswith((" so far", " left"))]


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    file = tmp_path / "slow_tasks.py"
    file.write_text(SLOW)
    return file


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_recording_tells_what_is_kept_and_how_to_go_on(slow: Path, tmp_path: Path, jobs: int) -> None:
    run = tmp_path / "run"
    words = ["record", f"{slow}:char", "--out", run, "--anchors", 3, "--probes", 3]
    code, lines = interrupted([*words, "--jobs", jobs], "train the reference: 9 steps in", 0.7)
    assert code == 130
    assert (
        lines[-1]
        == f"orderscope: interrupted; what was finished is kept in {run}: run the same command again to resume"
    )
    assert "Traceback" not in "\n".join(lines)
    assert [line for line in lines if "interrupted" in line] == lines[-1:]  # workers and parent hear it, one tells it
    assert len(set(lines)) == len(lines)
    store = RunStore.open(run)
    assert store.verify() == []
    assert "record/reference/segment-002" in store
    assert "sketch/metric/eval" not in store
    assert call(*words).exit_code == 0
    answer("record", f"{slow}:char", "--out", tmp_path / "whole", "--anchors", 3, "--probes", 3)
    assert digests(run) == digests(tmp_path / "whole")


def test_a_validation_is_interrupted(slow: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    answer("record", f"{slow}:char", "--out", run, "--anchors", 3, "--probes", 3)
    code, lines = interrupted(["validate", run, "--orders", 4, "--task", f"{slow}:char"], "at work", 0.5)
    assert code == 130
    assert lines[-1].endswith(f"what was finished is kept in {run}: run the same command again to resume")
    assert "Traceback" not in "\n".join(lines)
    assert RunStore.open(run).verify() == []
    assert call("validate", run, "--orders", 4).exit_code == 0


def test_where_there_is_no_run_nothing_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunStore, "open", press)
    done = call("inspect", tmp_path / "none")
    assert done.exit_code == 130
    assert done.stderr == "orderscope: interrupted; nothing was changed: run the same command again to resume\n"


EXITS = """
import os, sys
import tasks_tiny

HOME = os.getpid()

def ending(where):
    parts = tasks_tiny.char()
    loss = parts["loss"]
    def end(model, batch):
        if where == "loss" or os.getpid() != HOME:
            sys.exit(0)
        return loss(model, batch)
    return parts | {"loss": end}

def at_once():
    sys.exit(0)

def with_words():
    sys.exit("I am done")

def loss():
    return ending("loss")

def worker():
    return ending("worker")
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("at_once", "sys.exit(0) in the code of the task (line 17 of "),
        ("with_words", "sys.exit('I am done') in the code of the task (line 20 of "),
        ("loss", "sys.exit(0) in the code of the task (line 12 of "),
        ("worker", "sys.exit(0) in the code of the task; expected code that returns"),
    ],
)
def test_a_task_that_ends_the_program_is_told(tmp_path: Path, name: str, words: str) -> None:
    file = tmp_path / f"exits_{name}.py"
    file.write_text(EXITS)
    done = call("record", f"{file}:{name}", "--out", tmp_path / "run", "--probes", 2, "--anchors", 2, "--jobs", 2)
    assert done.exit_code == 1
    assert words in done.stderr.splitlines()[-1]


def test_a_file_that_ends_the_program(tmp_path: Path) -> None:
    file = tmp_path / "exits.py"
    for code, words in (("import sys\nsys.exit(0)\n", "sys.exit(0) in the code of the task (line 2 of "),
                        ("raise SystemExit\n", "sys.exit(None) in the code of the task (line 1 of "),
                        ("exit(3)\n", "sys.exit(3) in the code of the task (line 1 of "),
                        ("def task(:\n", "SyntaxError: "), ("import nowhere\n", "ModuleNotFoundError: "),
                        ("x = 1 / 0\n", "ZeroDivisionError: division by zero (line 1 of ")):  # fmt: skip
        file.write_text(code)
        for verb in (["record", f"{file}:task", "--out", tmp_path / "run"], ["doctor", f"{file}:task"]):
            done = call(*verb)
            assert done.exit_code == 1
            assert words in done.stderr
            assert str(file) in done.stderr
            assert "Traceback" not in done.stderr


def test_a_preflight_is_interrupted(slow: Path, tmp_path: Path) -> None:
    code, lines = interrupted(["doctor", f"{slow}:char", "--dir", tmp_path], "at work", 1.0)
    assert code == 130
    assert lines[-1].startswith("orderscope: interrupted; nothing was changed")
    assert "Traceback" not in "\n".join(lines)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".orderscope")] == []
