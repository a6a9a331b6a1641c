"""A table for a person: drawn by rich on a terminal, aligned text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from orderscope.cli.text import plain, say


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text: Sequence[int] = (0,)) -> None:
    """Print rows under a header; the columns in `text` stand left, numbers right."""
    if sys.stdout.isatty() and _rich_table(header, rows, text):
        return
    shown = [[plain(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = [c.ljust(w) if i in text else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        say(("  " + "  ".join(cells)).rstrip())


def _rich_table(header: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int]) -> bool:
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(box=box.SIMPLE_HEAD)
    for i, title in enumerate(header):
        table.add_column(Text(plain(title)), justify="left" if i in text else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))  # Text: names are not markup
    Console().print(table)
    return True
