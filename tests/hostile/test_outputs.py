"""Answers are not lost: outputs are looked at first and written whole; what cannot be kept is printed all the same."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import answer, call
from orderscope import files
from orderscope.errors import OrderscopeError
from orderscope.report.page import write_report
from orderscope.store import RunStore
from run_bytes import digests

QUICK = {
    "propose": ["propose", "--budget", 20, "--verify", 1],
    "positions": ["positions", "--units", 2, "--places", 2, "--verify", 1],
    "validate": ["validate", "--orders", 2],
    "train": ["query", "--order", "reverse", "--train"],
    "query": ["query", "--order", "reverse"],
    "inspect": ["inspect"],
}
OUT = {"propose": "best.npy", "positions": "heat.csv", "report": "page.html"}
CODE = """
import sys
from orderscope.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""


def slip(*words: object) -> str:
    """The line that a command ends with, before it has loaded torch."""
    done = subprocess.run([sys.executable, "-c", CODE, *map(str, words)], capture_output=True, text=True, check=False)
    line, torch = done.stderr.splitlines()
    assert done.returncode == 1, done.stderr
    assert torch == "False"
    assert done.stdout == ""
    return line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["query", "RUN", "--order", "revers"], "found order expression 'revers'"),
        (["query", "RUN", "--order", "reverse", "--order", "late:nobody"], "unknown group 'nobody'"),
        (["query", "RUN", "--order", "sort:lost"], "unknown signal 'lost'"),
        (["query", "RUN", "--order", "nowhere.npy"], "found no file nowhere.npy"),
        (["query", "RUN", "--order", "reverse", "--metric", "evil"], "found metric 'evil'; expected one of eval"),
        (["query", "RUN", "--order", "reverse", "--lr", "fast"], "found learning rates 'fast'"),
        (["query", "RUN", "--order", "reverse", "--lr", "nowhere.npy"], "found no file nowhere.npy"),
        (["query", "RUN", "--order", "reverse", "--task", "nowhere.py:task"], "found no file nowhere.py"),
        (["query", "RUN", "--order", "reverse", "--task", "nowhere:task"], "no module 'nowhere'"),
        (["propose", "RUN", "--metric", "evil"], "found metric 'evil'"),
        (["propose", "RUN", "--out", "nowhere/best.npy"], "nowhere; expected a directory to write to; make it first"),
        (["positions", "RUN", "--out", "nowhere/heat.csv"], "nowhere; expected a directory to write to"),
        (["validate", "RUN", "--metric", "evil"], "found metric 'evil'"),
        (["report", "RUN", "--out", "nowhere/page.html"], "nowhere; expected a directory to write to"),
        (["report", "RUN", "--out", "page.html", "--order", "revers"], "found order expression 'revers'"),
        (["report", "RUN", "--out", "page.html", "--metric", "evil"], "found metric 'evil'"),
        (["pack", "RUN", "--out", "nowhere/run.h5"], "nowhere; expected a directory to write to"),
        (["sketch", "RUN", "--task", "nowhere.py:task"], "found no file nowhere.py"),
        (["record", "nowhere.py:task", "--out", "new"], "found no file nowhere.py"),
        (["record", "TASKS:char", "--out", "TASKS/run"], "where nothing can be made"),
    ],
    ids=lambda value: " ".join(value[:1] + value[2:]) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_slip_is_told_before_anything_heavy_is_loaded(
    recorded: Path, tasks: Path, words: list[str], told: str
) -> None:
    assert told in slip(*(word.replace("RUN", str(recorded)).replace("TASKS", str(tasks)) for word in words))


