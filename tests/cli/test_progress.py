"""Progress as lines, where there is no terminal."""

from __future__ import annotations

import re

import pytest

from orderscope.cli import progress as module
from orderscope.cli.progress import progress_bars


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_one_line_a_stage(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as report:
        for done in (1, 2, 3):
            clock[0] += 2
            report("train\x1b[2J", done, 3)
        clock[0] += 5
        report("all at once", 7, 7)
        report("all at once", 7, 7)
    assert capsys.readouterr().err.splitlines() == ["train\\x1b[2J: 3 in 6.0 s", "all at once: 7 in 5.0 s"]


def test_a_long_stage_tells_the_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as report:
        for done in range(1, 10):
            clock[0] += 20
            report("train", done, 10)
    assert re.findall(r"(\d+) of 10, (\d+) s left", capsys.readouterr().err) == [("4", "120"), ("8", "40")]


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars(quiet=True) as report:
        report("train", 1, 1)
    assert capsys.readouterr().err == ""
