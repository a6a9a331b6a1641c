"""Files opened with care: a run's own are never links, nothing waits at a pipe, an output is whole or not there."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from orderscope.errors import OrderscopeError

ADVICE = {
    errno.EMFILE: "let this process open more files (ulimit -n), and try again",
    errno.ENFILE: "close other programs: the machine has too many files open, and try again",
    errno.ENOSPC: "make room, and run the same command again: what was finished is kept",
    errno.EDQUOT: "make room in your quota, and run the same command again: what was finished is kept",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), and run the same command again",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOMEM: "free memory, and try again",
}  # what to do about trouble that passes; of the right to read it is `RIGHTS`
RIGHTS = "get the right to read it (chmod, chown), or ask whoever has it"


def trouble(error: OSError, path: str | os.PathLike[str]) -> OrderscopeError:
    """The error for a file that cannot be read now but may well be sound.

    Args:
        error: what the operating system said.
        path: the file, where the error does not name one.
    """
    refused = error.errno in (errno.EACCES, errno.EPERM)
    return OrderscopeError(
        f"{error.filename or path} that cannot be read now ({error.strerror or error})",
        "a file this process can open",
        RIGHTS if refused else ADVICE.get(error.errno or 0, "try again"),
    )


def open_own(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """Open a file of a run, as `os.open`: a plain file, no link.

    A run may come from somebody else: a link in it could make a command read, or write over, a file of the user's.

    Args:
        path: the file.
        flags: as `os.open` takes them.

    Returns:
        A file descriptor.

    Raises:
        OrderscopeError: it is a link, or no file at all; or it is to be written and has a second name elsewhere.
        OSError: as `os.open`.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP or Path(path).is_symlink():
            raise linked(path) from None
        if error.errno in (errno.ENXIO, errno.EISDIR):
            raise _no_file(path) from None
        raise
    found = os.fstat(descriptor)
    writing = flags & (os.O_WRONLY | os.O_RDWR)
    if not stat.S_ISREG(found.st_mode) or (writing and found.st_nlink > 1):
        os.close(descriptor)
        raise linked(path) if stat.S_ISREG(found.st_mode) else _no_file(path)
    return descriptor


def read_own(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file of a run. Raises as `open_own`."""
    with open(open_own(path), "rb") as file:
        return file.read()


def open_given(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file that the user named, for reading: links are followed, but nobody waits at a pipe.

    Raises:
        OrderscopeError: it is no file.
        OSError, ValueError: as `os.open`.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a device may already do something
        raise _no_file(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_file(path)
    return open(descriptor, "rb")


def refuse_links(path: Path) -> None:
    """Raises: OrderscopeError where anything in a run's directory is a link."""
    folders = [path]
    while folders:
        with suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:  # a recorder takes states away
            for entry in entries:
                if entry.is_symlink():
                    raise linked(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))


def inside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether a path lies in a folder or is it, by its own name or by where links lead."""
    homes = {os.path.abspath(folder), os.path.realpath(folder)}
    places = {os.path.abspath(path), os.path.realpath(path)}
    return any(place == home or place.startswith(home.rstrip(os.sep) + os.sep) for place in places for home in homes)


def check_output(path: str | os.PathLike[str]) -> None:
    """See before any work that a file can be written; nothing of it is changed.

    Raises: OrderscopeError for a folder that is missing or cannot be written to, or a path that is no file.
    """
    path = Path(path)
    try:
        if _special(path):
            return
        if path.is_dir():
            raise OrderscopeError(f"a directory at {path}", "a file to write", "choose another path")
        folder = path.resolve().parent
        if not folder.is_dir():
            raise OrderscopeError(
                f"no directory {folder}", "a directory to write to", "make it first, or correct the path"
            )
        _made(folder).unlink()
    except OSError as error:
        raise OrderscopeError(
            f"{path} that cannot be written ({error.strerror or error})",
            "a place that can be written to",
            ADVICE.get(error.errno or 0, "choose another path, or get the right to write there"),
        ) from None


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when all of it is on disk; before that `path` stays as it is.

    Raises: OSError where it cannot be written.
    """
    path = Path(path)
    if _special(path):
        with open(path, "wb") as file:
            yield file
        return
    path = path.resolve()
    temporary = _made(path.parent)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def linked(path: str | os.PathLike[str]) -> OrderscopeError:
    return OrderscopeError(
        f"a link at {path}",
        "files of a run's own: a link can lead to files of yours",
        "put the file itself in its place, or ask whoever made the run",
    )


def _no_file(path: str | os.PathLike[str]) -> OrderscopeError:
    return OrderscopeError(f"something at {path} that is no file", "a file", "correct the path")


def _special(path: Path) -> bool:
    """A terminal, a pipe, /dev/null: written to, never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _made(folder: Path) -> Path:
    """An empty file of a name that nothing has."""
    temporary = folder / f".orderscope-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    return temporary
