"""Trouble that passes is told as what it is, never as damage."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from commands import call
from orderscope import files
from orderscope.errors import DamagedRun, OrderscopeError
from orderscope.store import RunStore, pack

TROUBLE = [
    (errno.EMFILE, "Too many open files", "ulimit -n"),
    (errno.ENFILE, "Too many open files in system", "close other programs"),
    (errno.EACCES, "Permission denied", "get the right to read it"),
    (errno.EPERM, "Operation not permitted", "get the right to read it"),
    (errno.EIO, "Input/output error", "try again"),
    (errno.ENOMEM, "Cannot allocate memory", "free memory"),
]


def fail(monkeypatch: pytest.MonkeyPatch, number: int, name: str) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if str(path).endswith(name) and not flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(files.os, "open", refuse)


@pytest.mark.parametrize(("number", "words", "advice"), TROUBLE)
@pytest.mark.parametrize("name", ["record+task.h5", "manifest.jsonl", "journal.jsonl", "packed"])
def test_it_is_no_damage(made: Path, monkeypatch, number: int, words: str, advice: str, name: str) -> None:
    place = pack(made, made.parent / "packed") if name == "packed" else made
    fail(monkeypatch, number, name)
    done = call("inspect", place)
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"cannot be read now ({words})" in done.stderr
    assert advice in done.stderr
    assert name in done.stderr
    for word in ("damage", "restore", "copy", "written"):
        assert word not in done.stderr.replace(str(made.parent), "")
    monkeypatch.undo()
    assert call("inspect", place).exit_code == 5


@pytest.mark.parametrize("act", ["read", "map", "attrs", "verify"])
@pytest.mark.parametrize("first", [True, False])
def test_every_access(made: Path, monkeypatch: pytest.MonkeyPatch, act: str, first: bool) -> None:
    store = RunStore.open(made)
    if not first:
        store.read("record/task")  # hashed already
    fail(monkeypatch, errno.EMFILE, "record+task.h5")
    calls = {
        "read": lambda: store.read("record/task"),
        "map": lambda: store.map("record/task", "order"),
        "attrs": lambda: store.attrs("record/task"),
        "verify": store.verify,
    }
    if act == "attrs" and not first:
        assert store.attrs("record/task")
        return
    with pytest.raises(OrderscopeError, match="Too many open files") as caught:
        calls[act]()
    assert not isinstance(caught.value, DamagedRun)


def test_a_real_limit(made: Path) -> None:
    store = RunStore.open(made)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(OrderscopeError, match=r"Too many open files.*ulimit -n"):
            store.read("record/task")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert store.verify() == []


def test_too_little_memory(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orderscope.store import run as module

    store = RunStore.open(made)
    store.attrs("record/task")

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "read_array", full)
    with pytest.raises(OrderscopeError, match="too little memory to read shard record/task"):
        store.read("record/task")


def test_a_missing_file_is_damage(made: Path) -> None:
    (made / "record+task.h5").unlink()
    assert call("inspect", made).exit_code == 4
