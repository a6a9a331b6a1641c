"""Progress as lines, where there is no terminal."""

from __future__ import annotations

import ast
import doctest
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import orderscope
from orderscope.cli import progress as module
from orderscope.cli.progress import COUNTED, progress_bars


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


def test_examples() -> None:
    assert doctest.testmod(module).failed == 0


def test_a_line_says_what_is_counted(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    told = [("train the reference", 48), ("probes and sketch", 54), ("sketch, share 1 of 4", 13), ("search", 2000),
            ("confirm", 1), ("positions", 144)]  # fmt: skip
    with progress_bars() as report:
        for stage, total in told:
            report(stage, total, total)
    lines = capsys.readouterr().err.splitlines()
    counts = ["48 steps", "54 units", "13 units", "2000 orders", "1 run", "144 cells"]
    assert lines == [f"{stage}: {count} in 0.0 s" for (stage, _), count in zip(told, counts, strict=True)]


def test_so_does_a_line_in_the_middle_of_a_stage(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as report:
        clock[0] += 61
        report("search", 500, 2000)
    assert capsys.readouterr().err == "search: 500 of 2000 orders, 183 s left\n"


def test_and_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    console = pytest.importorskip("rich.console")
    written, made = io.StringIO(), console.Console
    monkeypatch.setattr(console, "Console", lambda stderr: made(file=written, width=100, force_terminal=True))
    bars = module._bars(module._rich())
    report = next(bars)
    report("train the reference", 48, 48)
    assert next(bars, None) is None
    assert "48 of 48 steps" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.getvalue())


def test_every_stage_has_a_name_for_what_it_counts() -> None:
    stages = set(stages_told())
    assert {"train the reference", "search", "positions"} <= stages
    assert {stage.partition(",")[0] for stage in stages} == set(COUNTED)


def stages_told() -> Iterator[str]:
    """First words of every call of a `progress`, and of what makes one with `_stage`."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in Path(orderscope.__file__).parent.rglob("*.py")]
    for call in [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]:
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        if name in ("progress", "_stage"):
            told = call.args[name == "_stage"]
            told = told.values[0] if isinstance(told, ast.JoinedStr) else told
            if isinstance(told, ast.Constant) and isinstance(told.value, str):
                yield told.value


def test_a_long_stage_tells_the_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as report:
        for done in range(1, 10):
            clock[0] += 20
            report("train unseen orders", done, 10)
    assert re.findall(r"(\d+) of 10 orders, (\d+) s left", capsys.readouterr().err) == [("4", "120"), ("8", "40")]


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars(quiet=True) as report:
        report("train unseen orders", 1, 1)
    assert capsys.readouterr().err == ""
