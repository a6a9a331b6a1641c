"""A table for a person, as wide as the terminal or 80 columns."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from orderscope.cli.layout import aligned
from orderscope.cli.text import plain, width


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text: Sequence[int] = (0,)) -> None:
    """Print a table for a person.

    Args:
        header: names of the columns.
        rows: one text a column.
        text: indices of the columns that stand left and may be folded; numbers stand right.
    """
    shown = [[plain(cell) for cell in row] for row in (header, *rows)]
    right = [i for i in range(len(header)) if i not in text]
    lines = aligned(shown, width(), right=right, header=True)
    body = len(aligned(shown[1:], width(), right=right)) if rows else 0
    for i, line in enumerate(lines):
        faint = sys.stdout.isatty() and i < len(lines) - body
        click.echo(click.style(line, dim=True) if faint else line)
