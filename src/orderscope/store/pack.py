"""One file of a run, to share."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from orderscope.errors import DamagedRun, OrderscopeError
from orderscope.files import check_output
from orderscope.store.manifest import check_of, line
from orderscope.store.packed import write_packed
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
    out = Path(out)
    if os.path.lexists(out):
        raise OrderscopeError(f"an existing {out}", "a path where there is nothing", "choose another path")
    check_output(out)
    store = RunStore.open(path)
    if store.path.is_file():
        raise OrderscopeError(f"packed run {path}", "the directory of a run", "copy the file, it is packed already")
    store.names()  # raises where the manifest is damaged
    manifest, check = b"", ""
    for info in store.describe():
        text = line(info, check)
        manifest, check = manifest + text, check_of(text)
    temporary = out.with_name(f".orderscope-{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    try:
        shards = [(info, Blob(store.path / info.file, 0, info.size)) for info in store.describe()]
        bad = write_packed(temporary, manifest, store.raw_journal(), shards)
        if bad:
            raise DamagedRun(
                f"damage in {', '.join(bad)} of run {path}", "the bytes that were written", "restore them from a copy"
            )
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return out
