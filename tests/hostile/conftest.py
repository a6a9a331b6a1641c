"""A made-up run to be harmed, and a recorded one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from commands import answer
from torture_cases import made_run

TASKS = """
import sys
sys.modules["tasks_that_ran"] = sys
import tasks_tiny

def char():
    return tasks_tiny.char()
"""


@pytest.fixture
def made(tmp_path: Path) -> Path:
    made_run(tmp_path / "made")
    return tmp_path / "made"


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tasks") / "hostile_tasks.py"
    file.write_text(TASKS)
    return file


@pytest.fixture(scope="session")
def recorded(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("recorded") / "run"
    answer("record", f"{tasks}:char", "--out", run, "--anchors", 3, "--probes", 3)
    return run


@pytest.fixture
def run(recorded: Path, tmp_path: Path) -> Path:
    shutil.copytree(recorded, tmp_path / "run")
    return tmp_path / "run"
