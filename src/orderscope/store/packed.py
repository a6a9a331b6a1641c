"""A packed run: one HDF5 file that holds the bytes of every shard, of the manifest and of the journal.

Any HDF5 reader opens it; this one does not need HDF5 for it. A JSON header in the file's user block (512 bytes before
the HDF5 part) says where things lie and carries the hashes of what no manifest line covers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orderscope.errors import DamagedRun, OrderscopeError
from orderscope.files import open_given, open_own
from orderscope.store.manifest import SCHEMA, ShardInfo
from orderscope.store.shards import CHUNK, Blob, allot, write_at

HEADER = 512
HDF5 = b"\x89HDF\r\n\x1a\n"
MANIFEST, JOURNAL, INDEX = "manifest.jsonl", "journal.jsonl", "index.json"
BYTE = np.dtype("u1")


@dataclass(frozen=True)
class Packed:
    """A packed run whose header, index, manifest and journal are sound.

    Args:
        path: the file.
        manifest: its bytes.
        journal: its bytes.
        offsets: file of a shard -> its place, in bytes from the start.
        size: of the packed file, in bytes.
        sha256: of all behind the header, in hexadecimal digits.
    """

    path: Path
    manifest: bytes
    journal: bytes
    offsets: dict[str, int]
    size: int
    sha256: str

    def blob(self, entry: ShardInfo) -> Blob:
        """Where a shard lies. Raises KeyError if it is not in the file."""
        return Blob(self.path, self.offsets[entry.file], entry.size)

    def problems(self) -> list[str]:
        """Damage to any byte behind the header."""
        if Blob(self.path, HEADER, self.size - HEADER).sha256() != self.sha256:
            return [f"packed file {self.path.name}: its bytes are not what was written"]
        return []


def is_packed(path: Path) -> bool:
    """Whether a file was meant as a packed run, sound or not."""
    with open_given(path) as file:
        head = file.read(HEADER + len(HDF5))
    return head.startswith(b'{"index"') or head[HEADER:] == HDF5


def read_packed(path: Path) -> Packed:
    """Open a packed run.

    Raises:
        DamagedRun: header, index, manifest or journal are not what was written.
        OrderscopeError: a sound file of another schema version.
        OSError: it cannot be read.
    """
    path = path.resolve()  # the user's own name for it may be a link
    with open_given(path) as file:
        head = file.read(HEADER)
    try:
        header = json.loads(head)
        check = header.pop("check")
        if _header(header) != head or check != _check(header):
            raise ValueError
        schema = header["schema"]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise _damaged(path, "header") from None
    if schema != SCHEMA:
        raise OrderscopeError(
            f"a packed run of schema version {schema}",
            f"version {SCHEMA}",
            "read it with the version of orderscope that wrote it, or pack it again",
        )
    try:
        index = json.loads(_checked(path, *header["index"]))
        manifest, journal = (_checked(path, *index[part]) for part in ("manifest", "journal"))
        size, offsets = header["size"], dict(index["shards"])
        if path.stat().st_size != size or not all(_place(offset, size) for offset in offsets.values()):
            raise ValueError
        return Packed(path, manifest, journal, offsets, size, header["sha256"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise _damaged(path, "size, index, manifest or journal") from None


def write_packed(path: Path, manifest: bytes, journal: bytes, shards: Iterable[tuple[ShardInfo, Blob]]) -> list[str]:
    """Write a packed run to `path` and fsync it; the files of shards whose bytes are not what the manifest says.

    Args:
        path: file to write.
        manifest: the bytes of the run's manifest.
        journal: the bytes of its journal.
        shards: what the manifest says of each shard, and where its bytes are.
    """
    shards = list(shards)
    texts = {MANIFEST: manifest, JOURNAL: journal, INDEX: b""}
    # The index is written last, into room that holds the widest offsets.
    room = len(_index(manifest, journal, 1 << 62, 1 << 62, {info.file: 1 << 62 for info, _ in shards}))
    sizes = {MANIFEST: len(manifest), JOURNAL: len(journal), INDEX: room} | {info.file: info.size for info, _ in shards}
    places = {k: at or 0 for k, at in allot(path, ((k, BYTE, (n,)) for k, n in sizes.items()), HEADER).items()}
    index = _index(manifest, journal, places[MANIFEST], places[JOURNAL], {i.file: places[i.file] for i, _ in shards})
    texts[INDEX] = index.ljust(room)
    with open(open_own(path, os.O_RDWR), "r+b", buffering=0) as file:
        for key, text in texts.items():
            write_at(file.fileno(), memoryview(text), places[key])
        bad = [info.file for info, blob in shards if _copy(blob, file.fileno(), places[info.file]) != info.sha256]
        size = os.fstat(file.fileno()).st_size
        header = {
            "index": [places[INDEX], room, hashlib.sha256(texts[INDEX]).hexdigest()],
            "schema": SCHEMA,
            "sha256": Blob(path, HEADER, size - HEADER).sha256(),
            "size": size,
        }
        write_at(file.fileno(), memoryview(_header(header)), 0)
        os.fsync(file.fileno())
    return bad


def _index(manifest: bytes, journal: bytes, manifest_at: int, journal_at: int, shards: dict[str, int]) -> bytes:
    return json.dumps(
        {
            "manifest": [manifest_at, len(manifest), hashlib.sha256(manifest).hexdigest()],
            "journal": [journal_at, len(journal), hashlib.sha256(journal).hexdigest()],
            "shards": shards,
        }
    ).encode()


def _header(header: dict) -> bytes:
    return json.dumps(header | {"check": _check(header)}, separators=(",", ":")).encode().ljust(HEADER)


def _check(header: dict) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:16]


def _place(offset: object, size: int) -> bool:
    return isinstance(offset, int) and 0 <= offset <= size


def _checked(path: Path, offset: int, size: int, sha256: str) -> bytes:
    whole = path.stat().st_size
    if not (_place(offset, whole) and _place(size, whole)):
        raise ValueError
    with Blob(path, offset, size).open() as window:
        raw = window.readall() or b""
    if len(raw) != size or hashlib.sha256(raw).hexdigest() != sha256:
        raise ValueError
    return raw


def _copy(blob: Blob, descriptor: int, offset: int) -> str:
    digest = hashlib.sha256()
    if not blob.path.exists():
        return "missing"
    with blob.open() as window:
        while piece := window.read(CHUNK):
            digest.update(piece)
            write_at(descriptor, memoryview(piece), offset)
            offset += len(piece)
    return digest.hexdigest()


def _damaged(path: Path, what: str) -> DamagedRun:
    return DamagedRun(
        f"a changed {what} in packed run {path}", "the bytes that were written", "copy the file again, or pack it again"
    )
