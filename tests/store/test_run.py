"""What is written is read back, the same content is the same bytes, and nothing is written over."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from orderscope.errors import IncompleteRun, OrderscopeError
from orderscope.store import SCHEMA, RunStore, ShardInfo

HOLD = """
import sys
from orderscope.store import RunStore
store = RunStore.create(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""
KINDS = ["?", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16"]


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (7, 5), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_type_and_shape_comes_back_bit_for_bit(writer: RunStore, kind: str, shape: tuple[int, ...]) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (*shape, np.dtype(kind).itemsize), dtype=np.uint8)
    array = (raw & 1 if kind == "?" else raw).view(kind).reshape(shape)
    writer.write("one", {"x": array, "other": np.arange(3)})
    for back in (writer.read("one")["x"], writer.map("one", "x"), RunStore.open(writer.path).read("one", ["x"])["x"]):
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert back.tobytes() == array.tobytes()


@settings(max_examples=25, deadline=None)
@given(
    arrays=st.dictionaries(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
        hnp.arrays(st.sampled_from(KINDS), hnp.array_shapes(max_side=4)),
        max_size=4,
    )
)
def test_any_keys(tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray]) -> None:
    arrays.pop(".", None)
    with RunStore.create(tmp_path_factory.mktemp("run")) as store:
        store.write("one", arrays)
        back = store.read("one")
    assert back.keys() == arrays.keys()
    assert all(back[key].tobytes() == arrays[key].tobytes() for key in arrays)


def test_a_key_may_hold_what_hdf5_reads_as_a_path(writer: RunStore) -> None:
    arrays = {key: np.array(i) for i, key in enumerate(["eval/loss", "eval%2Floss", "%", "/", "//", "..", "a/../b"])}
    writer.write("one", arrays)
    assert writer.read("one") == arrays


def test_attributes_are_any_json(writer: RunStore) -> None:
    attrs = {"text": "naïve\n\0", "list": [1, 2.5, None, True], "deep": {"a": {"b": []}}, "long": ["word"] * 50_000}
    writer.write("one", {}, attrs | {"number": np.float32(0.5), "ids": np.arange(3)})
    assert writer.attrs("one") == attrs | {"number": 0.5, "ids": [0, 1, 2]}
    writer.attrs("one")["list"].append(3)
    assert writer.attrs("one")["list"] == [1, 2.5, None, True]


def test_strided_and_big_endian_arrays_are_stored_by_value(writer: RunStore) -> None:
    table = np.arange(24, dtype=">f4").reshape(4, 6)
    writer.write("one", {"x": table.T[::2]})
    np.testing.assert_array_equal(writer.read("one")["x"], table.T[::2])


def test_arrays_read_are_the_callers_own(run: Path) -> None:
    store = RunStore.open(run)
    store.read("record/reference/segment-000")["theta"][:] = 0
    assert store.read("record/reference/segment-000")["theta"].any()


def test_a_map_is_aligned_and_what_is_written_to_it_stays_in_memory(run: Path) -> None:
    theta = RunStore.open(run).map("record/reference/segment-000", "theta")
    assert isinstance(theta, np.memmap)
    assert theta.ctypes.data % 64 == 0
    before = theta.copy()
    theta[0] += 1
    assert np.array_equal(RunStore.open(run).read("record/reference/segment-000")["theta"], before)


def test_same_content_same_bytes(tmp_path: Path) -> None:
    arrays = {"b": np.arange(1000.0), "a": np.ones((2, 3), np.float16)}
    attrs = {"z": 1, "a": [None]}
    for name in ("one", "two"):
        with RunStore.create(tmp_path / name) as store:
            store.write("record/task", arrays, attrs)
            store.log({"seconds": len(name)})
        time.sleep(1.1 if name == "one" else 0)  # HDF5's time stamps count whole seconds
        arrays, attrs = dict(reversed(arrays.items())), dict(reversed(attrs.items()))
    for file in ("record+task.h5", "manifest.jsonl"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_names_and_descriptions_in_the_order_of_writing(run: Path) -> None:
    store = RunStore.open(run)
    assert store.names() == ["record/task", "record/reference/segment-000", "sketch/rows/a00-b000"]
    assert store.names("record/") == ["record/task", "record/reference/segment-000"]
    assert "record/task" in store
    assert "record/other" not in store
    first = store.describe()[0]
    assert first == ShardInfo("record/task", "record+task.h5", (run / first.file).stat().st_size, first.sha256, SCHEMA)


def test_a_run_goes_on_after_it_was_closed(run: Path) -> None:
    with RunStore.create(run) as store:
        store.write("calibration", {"x": np.arange(3)})
    again = RunStore.open(run)
    assert again.names()[-1] == "calibration"
    assert again.verify() == []


def test_nothing_is_written_over(run: Path) -> None:
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    with RunStore.create(run) as store, pytest.raises(OrderscopeError, match="shards are never overwritten"):
        store.write("record/task", {"x": np.arange(3)})
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.name != ".lock"} == {
        name: raw for name, raw in before.items() if name != ".lock"
    }


