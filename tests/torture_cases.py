"""Malformed things by the thousand, for tests/hostile (a few seconds each) and benchmarks/torture.py (more of them).

Every function takes a random generator, so that a seed names a case. What is tried may fail in one way only: with an
`OrderscopeError`.
"""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from orderscope.cli.main import main
from orderscope.errors import OrderscopeError
from orderscope.orders import resolve
from orderscope.orders.npy import load_array
from orderscope.search.constraints import parse_constraint
from orderscope.store import RunStore
from orderscope.text import plain

GROUPS = ["a", "b", "code", "prose\x1b[2J", "ä b", "1"]
REFERENCE = np.arange(48).reshape(12, 4)
LABELS = [GROUPS[i // 8] for i in range(48)]
SIGNALS = {"loss": np.linspace(0, 1, 48), "-odd": np.ones(48), "short": np.ones(3), "nan": np.full(48, np.nan)}
WORDS = [
    "reference", "reverse", "shuffle", "groups", "interleave", "sort", "early", "late", "swap", "move", "fixed",
    "after", "before", "share", *GROUPS, *SIGNALS, ":", ",", "|", "-", "=", ".", "..", "/", "~", "~nobody/", ".npy",
    "x.npy", "/dev/zero", "\0", "\ud800", "\x1b[2J", "\u202e", "²", "٣", "½", "∞", "nan", "inf", "1e999", "0x10", "1_0",
    "-1", "0", "3", "11", "12", "7", "9" * 30, "9" * 5000, "desc", "asc", " ", "\t", "\n", "%s", "{}", "$(id)",
    "'", '"',
]  # fmt: skip


SOUND = [
    "reference", "reverse|reverse", "shuffle:7", "groups:a,b|swap:3,4", "interleave", "sort:loss:desc", "sort:-loss",
    "sort:-odd", "early:a|late:b", "late:ä b", "move:3, 4", "swap:0,11", "after:a:2", "before:code:12", "fixed:1,2",
    "share:a:0.1-0.5:3",
]  # fmt: skip


def expression(draw: random.Random) -> str:
    """Words of the language put together, or a sound expression with something changed."""
    if draw.random() < 0.4:
        text = draw.choice(SOUND)
        if draw.random() < 0.7:
            at = draw.randint(0, len(text))
            text = text[:at] + draw.choice([*WORDS, ""]) + text[at + draw.randint(0, 3) :]
        return text
    parts = [draw.choice(WORDS) for _ in range(draw.randint(0, 7))]
    if draw.random() < 0.4:  # most others fail at the first word
        parts[:0] = [draw.choice(WORDS[:10]), draw.choice([":", ""])]
    if draw.random() < 0.2:
        parts.insert(
            draw.randint(0, len(parts)), "".join(chr(draw.randrange(0x250)) for _ in range(draw.randint(1, 6)))
        )
    return "".join(parts)


def ask(text: str) -> bool:
    """Whether an expression stands for an order; it is one of the recorded samples then."""
    try:
        order = resolve(text, REFERENCE, LABELS, SIGNALS)
    except OrderscopeError as error:
        assert plain(str(error)) == str(error), ascii(str(error))
        return False
    assert sorted(order.ravel().tolist()) == list(range(48)), text
    return True


def constrain(text: str) -> bool:
    """Whether a text is a constraint."""
    try:
        parse_constraint(text)
    except OrderscopeError:
        return False
    return True


HEADERS = [
    "{'descr': '<i8', 'fortran_order': False, 'shape': (12, 4), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (1 << 40, 1 << 40), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (9999999999999, 9999999999999), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (-12, -4), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (12L, 4L), }",
    "{'descr': [('a', '<i8'), ('b', '|O')], 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '<i8', 'fortran_order': 3, 'shape': 'no', }",
    "{'descr': '<M8[D]', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '|V1000000000', 'fortran_order': False, 'shape': (), }",
    "{'descr': '<i8', 'fortran_order': True, 'shape': (), }",
    "__import__('os').system('true')", "(" * 9000, "[" * 300, "{1: " * 80, "'\\d'", "\0", "", "{}", "9" * 6000,
]  # fmt: skip


def numpy_file(draw: random.Random) -> bytes:
    """A .npy file with something wrong in it."""
    out = io.BytesIO()
    np.save(out, REFERENCE)
    raw = bytearray(out.getvalue())
    kind = draw.randrange(6)
    if kind == 0:
        for _ in range(draw.randint(1, 4)):
            raw[draw.randrange(128)] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del raw[draw.randrange(len(raw)) :]
    elif kind == 2:
        raw += draw.randbytes(draw.randint(1, 200))
    elif kind == 3:
        at = draw.randrange(8, 128)
        raw[at : at + draw.randint(0, 20)] = draw.randbytes(draw.randint(0, 20))
    elif kind == 4:
        text = draw.choice(HEADERS).encode("latin-1")
        major = draw.choice([1, 2, 3, 0, 9])
        size = len(text).to_bytes(2 if major == 1 else 4, "little")
        raw = bytearray(b"\x93NUMPY" + bytes([major, 0]) + size + text + draw.randbytes(draw.randint(0, 400)))
    else:
        other = io.BytesIO()
        value = draw.choice([REFERENCE.astype(float) + 0.5, REFERENCE > 3, np.array(3), REFERENCE[:, :3], np.array("x"),
                             REFERENCE.astype(np.uint64) + 2**63, np.zeros((0, 4), int), REFERENCE[None, None],
                             np.zeros(3, [("a", "i8")])])  # fmt: skip
        (np.savez if draw.random() < 0.3 else np.save)(other, value)
        raw = bytearray(draw.choice([other.getvalue(), b"", b"\x80\x04N.", b"PK\x03\x04" + draw.randbytes(60)]))
    return bytes(raw)


def read_numpy(file: Path) -> bool:
    """Whether an order could be read from a file, as a query would."""
    try:
        load_array(str(file), "an order")
    except OrderscopeError as error:
        assert plain(str(error)) == str(error), ascii(str(error))
        return False
    return ask(str(file))


def flip(raw: bytes, draw: random.Random) -> bytes:
    """One bit, a few bytes, or the end of a file changed."""
    new = bytearray(raw)
    kind = draw.randrange(8)
    at = draw.randrange(len(new))
    if kind < 5:
        new[at] ^= 1 << draw.randrange(8)
    elif kind == 5:
        new[at : at + draw.randint(1, 30)] = draw.randbytes(draw.randint(0, 30))
    elif kind == 6:
        del new[at:]
    else:
        new[at:at] = draw.choice([b"\n", b"\0", b"}", b"null", b"[" * 2000, b"9" * 5000])
    return bytes(new)


TASK = {
    "model": "Net", "size": 35_200, "dtype": "float32", "steps": 24, "batch": 4, "samples": 96,
    "group_names": ["code", "prose\x1b[2J"], "metrics": {"eval": 32, "accuracy": None}, "optimizer": "AdamW",
    "metric_names": ["eval", "accuracy"], "param_groups": 2, "scheduler": None, "warm": False, "max_grad_norm": 1.0,
    "parameters": [{}] * 7, "environment": {"torch": "2.13.0", "threads": 1}, "fingerprint": {"order": "0"},
}  # fmt: skip


def made_run(path: Path) -> None:
    """A run as `inspect` sees it, made up: three runs, one of them validated, an answer, and a journal."""
    with RunStore.create(path) as store:
        codes = np.arange(96) % 2
        store.write("record/task", {"order": np.arange(96).reshape(24, 4), "group_codes": codes}, TASK)
        for run in ("reference", "probe-0", "validated-0"):
            for index, stop in enumerate((0, 24)):
                attrs = {"stop": stop, "boundaries": [0, 24], "metrics": {"eval": 2.5 - index}}
                store.write(f"record/{run}/segment-{index:03d}", {"theta": np.arange(100.0)}, attrs)
                store.log({"event": "segment", "run": run, "index": index, "train_seconds": 0.4, "seconds": 0.5})
        store.write("validation/000", {"order": np.arange(96).reshape(1, 24, 4)}, {"noise_floor": {}})
        store.log({"event": "query", "orders": ["reverse", "late:code"]})
        store.log({"event": "task", "spec": "/nowhere/task.py:task"})
        store.log({"event": "work finished", "seconds": 1.5})


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def damage(path: Path, sound: dict[str, bytes], draw: random.Random) -> bool:
    """Change one file of a made run, look at it and write to it; whether the change was without consequence.

    What must hold: `inspect` says what it is, a changed shard is damage, and no shard that was there is written over.
    """
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, raw in sound.items():
        (path / name).write_bytes(raw)
    shards = [name for name in sound if name.endswith(".h5")]
    name = draw.choice(["manifest.jsonl", "manifest.jsonl", "journal.jsonl", ".lock", *shards[:3]])
    if name == "manifest.jsonl" and draw.random() < 0.3:  # shortened at the end of a line
        lines = sound[name].splitlines(keepends=True)
        new = b"".join(lines[: draw.randrange(len(lines))])
    else:
        new = flip(sound[name], draw) if sound[name] else b"x"
    (path / name).write_bytes(new)
    same = new == sound[name]
    looked = CliRunner().invoke(main, ["inspect", str(path), "--json"], catch_exceptions=False)
    assert looked.exit_code in (0, 1, 4, 5), looked.output
    assert not name.endswith(".h5") or same or looked.exit_code == 4, (name, looked.output)
    if name in (".lock", "journal.jsonl"):
        assert looked.exit_code == 5, (name, looked.output)  # the made run has no sketch
    if name == "manifest.jsonl" and looked.exit_code == 5:
        facts = json.loads(looked.output)
        assert len(facts["unlisted"]) == len(shards) - facts["shards"], facts
    try:
        with RunStore.create(path) as store:
            store.log({"event": "query", "orders": ["reverse"]})
            store.write(store.next_name("validation/"), {"x": np.ones(3)})
            number = store.next_number("record/validated-")
            assert number == 1, number
            if "record/validated-0/segment-001" not in store:
                store.write("record/validated-0/segment-001", {"x": np.ones(3)})
    except OrderscopeError:
        pass
    after = list(contents(path).values())
    expected = {**sound, name: new}
    lost = [file for file in shards if expected[file] not in after]
    assert not lost, f"written over: {lost}"
    return same


def tally(count: int, seed: int, case: Callable[[random.Random], bool]) -> tuple[int, int]:
    """How many of `count` cases were sound and how many were refused; anything else raises, naming the case."""
    sound = 0
    for number in range(count):
        try:
            sound += case(random.Random(f"{seed}-{number}"))
        except Exception as error:
            error.add_note(f"case {number} of seed {seed}")
            raise
    return sound, count - sound
