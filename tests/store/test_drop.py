"""Shards that are taken out of a run: gone for every reader, all or none, and nothing else is touched."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from orderscope.errors import IncompleteRun, OrderscopeError
from orderscope.store import RunStore, pack
from orderscope.store.manifest import file_name

NAMES = ("one", "two", "three")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with RunStore.create(tmp_path / "run") as store:
        for i, name in enumerate(NAMES):
            store.write(name, {"x": np.arange(3) + i}, {"i": i})
        store.log({"event": "written"})
    return tmp_path / "run"


def sound(path: Path, names: list[str]) -> None:
    store = RunStore.open(path)
    assert store.names() == names
    assert store.verify() == []
    assert store.unlisted() == []
    assert [entry.name for entry in store.describe()] == names
    for name in names:
        assert store.attrs(name)["i"] == NAMES.index(name)


def test_dropped_is_gone_and_stays_gone(run: Path) -> None:
    with RunStore.create(run) as store:
        mapped = store.map("two", "x")
        store.drop(["two"])
        assert "two" not in store
        assert not (run / file_name("two")).exists()
        assert mapped.tolist() == [1, 2, 3]  # stays readable where it was mapped
        with pytest.raises(IncompleteRun, match="no shard two"):
            store.read("two")
        assert store.read("one")["x"].tolist() == [0, 1, 2]
    sound(run, ["one", "three"])
    assert RunStore.open(run).journal() == [{"event": "written"}]
    with RunStore.create(run) as store:
        assert "two" not in store
    sound(run, ["one", "three"])


def test_the_name_can_be_taken_again(run: Path) -> None:
    with RunStore.create(run) as store:
        store.drop(["two"])
        store.write("two", {"x": np.zeros(2)}, {"i": 1})
        store.write("four", {})
        store.drop(["four", "one"])
    with RunStore.create(run) as store:  # a file that was dropped once and written again is no remnant
        assert store.read("two")["x"].tolist() == [0, 0]
    sound(run, ["three", "two"])


def test_nothing_is_dropped_where_one_is_not_there(run: Path) -> None:
    with RunStore.create(run) as store, pytest.raises(IncompleteRun, match="no shard four"):
        store.drop(["one", "four"])
    sound(run, list(NAMES))


def test_readers_drop_nothing(run: Path) -> None:
    with pytest.raises(OrderscopeError, match="opened for reading"):
        RunStore.open(run).drop(["one"])
    sound(run, list(NAMES))


def test_killed_before_its_lines_nothing_is_dropped(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    with RunStore.create(run) as store, monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            store.drop(["one", "two"])
        assert store.names() == list(NAMES)
    sound(run, list(NAMES))


def test_killed_after_its_lines_all_is_dropped(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are left are no part of the run, and the next writer deletes them."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with RunStore.create(run) as store, monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            store.drop(["one", "two"])
    assert (run / file_name("one")).exists()
    assert RunStore.open(run).names() == ["three"]
    assert RunStore.open(run).verify() == []
    RunStore.create(run).close()
    assert not (run / file_name("one")).exists()
    assert not (run / file_name("two")).exists()
    sound(run, ["three"])


def test_a_last_line_cut_short_drops_nothing_of_it(run: Path) -> None:
    whole = (run / "manifest.jsonl").read_bytes()
    with RunStore.create(run) as store:
        store.drop(["two"])
    after = (run / "manifest.jsonl").read_bytes()
    assert after.startswith(whole)
    (run / "manifest.jsonl").write_bytes(after[:-20])
    assert RunStore.open(run).names() == list(NAMES)
    assert "two" in RunStore.open(run).verify()[0]  # its file is missing


def test_a_changed_line_is_damage(run: Path) -> None:
    with RunStore.create(run) as store:
        store.drop(["two"])
    manifest = run / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes().replace(b'"dropped":"two"', b'"dropped":"one"'))
    assert "not what was written" in RunStore.open(run).verify()[0]


def test_a_packed_run_holds_what_is_left(run: Path, tmp_path: Path) -> None:
    with RunStore.create(run) as store:
        store.drop(["two"])
    pack(run, tmp_path / "run.h5")
    packed = RunStore.open(tmp_path / "run.h5")
    assert packed.names() == ["one", "three"]
    assert packed.verify() == []
    assert packed.read("three")["x"].tolist() == [2, 3, 4]
    assert packed.journal() == [{"event": "written"}]
