"""Whose code is run: only that of files outside the run which this user recorded or named."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import answer, call
from orderscope.cli.options import NOT_NEEDED
from orderscope.cli.tasks import find_task
from orderscope.store import RunStore


@pytest.fixture(autouse=True)
def search_path() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def evil(tmp_path: Path) -> str:
    """Code that leaves a mark where it is run."""
    mark = f"open({str(tmp_path / 'was-here')!r}, 'w').close()\n"
    return f"{mark}import tasks_tiny\n\ndef char():\n    return tasks_tiny.char()\n"


def names(run: Path, **event: str) -> None:
    with RunStore.create(run) as store:
        store.log({"event": "task", **event})


def asked(run: Path) -> str:
    """What commands that need the task say of it; a query of held-out losses does not look for it."""
    done = call("query", run, "--order", "reverse", "--json")
    assert done.exit_code in (0, 3), done.stderr
    assert json.loads(done.stdout)["task"] == NOT_NEEDED
    return find_task(run, None)[1]


def test_a_file_that_only_the_run_names(run: Path, evil: str, tmp_path: Path) -> None:
    place = tmp_path / "theirs.py"
    place.write_text(evil)
    names(run, spec=f"{place}:char")
    said = asked(run)
    assert said.startswith(f"{place}:char, which the run names but you never recorded or named")
    assert f"--task {place}:char" in said
    for verb in ("validate", "positions"):
        done = call(verb, run)
        assert done.exit_code == 1
        assert len(done.stderr.splitlines()) == 1
        assert f"--task {place}:char" in done.stderr
    assert not (tmp_path / "was-here").exists()
    named = call("positions", run, "--units", 2, "--places", 2, "--task", f"{place}:char")
    assert named.exit_code == 0
    assert f"running the code in {place}, for the first time on this machine" in named.stderr
    assert (tmp_path / "was-here").exists()
    assert asked(run) == f"{place}:char, as recorded"  # named once is enough
    again = call("positions", run, "--units", 2, "--places", 2, "--task", f"{place}:char")
    assert "first time" not in again.stderr


def test_on_another_machine_nothing_is_trusted(
    run: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    assert asked(run) == f"{tasks}:char, as recorded"
    monkeypatch.setenv("ORDERSCOPE_STATE", str(tmp_path / "state"))
    assert "never recorded or named" in asked(run)
    monkeypatch.delenv("ORDERSCOPE_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert "never recorded or named" in asked(run)
    assert call("positions", run, "--units", 2, "--places", 2, "--task", f"{tasks}:char").exit_code == 0
    assert (tmp_path / "xdg" / "orderscope" / "trusted.jsonl").is_file()
    assert asked(run) == f"{tasks}:char, as recorded"


def test_a_file_recorded_for_another_run_is_not_trusted_for_this_one(run: Path, evil: str, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text("import tasks_tiny\n\ndef linear():\n    return tasks_tiny.linear()\n")
    answer("record", f"{other}:linear", "--out", tmp_path / "other", "--no-sketch", "--probes", 1, "--anchors", 2)
    names(run, spec=f"{other}:linear")
    assert "never recorded or named" in asked(run)


def test_another_function_of_the_same_file_is_not_trusted(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mark = tmp_path / "was-here"
    sweep = f"def sweep():\n    open({str(mark)!r}, 'w').close()\n"
    mine.write_text(f"import tasks_tiny\n\ndef char():\n    return tasks_tiny.char()\n\n{sweep}")
    assert call("positions", run, "--units", 2, "--places", 2, "--task", f"{mine}:char").exit_code == 0
    names(run, spec=f"{mine}:sweep")
    assert "never recorded or named" in asked(run)
    assert not mark.exists()


def test_a_run_that_was_copied_or_moved_keeps_its_task(run: Path, tasks: Path, tmp_path: Path) -> None:
    shutil.move(run, tmp_path / "moved")
    assert asked(tmp_path / "moved") == f"{tasks}:char, as recorded"


@pytest.mark.parametrize("how", ["module on the path", "module here", "file", "link out", "link in", "named"])
def test_nothing_inside_a_run_is_run(run: Path, evil: str, tmp_path: Path, monkeypatch, how: str) -> None:
    (run / "inner_evil.py").write_text(evil)
    (run / "numpy.py").write_text(evil)
    if how == "module on the path":
        monkeypatch.syspath_prepend(str(run))
        names(run, spec="inner_evil:char", file=str(run / "inner_evil.py"))
    elif how == "module here":
        monkeypatch.chdir(run)
        monkeypatch.syspath_prepend("")
        names(run, spec="inner_evil:char")
    elif how == "file":
        names(run, spec=f"{run / 'inner_evil.py'}:char")
    elif how == "link out":
        outside = tmp_path / "outside.py"
        outside.write_text(evil)
        (run / "inner_evil.py").unlink()
        names(run, spec=f"{run / 'inner_evil.py'}:char")
        (run / "inner_evil.py").symlink_to(outside)
    elif how == "link in":
        (tmp_path / "outer.py").symlink_to(run / "inner_evil.py")
        names(run, spec=f"{tmp_path / 'outer.py'}:char")
    if how == "link out":
        assert call("query", run, "--order", "reverse").exit_code == 1
    elif how != "named":
        asked(run)
        assert call("validate", run).exit_code == 1
    monkeypatch.chdir(run)
    for spec in (f"{run / 'inner_evil.py'}:char", "inner_evil:char", "inner_evil.py:char"):
        done = call("query", run, "--order", "reverse", "--task", spec)
        assert done.exit_code == 1
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "was-here").exists()


def test_a_module_is_remembered_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evil: str) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    for place, code in ((home, "import tasks_tiny\n\ndef linear():\n    return tasks_tiny.linear()\n"), (away, evil)):
        (place / "pack_of_tasks").mkdir(parents=True)
        (place / "pack_of_tasks" / "__init__.py").write_text("" if place is home else evil)
        (place / "pack_of_tasks" / "mine.py").write_text(code)
    monkeypatch.chdir(home)
    spec = "pack_of_tasks.mine:linear"
    answer("record", spec, "--out", tmp_path / "run", "--probes", 2, "--anchors", 2)
    monkeypatch.chdir(away)  # where another package has the name
    for name in [name for name in sys.modules if name.startswith("pack_of_tasks")]:
        del sys.modules[name]
    sys.path.remove(str(home))
    task, told = find_task(tmp_path / "run", None)
    assert told == f"{spec}, as recorded"
    assert task is not None
    assert not (tmp_path / "was-here").exists()


def test_a_packed_run_runs_nothing(run: Path, tmp_path: Path) -> None:
    assert call("pack", run, "--out", tmp_path / "run.h5").exit_code == 0
    assert asked(tmp_path / "run.h5").startswith("not given")


@pytest.mark.parametrize("line", [b"", b"\xff\n", b"[1]\n", b'{"run": 1}\n', b"[" * 5000 + b"\n"], ids=repr)
def test_a_damaged_record_trusts_nothing_more(run: Path, tmp_path: Path, monkeypatch, line: bytes) -> None:
    monkeypatch.setenv("ORDERSCOPE_STATE", str(tmp_path))
    (tmp_path / "trusted.jsonl").write_bytes(line)
    assert "never recorded or named" in asked(run)
