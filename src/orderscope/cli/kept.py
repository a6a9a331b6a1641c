"""Answers in files and in the run: whatever becomes of the file, the answer is printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from orderscope.cli.text import say
from orderscope.errors import OrderscopeError
from orderscope.files import ADVICE
from orderscope.store import RunStore


def keep(run: Path, write: Callable[[RunStore], str]) -> str | None:
    """Write an answer into the run, for the report: the name of its shard, or None and a line why there is none."""
    if not run.is_dir():
        return None  # packed
    try:
        with RunStore.create(run) as store:
            return write(store)
    except (OrderscopeError, OSError) as error:
        say(f"not kept in the run: {error}", err=True)
        return None


def try_writing(out: Path | None, write: Callable[[Path], None]) -> str | None:
    """Write an answer's file where one was asked for; what went wrong, None where nothing did."""
    if out is None:
        return None
    try:
        write(out)
    except OSError as error:
        return f"{out} not written: {error}; {ADVICE.get(error.errno or 0, 'write it elsewhere')}"
    return None


def end(failed: str | None, code: int) -> None:
    """End a verb whose answer was printed: with 1 and a line where its file could not be written."""
    if failed is not None:
        say(f"orderscope: {failed}", err=True)
    click.get_current_context().exit(code if failed is None else 1)
