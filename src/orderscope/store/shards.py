"""One shard: an HDF5 file of contiguous arrays and one JSON text, written at memory speed and read without trust.

HDF5 lays the file out and never touches the numbers: they are written to, and read from, the offsets it allotted.
So each byte is hashed once, from memory, while it is being written, and no data set that HDF5 would fetch from
elsewhere (link, external file, virtual data set) can be followed.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5f, h5g, h5l, h5o, h5p, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue]

from orderscope.errors import OrderscopeError
from orderscope.files import open_own
from orderscope.store.manifest import SCHEMA

META = "__attrs__"
DTYPES = frozenset(
    map(np.dtype, ["?", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16"])
)
CHUNK = 8 << 20
MAX_META = 256 << 20


class BadShard(ValueError):
    """Bytes that are not a shard of ours."""


@dataclass(frozen=True)
class Blob:
    """Some bytes of a file: a whole shard file, or a shard inside a packed run.

    Args:
        path: the file.
        offset: of the first byte in it.
        size: number of bytes.
    """

    path: Path
    offset: int
    size: int

    def open(self) -> Window:
        return Window(self)

    def sha256(self) -> str:
        with self.open() as window:
            return hashlib.file_digest(window, "sha256").hexdigest()


class Window(io.RawIOBase):
    """A read-only binary file over a `Blob`."""

    def __init__(self, blob: Blob) -> None:
        self._descriptor = open_own(blob.path)
        self._blob, self._at = blob, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._blob.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._blob.size - self._at)]
        done = os.preadv(self._descriptor, [view], self._blob.offset + self._at) if view else 0
        self._at += done
        return done

    def fill(self, array: np.ndarray, offset: int) -> None:
        """Read bytes into an array.

        Args:
            array: contiguous; written to.
            offset: of the first byte, from the start of the blob.
        """
        self.seek(offset)
        view = _bytes(array)
        while view:
            done = self.readinto(view)
            if not done:
                raise BadShard("cut short while it was read")
            view = view[done:]

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


@dataclass(frozen=True)
class Extent:
    """Where one array lies in a shard.

    Args:
        offset: bytes from the start of the shard.
        dtype: type of its numbers.
        shape: of the array.
    """

    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Contents:
    """A shard that has been opened and checked.

    Args:
        extents: key of each array -> where it lies.
        attrs: JSON values by key.
        name: that it was written under.
    """

    extents: dict[str, Extent]
    attrs: dict[str, Any]
    name: str


def write_shard(path: Path, name: str, arrays: Mapping[str, np.ndarray], attrs: Mapping[str, Any]) -> tuple[int, str]:
    """Write a shard and fsync it; the same content gives the same bytes.

    Args:
        path: the file to make.
        name: the shard's name, kept inside it.
        arrays: numbers or truth values by key.
        attrs: JSON values by key.

    Returns:
        Size in bytes and sha256.

    Raises:
        OrderscopeError: an array that is no plain number array, or a key that cannot be one.
    """
    stored = {key: _storable(name, key, array) for key, array in sorted(arrays.items())}
    meta = json.dumps(
        {"attrs": dict(attrs), "name": name, "schema": SCHEMA}, sort_keys=True, separators=(",", ":"), default=_plain
    ).encode()
    stored[META] = np.array(meta)
    offsets = _lay_out(path, stored)
    with open(open_own(path, os.O_RDWR), "r+b", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        pieces = [(offset, _bytes(stored[key])) for key, offset in offsets.items() if offset is not None]
        # The hash runs beside write and fsync: all three release the interpreter lock.
        with ThreadPoolExecutor(1) as pool:
            digest = pool.submit(_digest, file.fileno(), size, sorted(pieces, key=lambda piece: piece[0]))
            for offset, view in pieces:
                write_at(file.fileno(), view, offset)
            os.fsync(file.fileno())
            return size, digest.result()


def read_contents(blob: Blob) -> Contents:
    """Look at a shard without reading its arrays.

    Raises:
        BadShard: not a file that `write_shard` makes, whatever else HDF5 would allow in it.
        OSError: it cannot be opened.
    """
    window = blob.open()
    try:
        with window, h5py.File(window, "r") as file:
            extents = dict(_extents(file.id, blob.size))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise BadShard(str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    _refuse_overlap(extents)
    meta = extents.pop(META, None)
    if meta is None or meta.dtype.kind != "S" or meta.nbytes > MAX_META:
        raise BadShard(f"no readable {META}")
    try:
        fields = json.loads(read_array(blob, meta).tobytes())
        attrs, name, schema = fields["attrs"], fields["name"], fields["schema"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadShard(f"no readable {META}") from None
    if schema != SCHEMA or not isinstance(attrs, dict):
        raise BadShard(f"schema version {schema!r} instead of {SCHEMA}")
    return Contents(extents, attrs, name)


def read_array(blob: Blob, extent: Extent) -> np.ndarray:
    """Read one array into memory of its own.

    Args:
        blob: the shard.
        extent: where the array lies.
    """
    array = np.empty(extent.shape, extent.dtype)
    with blob.open() as window:
        window.fill(array, extent.offset)
    return array


def allot(
    path: Path, parts: Iterable[tuple[str, np.dtype, tuple[int, ...]]], userblock: int = 0
) -> dict[str, int | None]:
    """Make an HDF5 file, where there is none, of contiguous data sets without writing any of them; where each one is to
    be written.

    Offsets count from the start of the file; None where there is nothing to write.

    Args:
        path: file to make.
        parts: name, type and shape of each data set.
        userblock: bytes kept free at the beginning.

    Raises: OSError where the file cannot be made.
    """
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
    access.set_alignment(512, 64)
    creation = h5p.create(h5p.FILE_CREATE)
    creation.set_userblock(userblock)
    creation.set_obj_track_times(False)  # the root group has time stamps of its own
    layout = h5p.create(h5p.DATASET_CREATE)
    layout.set_layout(h5d.CONTIGUOUS)
    layout.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5d.FILL_TIME_NEVER)
    layout.set_obj_track_times(False)
    try:
        file = h5f.create(os.fsencode(path), h5f.ACC_EXCL, fcpl=creation, fapl=access)  # follows no link
        try:
            offsets = {}
            for key, dtype, shape in parts:
                kind = h5t.py_create(dtype, logical=True)
                space = h5s.create_simple(shape) if shape else h5s.create(h5s.SCALAR)
                offsets[key] = h5d.create(file, _link(key), kind, space, layout).get_offset()
            return offsets
        finally:
            file.close()
    except (OSError, RuntimeError) as error:  # HDF5 has the system's error in its text
        found = re.search(r"errno = (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number) if found else str(error), str(path)) from None


def write_at(descriptor: int, view: memoryview, offset: int) -> None:
    """Write all of a buffer at an offset.

    Args:
        descriptor: of a file open for writing.
        view: bytes.
        offset: from the start of the file.
    """
    while view:
        done = os.pwrite(descriptor, view[: 1 << 30], offset)
        view, offset = view[done:], offset + done


def _lay_out(path: Path, stored: Mapping[str, np.ndarray]) -> dict[str, int | None]:
    return allot(path, ((key, array.dtype, array.shape) for key, array in stored.items()))


def _link(key: str) -> bytes:
    """A key as the name of an HDF5 link, in which a '/' would open a group."""
    return key.replace("%", "%25").replace("/", "%2F").encode()


def _key(link: bytes) -> str:
    return link.decode("utf-8", "replace").replace("%2F", "/").replace("%25", "%")


def _storable(name: str, key: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array, order="C")
    little = array.dtype.newbyteorder("<")
    if little not in DTYPES:
        raise OrderscopeError(
            f"array {key!r} of type {array.dtype} for shard {name}",
            "truth values, integers, floats or complex numbers of a plain numpy type",
            "convert it; text belongs into attrs, bfloat16 into uint16",
        )
    if key in ("", ".", META) or "\0" in key:
        raise OrderscopeError(f"array key {key!r} for shard {name}", "a word", "rename the array")
    return array.astype(little, copy=False)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _digest(descriptor: int, size: int, pieces: list[tuple[int, memoryview]]) -> str:
    """sha256 of a file whose arrays are still in memory and whose few other bytes are on disk."""
    digest, at = hashlib.sha256(), 0
    for offset, view in [*pieces, (size, memoryview(b""))]:
        digest.update(os.pread(descriptor, offset - at, at))
        digest.update(view)
        at = offset + len(view)
    return digest.hexdigest()


def _extents(file: Any, size: int) -> Iterator[tuple[str, Extent]]:
    root = h5g.open(file, b"/")
    for index in range(root.get_num_objs()):
        key = root.get_objname_by_idx(index)
        shown = _key(key)
        if root.links.get_info(key).type != h5l.TYPE_HARD:
            raise BadShard(f"{shown!r} is a link to somewhere else")
        if h5o.get_info(root, key).type != h5o.TYPE_DATASET:
            raise BadShard(f"{shown!r} is no array")
        yield shown, _extent(shown, h5d.open(root, key), size)


def _extent(key: str, dataset: Any, size: int) -> Extent:
    layout, dtype, shape = dataset.get_create_plist(), dataset.dtype, dataset.shape
    plain = layout.get_layout() == h5d.CONTIGUOUS and not layout.get_external_count() and not layout.get_nfilters()
    if not plain:
        raise BadShard(f"{key!r} is not stored in one piece in this file")
    if dtype not in DTYPES and not (key == META and dtype.kind == "S"):
        raise BadShard(f"{key!r} has type {dtype}")
    if shape is None or prod(side or 1 for side in shape) * dtype.itemsize >= 1 << 62:
        raise BadShard(f"{key!r} has shape {shape}")
    extent = Extent(dataset.get_offset() or 0, dtype, tuple(int(side) for side in shape))
    if extent.nbytes and not 0 < extent.offset <= size - extent.nbytes:
        raise BadShard(f"{key!r} of shape {shape} reaches beyond the file")
    return extent


def _refuse_overlap(extents: Mapping[str, Extent]) -> None:
    """Otherwise a small file could claim more arrays than memory holds."""
    end, last = 0, ""
    for key, extent in sorted(extents.items(), key=lambda item: item[1].offset):
        if extent.nbytes:
            if extent.offset < end:
                raise BadShard(f"{key!r} lies over {last!r}")
            end, last = extent.offset + extent.nbytes, key
