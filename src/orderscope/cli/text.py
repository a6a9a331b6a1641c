"""Text for a person at a terminal, and JSON for a program."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import click

from orderscope.report.words import figures as figures
from orderscope.report.words import short as short
from orderscope.report.words import signed as signed
from orderscope.text import plain as plain
from orderscope.text import plain_lines

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")


def say(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print text; whatever it quotes from a run or a task, no character of it steers the terminal."""
    click.echo(plain_lines(text), err=err, nl=nl)


def size(count: float) -> str:
    """Bytes in three figures: 999 B, 1.23 kB, 45.6 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def columns(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Rows in left-aligned columns; control characters are shown, not sent."""
    shown = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return "\n".join(
        (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
        for row in shown
    )


def print_json(value: Any) -> None:
    """Print JSON; a number that JSON lacks (nan, inf) becomes null."""
    say(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
