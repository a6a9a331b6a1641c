"""A run on disk, for reading and for writing.

Past 400 lines: what a reader, a writer and a kill at any instant may see of one directory is one rule.
"""

from __future__ import annotations

import copy
import errno
import fcntl
import glob
import hashlib
import itertools
import json
import os
import platform
import re
import stat
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np

from orderscope.errors import DamagedRun, IncompleteRun, OrderscopeError
from orderscope.files import open_own, read_own, refuse_links, trouble
from orderscope.store import manifest
from orderscope.store.manifest import ShardInfo, file_name
from orderscope.store.packed import JOURNAL, MANIFEST, Packed, is_packed, read_packed
from orderscope.store.shards import BadShard, Blob, Contents, Extent, read_array, read_contents, write_shard

LOCK = ".lock"
LEFT = ".left"
ASIDE = ".aside-"
TEMPORARY = ".tmp"


class RunStore:
    """The shards of one run, in a directory or in a packed file.

    A shard is a named, immutable set of arrays and JSON attributes. It exists from the moment its line stands in the
    manifest; a writer killed at any instant leaves only whole shards behind. Made by `create` or `open`.
    """

    _mark = ""  # in the names of files that are being written

    def __init__(self, path: Path, index: manifest.Manifest, *, packed: Packed | None, lock: int | None) -> None:
        self.path = path
        self._entries, self._problems, self._check = index.entries, index.problems, index.check
        self._packed, self._lock = packed, lock
        self._contents: dict[str, Contents] = {}
        self._pending: set[str] = set()
        self._mutex = threading.Lock()

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Self:
        """Open a run for writing; make it if there is none.

        One process writes to a run at a time: the lock is held until `close`, or until the process and all it forked
        have ended.

        Raises:
            OrderscopeError: another process is writing, or the path holds something that is no run.
            DamagedRun: the manifest is damaged, so nothing can be added to it.
        """
        path = Path(path)
        cls.check_creatable(path)
        path.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(path)
        try:
            index = manifest.parse(_read_or_empty(path / MANIFEST))
            if index.problems:
                raise _damaged(path, index.problems[0])
            _end_last_line(path / MANIFEST, index)
            for leftover in [*path.glob(f"*.h5{TEMPORARY}"), *(path / file for file in index.dropped)]:
                leftover.unlink(missing_ok=True)
            _sync_directory(path)
            _sync_directory(path.parent)
            return cls(path, index, packed=None, lock=lock)
        except BaseException:
            os.close(lock)
            raise

    @staticmethod
    def check_creatable(path: str | os.PathLike[str]) -> None:
        """See whether `create` would find a run or room for one, without changing anything.

        Raises:
            OrderscopeError: the path holds something that is no run, or a run with links in it; or nothing can be made
                there.
            DamagedRun: its manifest is missing.
        """
        path = Path(path)
        if os.path.lexists(path) and not path.is_dir():
            raise OrderscopeError(f"a file at {path}", "a directory to write a run to", "choose another path")
        if RunStore.is_there(path):
            refuse_links(path)
        _refuse_foreign_directory(path)
        home = next(place for place in (path.absolute(), *path.absolute().parents) if os.path.lexists(place))
        if not home.is_dir() or not os.access(home, os.W_OK | os.X_OK):
            raise OrderscopeError(
                f"{home}, where nothing can be made", "a directory that can be written to", "choose another path"
            )

    @staticmethod
    def is_there(path: str | os.PathLike[str]) -> bool:
        """Whether a directory is a run, sound or not."""
        return os.path.lexists(Path(path) / MANIFEST)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a run for reading: a directory, or the file that `pack` made of one.

        A damaged manifest is reported by the first access, so that `verify` can list all that is damaged.

        Raises:
            OrderscopeError: no run there, or one of another schema version, or with links in it, or it cannot be read.
            DamagedRun: the index of a packed file is damaged.
        """
        path = Path(path)
        try:
            kind = stat.S_IFMT(path.stat().st_mode)
            if kind == stat.S_IFDIR and cls.is_there(path):
                refuse_links(path)
                return cls(path, manifest.parse(read_own(path / MANIFEST)), packed=None, lock=None)
            if kind == stat.S_IFREG and is_packed(path):
                packed = read_packed(path)
                return cls(path, manifest.parse(packed.manifest), packed=packed, lock=None)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise trouble(error, path) from None
        _refuse_lost_manifest(path)
        what = "something that is no run" if path.exists() else "nothing"
        raise OrderscopeError(
            f"{what} at {path}",
            "the directory of a recorded run, or a packed run",
            "give the path that record wrote to",
        )

    @property
    def writable(self) -> bool:
        return self._lock is not None

    @property
    def head(self) -> str:
        """The check of the manifest's last line: two views with the same head hold the same shards."""
        return self._check

    def close(self) -> None:
        """End writing and let another process write; the run stays open for reading."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __contains__(self, name: object) -> bool:
        return name in self._sound()

    def names(self, prefix: str = "") -> list[str]:
        """The finished shards whose name starts with `prefix`, in the order they were finished."""
        return [name for name in self._sound() if name.startswith(prefix)]

    def describe(self) -> list[ShardInfo]:
        """What the sound lines of the manifest say."""
        return list(self._entries.values())

    def write(self, name: str, arrays: Mapping[str, np.ndarray], attrs: Mapping[str, Any] | None = None) -> None:
        """Add a shard: on return it is on disk and will be found, before that no reader sees any of it.

        A file that is there already and in no manifest line (its writer was killed, or the manifest was shortened) is
        never written over: one with the same bytes becomes the shard, another is given the name `FILE.aside-N`.

        Args:
            name: words joined by '/'.
            arrays: plain numpy arrays by key.
            attrs: JSON values by key; numpy scalars and arrays become numbers and lists.

        Raises:
            OrderscopeError: the store is not open for writing, or the shard exists.
        """
        self._refuse_reader("written to")
        file = self.path / file_name(name)
        with self._mutex:
            if name in self._sound() or name in self._pending:
                raise _taken(self.path, name)
            self._pending.add(name)
        temporary = file.with_name(file.name + self._mark + TEMPORARY)
        try:
            temporary.unlink(missing_ok=True)
            entry = ShardInfo(name, file.name, *write_shard(temporary, name, arrays, attrs or {}))
            self._place(temporary, entry)
            _sync_directory(self.path)
            self._append([entry])
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            self._pending.discard(name)

    def drop(self, names: Iterable[str]) -> None:
        """Take shards out of the run and delete their files: all of them or, where the writer is killed, none. What is
        mapped into memory stays readable there.

        Raises:
            OrderscopeError: the store is not open for writing.
            IncompleteRun: there is no such shard.
        """
        self._refuse_reader("written to")
        names = list(names)
        for name in names:
            if name not in self._sound():
                raise _absent(self.path, name)
        with self._mutex:
            text, check = b"", self._check
            for name in names:
                line = manifest.drop_line(name, check)
                text, check = text + line, manifest.check_of(line)
            self._extend_manifest(text, check)
            for name in names:
                self._contents.pop(name, None)
                (self.path / self._entries.pop(name).file).unlink(missing_ok=True)

    def annex(self) -> Annex:
        """A view of this run for a worker beside its writer; see `Annex`."""
        return Annex(self)

    def adopt(self, shards: Iterable[ShardInfo]) -> None:
        """Add shards that an `Annex` wrote, in this order, all at once: a writer killed here adds all or none.

        Raises:
            OrderscopeError: the store is not open for writing, or a shard exists.
            DamagedRun: a file is not there, or not of the size that was written.
        """
        self._refuse_reader("written to")
        shards = list(shards)
        for entry in shards:
            if entry.name in self._sound():
                raise _taken(self.path, entry.name)
            if _size(self.path / entry.file) != entry.size:
                raise _damaged(self.path, f"{entry.file} of a worker is missing or cut short")
        self._append(shards)
        for entry in shards:
            left = self.path / (entry.file + LEFT)
            for remnant in [left, *self.path.glob(f"{glob.escape(entry.file)}.*{TEMPORARY}")]:
                remnant.unlink(missing_ok=True)

    def is_left(self, name: str) -> bool:
        """Whether a worker left a shard of this name; see `Annex.leave`."""
        return _size(self.path / (file_name(name) + LEFT)) is not None

    def left(self, name: str) -> tuple[ShardInfo, list[dict[str, Any]]] | None:
        """The shard of this name that a worker left and what it logged; None where there is no sound one."""
        try:
            note = json.loads(read_own(self.path / (file_name(name) + LEFT)))
            entry, events = ShardInfo(**note["shard"]), [dict(event) for event in note["events"]]
            if (entry.name, entry.file) != (name, file_name(name)):
                return None
            self._check_shard(entry)
        except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return entry, events

    def next_number(self, prefix: str) -> int:
        """The number after the highest that follows `prefix` in the name of a shard, or of a file that no line of the
        manifest names: nothing of a killed command, or of a shortened manifest, is in its way.

        Example:
            >>> RunStore.open("run").next_number("proposal/")  # doctest: +SKIP
            3
        """
        start = re.escape(file_name(prefix).removesuffix(".h5"))
        files = [entry.file for entry in self._sound().values()]
        files += os.listdir(self.path) if self._packed is None else []
        found = [re.match(rf"{start}(\d{{1,18}})(?!\d)", file) for file in files]
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    def next_name(self, prefix: str) -> str:
        """A free shard name, `prefix` and a number of three digits."""
        return f"{prefix}{self.next_number(prefix):03d}"

    def mentions(self, name: str, text: str) -> bool:
        """Whether the bytes of a shard's file hold a text. The file may be one that a killed writer left, in no
        manifest line: it is not parsed for that.

        Args:
            name: of the shard.
            text: to look for.
        """
        try:
            return text.encode() in read_own(self.path / file_name(name))
        except FileNotFoundError:
            return False

    def unlisted(self) -> list[str]:
        """Files in the run's directory that are not of the run: left by a killed command, or named by lines that a
        manifest has lost, or put there by somebody. They are not read, and never written over."""
        if self._packed is not None:
            return []
        known = {LOCK, MANIFEST, JOURNAL, *(entry.file for entry in self._entries.values())}
        files = {name for name in os.listdir(self.path) if (self.path / name).is_file()} - known
        waiting = {name for name in files if name.endswith(LEFT)}
        return sorted(files - waiting - {name.removesuffix(LEFT) for name in waiting})

    def read(self, name: str, keys: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """The arrays of a shard, all or those named by `keys`, each in memory of its own.

        Args:
            name: of the shard.
            keys: of the arrays to read; all if not given.

        Raises:
            IncompleteRun: there is no such shard.
            DamagedRun: its bytes are not what was written.
            OrderscopeError: there is no such key.
        """
        blob, contents = self._look(name)
        wanted = list(contents.extents) if keys is None else list(keys)
        try:
            return {key: read_array(blob, _extent(name, contents, key)) for key in wanted}
        except FileNotFoundError:
            raise _damaged(self.path, f"shard {name} ({file_name(name)}): the file is missing") from None
        except BadShard as error:
            raise _damaged(self.path, f"shard {name} ({file_name(name)}): {error}") from None
        except OSError as error:
            raise trouble(error, blob.path) from None
        except MemoryError:
            raise OrderscopeError(
                f"too little memory to read shard {name} of {blob.size} bytes", "room for it", "free memory"
            ) from None

    def map(self, name: str, key: str) -> np.ndarray:
        """One array of a shard, mapped from disk; changes to it stay in memory.

        Args:
            name: of the shard.
            key: of the array.

        Raises:
            IncompleteRun: there is no such shard.
            DamagedRun: its bytes are not what was written.
            OrderscopeError: there is no such key.
        """
        blob, contents = self._look(name)
        extent = _extent(name, contents, key)
        if not extent.nbytes:
            return np.empty(extent.shape, extent.dtype)
        try:
            with open(open_own(blob.path), "rb") as file:
                return np.memmap(file, extent.dtype, "c", blob.offset + extent.offset, extent.shape)
        except OSError as error:
            raise trouble(error, blob.path) from None

    def attrs(self, name: str) -> dict[str, Any]:
        """The attributes of a shard. Raises as `read`."""
        return copy.deepcopy(self._look(name)[1].attrs)

    def verify(self) -> list[str]:
        """Read everything again; one line for each damage, naming shard and file. Empty if the run is sound."""
        found = list(self._problems)
        for entry in self._entries.values():
            try:
                self._contents[entry.name] = self._check_shard(entry)[1]
            except BadShard as error:
                self._contents.pop(entry.name, None)
                found.append(f"shard {entry.name} ({entry.file}): {error}")
        if self._packed is not None and not found:
            found = self._packed.problems()
        return found

    def log(self, event: Mapping[str, Any]) -> None:
        """Append an event to the journal: what may differ between two equal runs, such as wall seconds.

        The journal is not part of the run's bytes. Each line carries a check of its own, and its last lines may be lost
        in a crash.
        """
        self._refuse_reader("logged to")
        line = json.dumps({**event, "check": _event_check(event)}, sort_keys=True).encode() + b"\n"
        descriptor = open_own(self.path / JOURNAL, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            end = os.fstat(descriptor).st_size
            torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
            _write_whole(descriptor, b"\n" * torn + line, self.path / JOURNAL)
        finally:
            os.close(descriptor)

    def journal(self) -> list[dict[str, Any]]:
        """The events of the journal that can be read, oldest first."""
        return [event for event in self._events() if event is not None]

    def ignored(self) -> int:
        """How many lines of the journal are not what was written; `journal` leaves them out."""
        return sum(event is None for event in self._events())

    def raw_journal(self) -> bytes:
        """The bytes of the journal. Raises: OrderscopeError where it cannot be read."""
        if self._packed is not None:
            return self._packed.journal
        try:
            return _read_or_empty(self.path / JOURNAL)
        except OSError as error:
            raise trouble(error, self.path / JOURNAL) from None

    def _events(self) -> list[dict[str, Any] | None]:
        return [_event(line) for line in self.raw_journal().split(b"\n") if line]

    def blob(self, entry: ShardInfo) -> Blob:
        """Where the bytes of a shard lie, not yet checked."""
        if self._packed is not None:
            return self._packed.blob(entry)
        file = self.path / entry.file
        return Blob(file, 0, file.lstat().st_size)

    def _sound(self) -> dict[str, ShardInfo]:
        if self._problems:
            raise _damaged(self.path, self._problems[0])
        return self._entries

    def _look(self, name: str) -> tuple[Blob, Contents]:
        """A shard whose bytes have been found to be what was written; hashed once for each store object."""
        entry = self._sound().get(name)
        if entry is None:
            raise _absent(self.path, name)
        try:
            if name not in self._contents:
                blob, self._contents[name] = self._check_shard(entry)
                return blob, self._contents[name]
            return self.blob(entry), self._contents[name]
        except FileNotFoundError:
            raise _damaged(self.path, f"shard {name} ({entry.file}): the file is missing") from None
        except BadShard as error:
            raise _damaged(self.path, f"shard {name} ({entry.file}): {error}") from None
        except OSError as error:
            raise trouble(error, self.path / entry.file) from None

    def _check_shard(self, entry: ShardInfo) -> tuple[Blob, Contents]:
        """Size and hash come first: HDF5 must not parse bytes that are not ours."""
        try:
            blob = self.blob(entry)
            if blob.size != entry.size:
                raise BadShard(f"{blob.size} bytes, the manifest says {entry.size}")
            if blob.sha256() != entry.sha256:
                raise BadShard("its bytes are not what was written")
            contents = read_contents(blob)
        except (FileNotFoundError, NotADirectoryError):
            raise BadShard("the file is missing") from None
        except KeyError:
            raise BadShard("not in the packed file") from None
        except OSError as error:
            raise trouble(error, self.path / entry.file) from None
        if contents.name != entry.name:
            raise BadShard("it holds a shard of another name")
        return blob, contents

    def _place(self, temporary: Path, entry: ShardInfo) -> None:
        """Give a written file its name, without writing over one that has it."""
        file = self.path / entry.file
        taken = os.path.lexists(file) and not self.is_left(entry.name)  # a share that is left was found to be damaged
        if taken and _size(file) == entry.size and Blob(file, 0, entry.size).sha256() == entry.sha256:
            temporary.unlink()
            return
        if taken:
            names = (file.with_name(f"{file.name}{ASIDE}{i}") for i in itertools.count())
            os.rename(file, next(name for name in names if not os.path.lexists(name)))
        os.replace(temporary, file)

    def _append(self, entries: Iterable[ShardInfo]) -> None:
        with self._mutex:
            entries, text, check = list(entries), b"", self._check
            for entry in entries:
                line = manifest.line(entry, check)
                text, check = text + line, manifest.check_of(line)
            self._extend_manifest(text, check)
            self._entries |= {entry.name: entry for entry in entries}

    def _extend_manifest(self, text: bytes, check: str) -> None:
        """Add lines to the manifest, all of them or none; `check` is that of the last."""
        descriptor = open_own(self.path / MANIFEST, os.O_WRONLY | os.O_APPEND)
        end = os.fstat(descriptor).st_size
        try:
            _write_whole(descriptor, text, self.path / MANIFEST)
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, end)
            raise
        finally:
            os.close(descriptor)
        self._check = check

    def _refuse_reader(self, verb: str) -> None:
        if not self.writable:
            raise OrderscopeError(
                f"run {self.path} {verb}, but opened for reading", "a run opened for writing", "use RunStore.create"
            )


class Annex(RunStore):
    """A run as a worker sees it: it reads what is there, and what it writes are whole files that are not part of the
    run until its writer adopts them. It holds no lock, so that any number can work on one run.

    Attributes:
        written: what it wrote, in that order.
        events: what it logged.
    """

    def __init__(self, run: RunStore) -> None:
        index = manifest.Manifest(dict(run._sound()), [], "", 0, True)
        super().__init__(run.path, index, packed=run._packed, lock=None)
        self.written: list[ShardInfo] = []
        self.events: list[dict[str, Any]] = []
        self._mark = f".{platform.node()}-{os.getpid()}"

    @property
    def writable(self) -> bool:
        return self._packed is None

    def log(self, event: Mapping[str, Any]) -> None:
        self.events.append(dict(event))

    def leave(self) -> None:
        """Write a note next to each file that was written, for a writer that gets no report of it."""
        for entry in self.written:
            note = self.path / (entry.file + LEFT)
            temporary = self.path / (entry.file + self._mark + LEFT + TEMPORARY)
            temporary.unlink(missing_ok=True)
            descriptor = open_own(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                _write_whole(
                    descriptor, json.dumps({"shard": asdict(entry), "events": self.events}).encode(), temporary
                )
            finally:
                os.close(descriptor)
            os.replace(temporary, note)

    def _append(self, entries: Iterable[ShardInfo]) -> None:
        for entry in entries:
            self.written.append(entry)
            self._entries[entry.name] = entry


def _absent(path: Path, name: str) -> IncompleteRun:
    return IncompleteRun(f"no shard {name} in {path}", "a finished run", "resume the command that writes it")


def _taken(path: Path, name: str) -> OrderscopeError:
    return OrderscopeError(
        f"shard {name} in {path}", "a name not yet taken", "shards are never overwritten: use a new name"
    )


def _extent(name: str, contents: Contents, key: str) -> Extent:
    if key not in contents.extents:
        raise OrderscopeError(
            f"no array {key!r} in shard {name}",
            f"one of {', '.join(contents.extents) or 'none'}",
            "ask for an array that was recorded",
        )
    return contents.extents[key]


def _refuse_lost_manifest(path: Path) -> None:
    if (path / LOCK).exists() and not (path / MANIFEST).exists() and any(path.glob("*.h5")):
        raise _damaged(path, f"{MANIFEST} is missing")


def _refuse_foreign_directory(path: Path) -> None:
    _refuse_lost_manifest(path)
    if path.is_dir() and not (path / MANIFEST).exists():
        others = [entry.name for entry in path.iterdir() if entry.name != LOCK]
        if others:
            raise OrderscopeError(
                f"directory {path} with {others[0]!r} in it", "an empty directory or a run", "choose another path"
            )


def _take_lock(path: Path) -> int:
    descriptor = open_own(path / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise OrderscopeError(
            f"run {path} being written by process {holder or 'unknown'}",
            "one writer at a time",
            "wait until it ends, or stop it",
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _end_last_line(path: Path, index: manifest.Manifest) -> None:
    """Make the manifest, or take away what a killed writer left of its last line."""
    with open(open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as file:
        if file.tell() != index.length:
            file.truncate(index.length)
        if not index.ended:
            file.write(b"\n")
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_or_empty(path: Path) -> bytes:
    try:
        return read_own(path)
    except FileNotFoundError:
        return b""


def _size(path: Path) -> int | None:
    """Bytes of a plain file; None where there is none."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _write_whole(descriptor: int, text: bytes, path: Path) -> None:
    """All of a text in one call, so that whoever is killed has written all or none of it."""
    if os.write(descriptor, text) != len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _event(line: bytes) -> dict[str, Any] | None:
    """An event of the journal, None where the line is not what was written; lines of old runs carry no check."""
    try:
        event = json.loads(line)
        if not isinstance(event, dict) or event.pop("check", None) not in (None, _event_check(event)):
            return None
    except (ValueError, RecursionError):
        return None
    return event


def _event_check(event: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(event), sort_keys=True).encode()).hexdigest()[:8]


def _damaged(path: Path, what: str) -> DamagedRun:
    return DamagedRun(
        f"damage in run {path}: {what}",
        "the bytes that were written",
        "restore it from a copy or record the run again; `orderscope inspect` lists all damage",
    )
