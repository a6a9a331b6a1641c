"""A packed run reads as its directory does, and is refused where it was changed."""

from __future__ import annotations

import random
from pathlib import Path

import h5py
import numpy as np
import pytest

from orderscope.errors import DamagedRun, OrderscopeError
from orderscope.store import RunStore, pack


@pytest.fixture
def packed(run: Path) -> Path:
    return pack(run, run.parent / "run.h5")


def everything(path: Path) -> list[object]:
    store = RunStore.open(path)
    shards = [(name, store.attrs(name), store.read(name)) for name in store.names()]
    maps = [np.array(store.map("record/reference/segment-000", key)) for key in ("theta", "ids")]
    return [
        store.describe(),
        store.journal(),
        [(n, a, {k: (v.dtype, v.tolist()) for k, v in x.items()}) for n, a, x in shards],
        [m.tolist() for m in maps],
    ]


def test_reads_the_same(run: Path, packed: Path) -> None:
    assert everything(packed) == everything(run)
    assert RunStore.open(packed).verify() == []
    assert not RunStore.open(packed).writable


def test_same_run_same_bytes(run: Path, packed: Path) -> None:
    assert pack(run, run.parent / "again.h5").read_bytes() == packed.read_bytes()


def test_any_hdf5_reader_finds_the_shards_in_it(run: Path, packed: Path) -> None:
    with h5py.File(packed) as file:
        assert bytes(file["manifest.jsonl"][()]) == (run / "manifest.jsonl").read_bytes()
        assert bytes(file["record+task.h5"][()]) == (run / "record+task.h5").read_bytes()


def test_a_torn_manifest_line_is_left_out(run: Path) -> None:
    with open(run / "manifest.jsonl", "ab") as file:
        file.write(b'{"check":')
    assert RunStore.open(pack(run, run.parent / "run.h5")).verify() == []


def test_an_empty_run_can_be_packed(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "run").close()
    assert RunStore.open(pack(tmp_path / "run", tmp_path / "run.h5")).names() == []


def test_a_flipped_bit_is_refused_or_changes_nothing(packed: Path) -> None:
    sound, before, draw = packed.read_bytes(), everything(packed), random.Random(0)
    for byte in [*range(0, 520, 7), *(draw.randrange(len(sound)) for _ in range(200))]:
        raw = bytearray(sound)
        raw[byte] ^= 1 << draw.randrange(8)
        packed.write_bytes(raw)
        try:
            store = RunStore.open(packed)
        except DamagedRun as error:
            assert "packed run" in str(error)
            continue
        assert store.verify()
        try:
            assert everything(packed) == before
        except DamagedRun:
            continue


def test_a_shortened_file_is_refused(packed: Path) -> None:
    sound = packed.read_bytes()
    for size in (0, 100, 511, 600, len(sound) // 2, len(sound) - 1):
        packed.write_bytes(sound[:size])
        with pytest.raises(OrderscopeError):
            RunStore.open(packed)


def test_a_damaged_run_is_not_packed(run: Path) -> None:
    raw = bytearray((run / "record+task.h5").read_bytes())
    raw[50] ^= 1
    (run / "record+task.h5").write_bytes(raw)
    with pytest.raises(DamagedRun, match="record\\+task\\.h5"):
        pack(run, run.parent / "run.h5")
    (run / "record+task.h5").unlink()
    with pytest.raises(DamagedRun, match="record\\+task\\.h5"):
        pack(run, run.parent / "run.h5")
    assert sorted(path.name for path in run.parent.iterdir()) == ["run"]


def test_nothing_is_written_over(run: Path, packed: Path) -> None:
    with pytest.raises(OrderscopeError, match="an existing"):
        pack(run, packed)
    with pytest.raises(OrderscopeError, match="packed already"):
        pack(packed, run.parent / "other.h5")
    with pytest.raises(OrderscopeError, match="a file at"):
        RunStore.create(packed)
    with pytest.raises(OrderscopeError, match="no directory"):
        pack(run, run.parent / "no" / "run.h5")