def test_a_shard_that_cannot_be_written_leaves_nothing(writer: RunStore) -> None:
    for arrays, attrs in [
        ({"x": np.array(["a"])}, {}),
        ({"x": np.array([{}])}, {}),
        ({"": np.ones(1)}, {}),
        ({"__attrs__": np.ones(1)}, {}),
    ]:
        with pytest.raises(OrderscopeError):
            writer.write("one", arrays, attrs)
    with pytest.raises(TypeError, match="object is no JSON value"):
        writer.write("one", {}, {"x": object()})
    assert sorted(file.name for file in writer.path.iterdir()) == [".lock", "manifest.jsonl"]
    writer.write("one", {})


def test_any_name_lies_in_a_file_of_its_own_inside_the_run(writer: RunStore) -> None:
    names = ["/a", "a/", "a//b", "a+b", "a/b", "a%2Fb", "a%b", "../a", "../../a", "a/..", "..", ".a", "/", "~", "a b"]
    names += ["ä", "a\n", "\0", "a'b", "\\", "\ud800", "CON", "a" * 200]
    before = sorted(file.name for file in writer.path.parent.iterdir())
    for name in names:
        writer.write(name, {"x": np.array(names.index(name))})
    store = RunStore.open(writer.path)
    assert store.verify() == []
    assert store.names() == names
    assert [int(store.read(name)["x"]) for name in names] == list(range(len(names)))
    assert sorted(file.name for file in writer.path.parent.iterdir()) == before
    files = [info.file for info in store.describe()]
    assert len(set(files)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_%+-][A-Za-z0-9_.%+-]*", file) for file in files)


@pytest.mark.parametrize("name", ["", "a" * 201])
def test_names_that_cannot_be_a_file(writer: RunStore, name: str) -> None:
    with pytest.raises(OrderscopeError, match="rename the shard"):
        writer.write(name, {})


def test_a_reader_does_not_write(run: Path) -> None:
    store = RunStore.open(run)
    assert not store.writable
    for act in (lambda: store.write("x", {}), lambda: store.log({})):
        with pytest.raises(OrderscopeError, match="opened for reading"):
            act()


def test_asking_for_what_is_not_there(run: Path) -> None:
    store = RunStore.open(run)
    with pytest.raises(IncompleteRun, match="no shard record/probe"):
        store.read("record/probe")
    with pytest.raises(OrderscopeError, match="expected one of ids, theta"):
        store.map("record/reference/segment-000", "phi")


def test_no_run_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    for path in ("nothing", "file", "full"):
        with pytest.raises(OrderscopeError, match="expected the directory of a recorded run"):
            RunStore.open(tmp_path / path)
    with pytest.raises(OrderscopeError, match=r"thesis\.tex"):
        RunStore.create(tmp_path / "full")
    with pytest.raises(OrderscopeError, match="a file at"):
        RunStore.create(tmp_path / "file")
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_one_writer_at_a_time(run: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(OrderscopeError, match=f"written by process {other.pid}; expected one writer"):
        RunStore.create(run)
    assert len(RunStore.open(run).names()) == 3
    other.communicate()
    RunStore.create(run).close()


def test_threads_may_share_a_writer(writer: RunStore) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: writer.write(f"shard-{i}", {"x": np.full(5000, i)}), range(40)))
    store = RunStore.open(writer.path)
    assert store.verify() == []
    assert all((store.read(f"shard-{i}")["x"] == i).all() for i in range(40))


def test_one_writer_in_one_process_too(writer: RunStore) -> None:
    with pytest.raises(OrderscopeError, match="one writer at a time"):
        RunStore.create(writer.path)


def test_the_journal_is_best_effort(run: Path) -> None:
    with open(run / "journal.jsonl", "a") as file:
        file.write('{"torn')
    store = RunStore.open(run)
    assert store.journal() == [{"seconds": 1.5}]
    assert store.verify() == []


def test_the_store_needs_no_torch() -> None:
    code = "import sys, orderscope.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_manifest_line_is_plain_json(run: Path) -> None:
    lines = [json.loads(text) for text in (run / "manifest.jsonl").read_text().splitlines()]
    assert [fields["schema"] for fields in lines] == [SCHEMA] * 3
    assert lines[0].keys() == {"name", "file", "size", "sha256", "schema", "check"}
