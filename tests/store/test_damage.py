"""Flipped bits, torn lines, missing files: found, named, and never handed to HDF5."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pytest

from orderscope.errors import DamagedRun, OrderscopeError
from orderscope.store import RunStore, manifest, pack

NAMES = ["record/task", "record/reference/segment-000", "sketch/rows/a00-b000"]


def flip(file: Path, byte: int, bit: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[byte] ^= 1 << bit
    file.write_bytes(raw)


def read_everything(path: Path) -> list[object]:
    store = RunStore.open(path)
    return [(name, store.attrs(name), store.read(name)) for name in store.names()]


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_in_a_shard_is_found_and_named(run: Path, name: str) -> None:
    draw = random.Random(name)
    file = run / manifest.file_name(name)
    sound = file.read_bytes()
    for _ in range(60):
        file.write_bytes(sound)
        flip(file, draw.randrange(len(sound)), draw.randrange(8))
        store = RunStore.open(run)
        assert store.verify() == [f"shard {name} ({file.name}): its bytes are not what was written"]
        for act in (store.attrs, store.read):
            with pytest.raises(DamagedRun, match=re.escape(f"shard {name} ({file.name})")):
                act(name)
        for other in set(NAMES) - {name}:
            store.read(other)


def test_every_flipped_bit_in_the_manifest_is_found(run: Path) -> None:
    file = run / "manifest.jsonl"
    sound = file.read_bytes()
    for byte in range(len(sound)):
        file.write_bytes(sound)
        flip(file, byte, byte % 8)
        store = RunStore.open(run)
        line = sound.count(b"\n", 0, byte) + 1
        assert any(problem.startswith(f"manifest.jsonl, line {line}") for problem in store.verify())
        for act in (store.names, lambda store=store: store.read(NAMES[0]), lambda store=store: NAMES[0] in store):
            with pytest.raises(DamagedRun, match=r"manifest\.jsonl, line"):
                act()
        with pytest.raises(DamagedRun):
            RunStore.create(run)
        assert file.read_bytes() != sound


def test_lines_taken_out_or_exchanged_are_found(run: Path) -> None:
    file = run / "manifest.jsonl"
    one, two, three = file.read_bytes().splitlines(keepends=True)
    for lines in ([two, three], [one, three], [one, three, two], [one, one, two, three], [one, b"\n", two, three]):
        file.write_bytes(b"".join(lines))
        assert RunStore.open(run).verify()


def test_a_torn_last_line_is_no_damage(run: Path) -> None:
    file = run / "manifest.jsonl"
    sound, arrays = file.read_bytes(), RunStore.open(run).read(NAMES[2])
    last = sound.rindex(b"\n", 0, -1) + 1
    for end in range(last, len(sound)):
        file.write_bytes(sound[:end])
        store = RunStore.open(run)
        assert store.verify() == []
        # The newline alone may be missing: then the line itself is whole.
        assert store.names() == (NAMES if end == len(sound) - 1 else NAMES[:2])
        with RunStore.create(run) as writer:
            if end < len(sound) - 1:
                writer.write(NAMES[2], arrays)
        assert file.read_bytes() == sound


def test_a_zero_filled_tail_is_a_torn_line(run: Path) -> None:
    with open(run / "manifest.jsonl", "ab") as file:
        file.write(b"\0" * 100)
    assert RunStore.open(run).verify() == []


def test_missing_and_shortened_files(run: Path) -> None:
    (run / "record+task.h5").unlink()
    rows = run / "sketch+rows+a00-b000.h5"
    rows.write_bytes(rows.read_bytes()[:-1])
    store = RunStore.open(run)
    missing, short = store.verify()
    assert missing == "shard record/task (record+task.h5): the file is missing"
    assert re.fullmatch(r"shard sketch/rows/a00-b000 \(.*\): \d+ bytes, the manifest says \d+", short)
    with pytest.raises(DamagedRun, match="file is missing"):
        store.read("record/task")


def test_a_lost_manifest(run: Path) -> None:
    (run / "manifest.jsonl").unlink()
    for act in (RunStore.open, RunStore.create):
        with pytest.raises(DamagedRun, match=r"manifest\.jsonl is missing"):
            act(run)


def test_shards_exchanged_on_disk(run: Path) -> None:
    shutil.copy(run / "record+task.h5", run / "sketch+rows+a00-b000.h5")
    assert len(RunStore.open(run).verify()) == 1


def test_damage_done_while_the_store_is_open_is_found_by_verify(run: Path) -> None:
    store = RunStore.open(run)
    store.read("record/task")
    flip(run / "record+task.h5", 100, 0)
    assert len(store.verify()) == 1
    with pytest.raises(DamagedRun):
        store.read("record/task")


def test_leftovers_of_a_killed_writer_are_ignored_and_taken_away(run: Path) -> None:
    before = read_everything(run)
    (run / "record+probe-0+segment-000.h5.tmp").write_bytes(b"half a shard")
    (run / "calibration.h5").write_bytes(b"renamed, but not yet in the manifest")
    assert RunStore.open(run).verify() == []
    assert str(read_everything(run)) == str(before)
    with RunStore.create(run) as store:
        assert not list(run.glob("*.tmp"))
        store.write("calibration", {}, {"a": 1})
    assert RunStore.open(run).attrs("calibration") == {"a": 1}


def test_another_schema_version_is_told_and_left_alone(run: Path) -> None:
    file = run / "manifest.jsonl"
    entries, check, lines = RunStore.open(run).describe(), "", []
    for entry in entries:
        lines.append(manifest.line(manifest.ShardInfo(entry.name, entry.file, entry.size, entry.sha256, 7), check))
        check = manifest.check_of(lines[-1])
    by_hand = file.read_bytes().replace(b'"schema":1', b'"schema":7')
    for raw in (b"".join(lines), lines[0], by_hand):
        file.write_bytes(raw)
        for act in (RunStore.open, RunStore.create, lambda path: pack(path, run.parent / "run.h5")):
            with pytest.raises(
                OrderscopeError, match="found a run of schema version 7; expected version 1; read it with"
            ) as caught:
                act(run)
            assert caught.value.exit_code == 1
        assert file.read_bytes() == raw


def test_hostile_manifests(run: Path) -> None:
    entry = RunStore.open(run).describe()[0]
    for fields in [
        {"file": "../../etc/passwd"},
        {"name": "../x"},
        {"size": "1"},
        {"size": -1},
        {"extra": 1},
        {"sha256": None},
    ]:
        raw = json.loads(manifest.line(entry, "")) | fields
        del raw["check"]
        raw["check"] = manifest._check(raw, "")
        (run / "manifest.jsonl").write_bytes(manifest._encode(raw) + b"\n")
        assert RunStore.open(run).verify()
    for text in [b"[" * 100_000, b"1", b"null", b"\xff", b'{"name":1}', b"{}"]:
        (run / "manifest.jsonl").write_bytes(text + b"\n")
        assert RunStore.open(run).verify()
