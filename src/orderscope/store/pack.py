"""One file of a run, to share."""

from __future__ import annotations

import os
from pathlib import Path

from orderscope.errors import DamagedRun, OrderscopeError
from orderscope.store.manifest import check_of, line
from orderscope.store.packed import JOURNAL, write_packed
from orderscope.store.run import TEMPORARY, RunStore
from orderscope.store.shards import Blob


def pack(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Make one HDF5 file of a run's directory. It holds the same shards, byte for byte, and reads the same.

    Args:
        path: the directory of a run.
        out: the file to make; it must not exist.

    Returns:
        The path of the file.

    Raises:
        DamagedRun: a shard is not what was written; no file is made.
        OrderscopeError: no run there, or `out` exists.
    """
    store, out = RunStore.open(path), Path(out)
    if store.path.is_file():
        raise OrderscopeError(f"packed run {path}", "the directory of a run", "copy the file, it is packed already")
    if out.exists():
        raise OrderscopeError(f"an existing {out}", "a path where there is nothing", "choose another path")
    if not out.parent.is_dir():
        raise OrderscopeError(f"no directory {out.parent}", "a directory to write to", "make it first")
    store.names()  # raises where the manifest is damaged
    manifest, check = b"", ""
    for info in store.describe():
        text = line(info, check)
        manifest, check = manifest + text, check_of(text)
    journal = store.path / JOURNAL
    temporary = out.with_name(out.name + TEMPORARY)
    try:
        shards = [(info, Blob(store.path / info.file, 0, info.size)) for info in store.describe()]
        bad = write_packed(temporary, manifest, journal.read_bytes() if journal.exists() else b"", shards)
        if bad:
            raise DamagedRun(
                f"damage in {', '.join(bad)} of run {path}", "the bytes that were written", "restore them from a copy"
            )
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return out
