"""Text for a person at a terminal, and JSON for a program."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import click

from orderscope.cli.layout import aligned, fold
from orderscope.report.words import figures as figures
from orderscope.report.words import short as short
from orderscope.report.words import signed as signed
from orderscope.report.words import true_change as true_change
from orderscope.report.words import truth as truth
from orderscope.text import plain as plain
from orderscope.text import plain_lines

WIDTH = 80  # columns of a table where no terminal says how wide it is

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")


def width() -> int:
    """Columns that a table may fill: those of the terminal, else 80."""
    return shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH


def say(text: str = "", *, err: bool = False, nl: bool = True, whole: bool = False) -> None:
    """Print text. Control characters that it quotes from a run or a task are made harmless for the terminal.

    Args:
        text: lines; on a terminal longer ones are folded between words.
        err: to stderr, where nothing is folded.
        nl: end the last line.
        whole: fold nothing, as for what is to be copied.
    """
    text = plain_lines(text)
    if not err and not whole and sys.stdout.isatty():
        text = "\n".join(map(_folded, text.split("\n")))
    click.echo(text, err=err, nl=nl)


def _folded(line: str) -> str:
    if len(line) <= width():
        return line
    indent = " " * (len(line) - len(line.lstrip()))
    first, *rest = fold(line.strip(), width() - len(indent) - 2)
    return "\n".join([indent + first, *(f"{indent}  {part}" for part in rest)])


def size(count: float) -> str:
    """Bytes in three figures: 999 B, 1.23 kB, 45.6 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def columns(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Rows in left-aligned columns that fit `width`; control characters are shown, not sent."""
    return "\n".join(aligned([[plain(cell) for cell in row] for row in rows], width(), indent=indent))


def print_json(value: Any) -> None:
    """Print JSON; a number that JSON lacks (nan, inf) becomes null."""
    say(json.dumps(_finite(value), indent=2, allow_nan=False), whole=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
