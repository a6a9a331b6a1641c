"""HDF5 files that are well-formed, and listed with the right hash, but not what we write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from orderscope.errors import DamagedRun
from orderscope.store import RunStore, ShardInfo, manifest
from orderscope.store.shards import META


def soft_link(file: h5py.File, _: Path) -> None:
    file["x"] = h5py.SoftLink("/" + META)


def external_link(file: h5py.File, secret: Path) -> None:
    file["x"] = h5py.ExternalLink(str(secret), "/x")


def external_storage(file: h5py.File, secret: Path) -> None:
    file.create_dataset("x", (100,), "u1", external=[(str(secret), 0, 100)])


def virtual_dataset(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "x", (4,))
    file.create_virtual_dataset("x", layout)


def absurd_shape(file: h5py.File, _: Path) -> None:
    file.create_dataset("x", (1 << 40, 1 << 15), "f8")


def absurd_empty_shape(file: h5py.File, _: Path) -> None:
    file.create_dataset("x", (0, 1 << 62, 1 << 62), "f8")


def absurd_chunks(file: h5py.File, _: Path) -> None:
    file.create_dataset("x", (1 << 50,), "u1", chunks=(1 << 20,))


def compressed(file: h5py.File, _: Path) -> None:
    file.create_dataset("x", data=np.zeros(1000), compression="gzip")


def strings(file: h5py.File, _: Path) -> None:
    file["x"] = ["variable", "length"]


def compound(file: h5py.File, _: Path) -> None:
    file["x"] = np.zeros(3, [("a", "f4"), ("b", "i4")])


def null(file: h5py.File, _: Path) -> None:
    file["x"] = h5py.Empty("f4")


def group(file: h5py.File, _: Path) -> None:
    file["x/y"] = np.zeros(3)


def no_attrs(file: h5py.File, _: Path) -> None:
    del file[META]


def broken_attrs(file: h5py.File, _: Path) -> None:
    del file[META]
    file[META] = np.array(b'{"name": "evil"')


def deep_attrs(file: h5py.File, _: Path) -> None:
    del file[META]
    file[META] = np.array(b"[" * 100_000)


def other_schema(file: h5py.File, _: Path) -> None:
    del file[META]
    file[META] = np.array(b'{"attrs":{},"name":"evil","schema":9}')


def other_name(file: h5py.File, _: Path) -> None:
    del file[META]
    file[META] = np.array(b'{"attrs":{},"name":"good","schema":1}')


MAKERS = [soft_link, external_link, external_storage, virtual_dataset, absurd_shape, absurd_empty_shape, absurd_chunks]
MAKERS += [compressed, strings, compound, null, group, no_attrs, broken_attrs, deep_attrs, other_schema, other_name]


def listed(path: Path, make: Callable[[Path], object]) -> RunStore:
    """A run of one shard, made by `make`, whose manifest line is right."""
    RunStore.create(path).close()
    make(path / "evil.h5")
    raw = (path / "evil.h5").read_bytes()
    entry = ShardInfo("evil", "evil.h5", len(raw), hashlib.sha256(raw).hexdigest())
    (path / "manifest.jsonl").write_bytes(manifest.line(entry, ""))
    return RunStore.open(path)


def plain(path: Path) -> h5py.File:
    file = h5py.File(path, "w", libver=("v110", "v110"))
    file[META] = np.array(b'{"attrs":{},"name":"evil","schema":1}')
    return file


def test_the_plain_file_alone_is_accepted(tmp_path: Path) -> None:
    store = listed(tmp_path / "run", lambda path: plain(path).close())
    assert store.verify() == []
    assert store.read("evil") == {}


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_refused(tmp_path: Path, maker: Callable[[h5py.File, Path], None]) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.arange(4, dtype="f4")

    def make(path: Path) -> None:
        with plain(path) as file:
            maker(file, secret)

    store = listed(tmp_path / "run", make)
    assert len(store.verify()) == 1
    for act in (lambda: store.read("evil"), lambda: store.map("evil", "x"), lambda: store.attrs("evil")):
        with pytest.raises(DamagedRun, match="shard evil"):
            act()


def test_random_bytes_with_the_right_hash(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, head in enumerate([b"", b"\x89HDF\r\n\x1a\n"]):
        store = listed(tmp_path / str(number), lambda path, head=head: path.write_bytes(head + rng.bytes(4000)))
        assert len(store.verify()) == 1