@pytest.mark.parametrize("verb", OUT)
def test_an_output_that_cannot_be_written_is_told_before_any_work(run: Path, verb: str, monkeypatch) -> None:
    words = {**QUICK, "report": ["report"]}[verb]

    def full(*_: Any) -> Path:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files, "_made", full)
    monkeypatch.setattr(RunStore, "open", None)  # no work
    done = call(words[0], run, *words[1:], "--out", run.parent / OUT[verb])
    assert done.exit_code == 1
    assert "that cannot be written (Read-only file system)" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def full_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills between the look at an output and the end of its writing."""
    real = os.fsync

    def full(descriptor: int) -> None:
        if ".orderscope-" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize("verb", ["propose", "positions"])
@pytest.mark.parametrize("as_json", [True, False])
def test_the_answer_is_printed_whatever_becomes_of_its_file(run: Path, verb: str, as_json: bool, monkeypatch) -> None:
    out = run.parent / OUT[verb]
    out.write_text("the old one")
    full_at_the_end(monkeypatch)
    words = QUICK[verb]
    done = call(words[0], run, *words[1:], "--out", out, *(["--json"] if as_json else []))
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith(f"orderscope: {out} not written: [Errno 28] No space left on device")
    if as_json:
        facts = json.loads(done.stdout)
        assert facts["out"] is None
        assert facts["kept"] is not None
        assert "order" in facts or "value" in facts
    else:
        assert "eval" in done.stdout or "batch" in done.stdout
        assert "written to" not in done.stdout
    assert out.read_text() == "the old one"
    assert sorted(file.name for file in run.parent.iterdir()) == sorted([out.name, "run"])


def test_the_old_page_stays_until_the_new_one_is_whole(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = run.parent / "page.html"
    page.write_text("the old page")
    page.chmod(0o604)
    full_at_the_end(monkeypatch)
    done = call("report", run, "--out", page)
    assert done.exit_code == 1
    assert "No space left on device" in done.stderr
    assert "make room" in done.stderr
    assert page.read_text() == "the old page"
    monkeypatch.undo()
    assert call("report", run, "--out", page).exit_code == 0
    assert page.read_text().endswith("</html>\n")
    assert page.stat().st_mode & 0o777 == 0o604
    assert sorted(file.name for file in run.parent.iterdir()) == ["page.html", "run"]


def test_a_link_as_output_is_written_through_and_a_device_is_not_replaced(run: Path) -> None:
    (run.parent / "real.npy").write_bytes(b"")
    (run.parent / "link.npy").symlink_to(run.parent / "real.npy")
    (run.parent / "null.npy").symlink_to("/dev/null")
    for name in ("link", "null"):
        answer(*QUICK["propose"][:1], run, *QUICK["propose"][1:], "--out", run.parent / f"{name}.npy")
        assert (run.parent / f"{name}.npy").is_symlink()
    assert np.load(run.parent / "real.npy").ndim == 2
    assert not Path("/dev/null").is_file()


def test_outputs_that_are_no_files(tmp_path: Path) -> None:
    for path, words in ((tmp_path, "a directory at"), (tmp_path / "no" / "x", "no directory"),
                        (tmp_path / ("x" * 300), "cannot be written")):  # fmt: skip
        with pytest.raises(OrderscopeError, match=words):
            files.check_output(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("trouble", ["read-only", "full", "held"])
@pytest.mark.parametrize("verb", QUICK)
def test_a_run_that_takes_nothing_more_is_answered(run: Path, verb: str, trouble: str, monkeypatch) -> None:
    real = os.open
    numbers = {"read-only": errno.EROFS, "full": errno.ENOSPC}

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        writing = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        made = trouble == "read-only" or str(path).endswith((".jsonl", ".tmp"))
        if writing and made and str(path).startswith(str(run)):
            raise OSError(numbers[trouble], os.strerror(numbers[trouble]), str(path))
        return real(path, flags, *args, **kwargs)

    before = digests(run)
    held = RunStore.create(run) if trouble == "held" else None
    if held is None:
        monkeypatch.setattr(os, "open", refuse)
    words = QUICK[verb]
    done = call(words[0], run, *words[1:], "--json")
    monkeypatch.undo()
    if held is not None:
        held.close()
    assert done.exit_code in (0, 3), done.stderr
    assert json.loads(done.stdout)
    after = digests(run)
    assert {name: after[name] for name in before} == before
    if verb in ("propose", "positions"):
        assert "not kept in the run: " in done.stderr


# Compiled modules would be cut off at the limit too, and read by whoever imports them next.
LIMITED = """
import os, resource, signal, sys
os.environ["PYTHONDONTWRITEBYTECODE"], sys.dont_write_bytecode = "1", True
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from orderscope.cli.main import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize("limit", [100, 9000, 60_000])
def test_a_recording_for_which_there_is_no_room(tasks: Path, recorded: Path, tmp_path: Path, limit: int) -> None:
    """No file may be longer than `limit`: the first that would be ends it in one line, and with room it goes on."""
    words = ["record", f"{tasks}:char", "--out", tmp_path / "run", "--anchors", 3, "--probes", 3, "--jobs", 2]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("orderscope: ")
    assert RunStore.open(tmp_path / "run").verify() == []
    assert call(*words).exit_code == 0
    assert digests(tmp_path / "run") == digests(recorded)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_that_is_full_and_then_is_not(tasks: Path, recorded: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], check=False).returncode:
        pytest.skip("no right to mount")
    try:
        words = ["record", f"{tasks}:char", "--out", disk / "run", "--anchors", 3, "--probes", 3]
        done = call(*words)
        assert done.exit_code == 1
        assert "No space left on device" in done.stderr.splitlines()[-1]
        assert "make room, and run the same command again: what was finished is kept" in done.stderr
        assert RunStore.open(disk / "run").verify() == []
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        assert call(*words).exit_code == 0
        assert digests(disk / "run") == digests(recorded)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for verb, rest in QUICK.items():
            done = call(rest[0], disk / "run", *rest[1:])
            assert done.exit_code in (0, 3), (verb, done.stderr)
            assert done.stdout
        done = call("report", disk / "run", "--out", disk / "page.html")
        assert done.exit_code == 1
        assert "that cannot be written (Read-only file system)" in done.stderr
        done = call(*words)
        assert done.exit_code == 1
        assert "where nothing can be made" in done.stderr
    finally:
        subprocess.run(["umount", "-l", disk], check=True)  # what is mapped is let go later


def test_the_report_keeps_to_the_confirmed_proposal(run: Path) -> None:
    import orderscope as osc

    first = answer(*QUICK["propose"][:1], run, *QUICK["propose"][1:])
    assert first["confirmed"] is not None
    second = call("propose", run, "--budget", 30, "--verify", 0, "--seed", 5, "--json")
    facts = json.loads(second.stdout)
    assert facts["confirmed"] is None
    assert second.exit_code == (0 if facts["trusted"] else 3)
    write_report(osc.Simulator(run), run.parent / "page.html")
    assert "It was not trained to confirm it" not in (run.parent / "page.html").read_text()
    assert "Truly trained: " in (run.parent / "page.html").read_text()
