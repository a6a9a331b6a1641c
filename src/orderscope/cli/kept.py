"""Answers in files and in the run: whatever becomes of the file, the answer is printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from orderscope.cli.text import say
from orderscope.files import ADVICE
from orderscope.store import RunStore, add_if_possible


def keep(run: Path, write: Callable[[RunStore], str]) -> str | None:
    """Keep an answer in the run, for the report, where it can be written to; else print why not.

    Args:
        run: its path. In a packed run nothing is kept, and nothing printed.
        write: writes the answer, and returns the name of its shard.

    Returns:
        That name; None where nothing was kept.
    """
    return add_if_possible(run, write, refused=lambda error: say(f"not kept in the run: {error}", err=True))


def try_writing(out: Path | None, write: Callable[[Path], None]) -> str | None:
    """Write an answer's file where one was asked for.

    Args:
        out: its path, or None.
        write: writes it there.

    Returns:
        What went wrong, None where nothing did.
    """
    if out is None:
        return None
    try:
        write(out)
    except OSError as error:
        return f"{out} not written: {error}; {ADVICE.get(error.errno or 0, 'write it elsewhere')}"
    return None


def end(failed: str | None, code: int) -> None:
    """End a verb whose answer was printed.

    Args:
        failed: what went wrong with its file: one line, and the exit code 1. None where nothing did.
        code: exit code otherwise.
    """
    if failed is not None:
        say(f"orderscope: {failed}", err=True)
    click.get_current_context().exit(code if failed is None else 1)
