"""Links inside a run that somebody else made: nothing is read or written through them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from commands import call
from orderscope.errors import OrderscopeError
from orderscope.store import RunStore, pack

OWN = "the user's own file\n"
FILES = [".lock", "journal.jsonl", "manifest.jsonl", "record+task.h5", "calibration+x.h5", "calibration+x.h5.tmp",
         "sketch+plan.h5.left", "states", "note.txt"]  # fmt: skip


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "home" / "thesis.tex"
    file.parent.mkdir()
    file.write_text(OWN)
    return file


@pytest.mark.parametrize("kind", ["file", "missing", "folder", "relative"])
@pytest.mark.parametrize("name", FILES)
def test_a_link_is_refused_and_named(made: Path, own: Path, name: str, kind: str) -> None:
    place = made / name
    place.unlink(missing_ok=True)
    target = {
        "file": own,
        "missing": own.with_name("new"),
        "folder": own.parent,
        "relative": Path("../home/thesis.tex"),
    }
    place.symlink_to(target[kind])
    for act in (RunStore.open, RunStore.create):
        with pytest.raises(OrderscopeError, match=r"found a link at .*expected files of a run's own"):
            act(made)
    out = made.parent / "out"
    for words in (["inspect"], ["query", "--order", "reverse"], ["validate"], ["propose"], ["positions"], ["sketch"],
                  ["pack", "--out", out], ["report", "--out", out]):  # fmt: skip
        done = call(words[0], made, *words[1:])
        assert done.exit_code == 1
        assert len(done.stderr.splitlines()) == 1
        assert str(place) in done.stderr
    assert place.is_symlink()
    assert own.read_text() == OWN
    assert [file.name for file in own.parent.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", [".lock", "journal.jsonl", "manifest.jsonl"])
def test_a_second_name_of_a_file_is_not_written_to(made: Path, own: Path, name: str) -> None:
    """A hard link: what is written under one name is read under the other."""
    raw = (made / name).read_bytes()
    own.write_bytes(raw)
    (made / name).unlink()
    os.link(own, made / name)
    with pytest.raises(OrderscopeError, match="found a link at"), RunStore.create(made) as store:
        store.log({"event": "query"})
    assert own.read_bytes() == raw


@pytest.mark.parametrize("name", ["new.h5.tmp", "journal.jsonl", ".lock"])
def test_a_link_put_there_while_it_is_written_is_not_followed(made: Path, own: Path, name: str) -> None:
    with RunStore.create(made) as store:
        (made / name).unlink(missing_ok=True)
        (made / name).symlink_to(own)
        if name == "journal.jsonl":
            with pytest.raises(OrderscopeError, match="a link at"):
                store.log({"event": "query"})
        store.write("new", {"x": np.ones(3)})
    assert own.read_text() == OWN


def test_a_shard_exchanged_for_a_link_while_it_is_read_is_not_followed(made: Path, tmp_path: Path) -> None:
    store = RunStore.open(made)
    store.read("record/task")
    shard = made / "record+task.h5"
    shutil.move(shard, tmp_path / "elsewhere.h5")
    shard.symlink_to(tmp_path / "elsewhere.h5")
    for act in (lambda: store.read("record/task"), lambda: store.map("record/task", "order")):
        with pytest.raises(OrderscopeError, match="a link at"):
            act()
    assert len(store.verify()) == 1


def test_the_run_itself_and_a_packed_one_may_be_named_by_a_link(made: Path, tmp_path: Path) -> None:
    (tmp_path / "by-link").symlink_to(made)
    (tmp_path / "packed").symlink_to(pack(tmp_path / "by-link", tmp_path / "run.h5"))
    names = RunStore.open(made).names()
    for place in ("by-link", "packed"):
        assert RunStore.open(tmp_path / place).names() == names
        assert RunStore.open(tmp_path / place).verify() == []


@pytest.mark.parametrize("name", [".lock", "journal.jsonl", "manifest.jsonl", "record+task.h5"])
def test_nobody_waits_at_a_pipe(made: Path, name: str) -> None:
    (made / name).unlink()
    os.mkfifo(made / name)
    with pytest.raises(OrderscopeError), RunStore.create(made) as store:
        assert store.journal() != store.read("record/task")
