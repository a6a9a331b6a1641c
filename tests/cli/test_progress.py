"""Progress as lines, where there is no terminal."""

from __future__ import annotations

import ast
import doctest
import io
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import orderscope
from orderscope.cli import progress as module
from orderscope.cli.progress import COUNTED, progress_bars


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless it is set; nobody looks at it but who reports."""
    now = [0.0]
    monkeypatch.setattr(module, "TICK", 1e6)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_one_line_a_stage(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as report:
        for done in (1, 2, 3):
            clock[0] += 0.4
            report("train\x1b[2J", done, 3)
        clock[0] += 5
        report("all at once", 7, 7)
        report("all at once", 7, 7)
    assert capsys.readouterr().err.splitlines() == ["train\\x1b[2J: 3 in 1.2 s", "all at once: 7 in 5.0 s"]


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
    assert capsys.readouterr().err == "search: 500 of 2000 orders, 3 min 3 s left\n"


def test_and_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    console = pytest.importorskip("rich.console")
    written, made = io.StringIO(), console.Console
    monkeypatch.setattr(console, "Console", lambda stderr: made(file=written, width=100, force_terminal=True))
    bars = module._bars(module._rich())
    report = next(bars)
    report("check the task", 0, 0)
    report("train the reference", 48, 48)
    report("build the table", 0, 1)
    assert next(bars, None) is None
    told = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.getvalue())
    assert "48 of 48 steps" in told
    left = told.rstrip().splitlines()[-2:]  # as the bars stood at the end
    assert [line.split("━")[0].strip() for line in left] == ["train the reference", "build the table"]
    assert "of 1" not in left[1]


def test_every_stage_has_a_name_for_what_it_counts() -> None:
    stages = set(stages_told())
    assert {"train the reference", "search", "positions"} <= stages
    assert {stage.partition(",")[0] for stage in stages} == set(COUNTED)


def test_a_stage_is_told_soon_after_it_begins(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as report:
        report("confirm", 0, 3)
        report("confirm", 0, 3)
        assert capsys.readouterr().err == ""
        clock[0] += module.SOON
        report("confirm", 0, 3)
        clock[0] += 1
        report("confirm", 1, 3)  # the next line comes after ten seconds
        clock[0] += 0.5
        report("build the table", 0, 1)
        clock[0] += 4
        report("build the table", 1, 1)
    assert capsys.readouterr().err.splitlines() == ["confirm: 0 of 3 runs, 2 s so far", "build the table: 4.0 s"]


def test_silence_is_broken_by_a_look_at_the_clock(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is reported while the work goes on; a stage that ends sooner says nothing."""
    said = threading.Event()
    monkeypatch.setattr(module, "SOON", 0.05)
    monkeypatch.setattr(module, "TICK", 0.01)
    show = module.say
    monkeypatch.setattr(module, "say", lambda text, err: (show(text, err=err), said.set()))
    with module.doing("open run"):
        assert said.wait(30)
    assert capsys.readouterr().err == "open run: 0 s so far\n"
    monkeypatch.setattr(module, "SOON", 1e6)
    with module.doing("open run"):
        pass
    assert capsys.readouterr().err == ""
    assert "orderscope-progress" not in [thread.name for thread in threading.enumerate()]


def test_what_follows_a_stage_is_not_silent_either(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    lines = module._Lines()
    lines("confirm", 1, 1)
    for seconds in (3, 3, 10):
        clock[0] += seconds
        lines.tick()
    told = [
        "confirm: 1 run in 0.0 s",
        "confirm is done, going on: 3 s so far",
        "confirm is done, going on: 16 s so far",
    ]
    assert capsys.readouterr().err.splitlines() == told


def stages_told() -> Iterator[str]:
    """First words of every call of a `progress`, and of what makes one with `_stage`."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in Path(orderscope.__file__).parent.rglob("*.py")]
    for call in [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]:
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        if name in ("progress", "_stage"):
            told = call.args[name == "_stage"]
            if name == "progress" and ast.unparse(call.args[-1]) == "0":
                continue  # counts nothing
            told = told.values[0] if isinstance(told, ast.JoinedStr) else told
            if isinstance(told, ast.Constant) and isinstance(told.value, str):
                yield told.value


def test_a_long_stage_tells_the_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as report:
        for done in range(1, 10):
            clock[0] += 20
            report("train unseen orders", done, 10)
    told = re.findall(r"(\d+) of 10 orders, (.*) left", capsys.readouterr().err)
    assert told[0] == ("1", "3 min")
    assert told[-1] == ("9", "20 s")


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars(quiet=True) as report:
        report("train unseen orders", 1, 1)
    assert capsys.readouterr().err == ""
