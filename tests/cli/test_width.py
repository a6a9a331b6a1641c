"""Tables fit 80 columns, words stay whole."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from commands import call
from orderscope.cli import layout, spoken, table, text
from orderscope.cli.layout import aligned, fold, folded
from orderscope.cli.main import VERBS

TASKS = """
import tasks_tiny

def task():
    kw = tasks_tiny.char()
    rows = kw["metrics"]["eval"]
    names = {"a": "encyclopedia", "b": "instructions", "c": "source_code"}
    groups = [names.get(g, g) for g in kw["groups"]]
    return kw | {"groups": groups, "metrics": {"heldout_loss": rows, "instruction_loss": rows}}
"""
STUDY = """
task: wide_tasks.py:task
out: studied
recording: {anchors: 2, probes: 2}
questions:
  - orders: [reverse, "swap:0,3|move:2,5|swap:1,2|swap:4,5|move:0,7"]
validation: {orders: 2}
proposal: {budget: 20, verify: 1, anyway: true}
"""
LONG = "swap:0,3|move:2,5|swap:1,2|swap:4,5|move:0,7|swap:3,6|move:1,4"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("wide") / "wide_tasks.py"
    file.write_text(TASKS)
    (file.parent / "study.yaml").write_text(STUDY)
    return file


@pytest.mark.slow
def test_no_table_of_any_verb_is_wider_than_80_columns(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    def noted(*args: object, **options: object) -> list[str]:
        lines.extend(aligned(*args, **options))  # type: ignore[arg-type]
        return aligned(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(table, "aligned", noted)
    monkeypatch.setattr(text, "aligned", noted)
    run = tasks.parent / "run"
    tabled = {
        "record": ["record", f"{tasks}:task", "--out", run, "--anchors", 2, "--probes", 3, "--no-sketch"],
        "sketch": ["sketch", run],
        "query": ["query", run, "--order", "reverse", "--order", LONG, "--train"],
        "validate": ["validate", run, "--orders", 4],
        "propose": [
            "propose",
            run,
            "--budget",
            60,
            "--verify",
            2,
            "--anyway",
            "--schedules",
            "--metric",
            "heldout_loss",
        ],
        "positions": ["positions", run, "--verify", 2],
        "report": ["report", run, "--out", tasks.parent / "report.html"],
        "export": ["export", run, "--out", tasks.parent / "tables"],
        "inspect": ["inspect", run],
        "pack": ["pack", run, "--out", tasks.parent / "run.h5"],
        "run": ["run", tasks.parent / "study.yaml"],
        "doctor": ["doctor", "--dir", tasks.parent],
    }
    assert list(tabled) != [] and set(tabled) == set(VERBS)  # noqa: PT018
    for verb, words in tabled.items():
        lines.clear()
        result = call(*words)
        assert result.exit_code in (0, 3), result.output
        assert max(map(len, lines), default=0) <= 80, verb
        assert bool(lines) == (verb in ("query", "validate", "propose", "positions", "export", "inspect", "run",
                                        "doctor")), verb  # fmt: skip
        if verb == "query":
            shown = " ".join(result.stdout.split())
            assert all(re.search(rf"(^|[ |]){re.escape(part)}(\||$| )", shown) for part in LONG.split("|"))


def test_words_stay_whole_and_numbers_stand_right() -> None:
    rows = [["order", "loss", "found by"], ["late:code", "2.5", "swaps, moves and block moves from the best so far"]]
    assert aligned(rows, 40, right=[1], header=True) == [
        "  order      loss  found by",
        "  late:code   2.5  swaps, moves and",
        "                   block moves from the",
        "                   best so far",
    ]
    assert aligned([["gain on the other rows"], ["1"]], 14, right=[0], header=True) == [
        "  gain on the", "   other rows", "            1"]  # fmt: skip


def test_a_word_that_does_not_fit_is_left_whole() -> None:
    word = "x" * 100
    assert fold(word, 10) == [word]
    assert folded([[word, "a b"]], 20)[0] == [[word], ["a b"]]
    assert aligned([], 80) == []


def test_a_path_is_never_folded() -> None:
    """It is there to be copied; what stands beside it stays readable."""
    path = "/home/someone/experiments/orders/best-of-many.npy"
    assert fold(path, 20) == [path]
    assert aligned([["order hash", path]], 30) == [f"  order hash  {path}"]


def test_on_a_terminal_long_lines_are_folded_between_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    said = "  note: a line that is longer than the terminal"
    text.say(said)
    text.say(said, whole=True)
    assert capsys.readouterr().out.splitlines() == [
        "  note: a line that is", "    longer than the terminal", said]  # fmt: skip


def test_examples() -> None:
    assert doctest.testmod(layout).failed == 0
    assert doctest.testmod(spoken).failed == 0
