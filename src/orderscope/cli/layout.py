"""Rows in columns that fit a width: cells are folded between words, never inside one."""

from __future__ import annotations

import re
from collections.abc import Sequence

# A long word may be folded at these characters. Paths are not folded, so that they can be copied.
BREAKS = re.compile(r"(?<=[,|;])(?=.)|(?<=[^\d]:)(?=.)")
LONG = 20
SHORT = 8  # characters of a cell that is not folded: "12 rows"


def folded(rows: Sequence[Sequence[str]], room: int, whole: Sequence[int] = ()) -> list[list[list[str]]]:
    """Lines of every cell, so that the columns' widths add up to `room` at most where words are short enough.

    Args:
        rows: cells of equally many columns.
        room: characters for all columns, without what stands between them.
        whole: columns whose cells below the first row are not folded, as numbers.

    Example:
        >>> folded([["order", "found by"], ["late:code", "one group last"]], 18)[1]
        [['late:code'], ['one group', 'last']]
    """
    columns = [list(column) for column in zip(*rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    least = [
        max(
            [_longest(cell) for cell in column[: 1 if i in whole else None]]
            + [len(c) for c in column if i in whole][1:]
        )
        for i, column in enumerate(columns)
    ]
    while sum(widths) > room:
        slack = [width - low for width, low in zip(widths, least, strict=True)]
        widest = max(range(len(widths)), key=lambda i: (slack[i] > 0, widths[i]))
        if slack[widest] <= 0:
            break
        widths[widest] -= 1
    if sum(widths) > room:  # nothing fits beside a long path: the other columns are not made unreadable for it
        widths = [max(width, min(LONG, max(map(len, column)))) for width, column in zip(widths, columns, strict=True)]
    return [[fold(cell, width) for cell, width in zip(row, widths, strict=True)] for row in rows]


def natural_width(rows: Sequence[Sequence[str]], indent: int = 2) -> int:
    """Characters of a line where no cell is folded.

    Example:
        >>> natural_width([["order", "loss"], ["late:code", "2.5"]])
        17
    """
    return indent + sum(max(map(len, column)) + 2 for column in zip(*rows, strict=True)) - 2


def fold(text: str, width: int) -> list[str]:
    """Text in lines of at most `width` characters, longer where a word is.

    Example:
        >>> fold("groups:code,names,prose", 12), fold("a b", 1)
        (['groups:code,', 'names,prose'], ['a', 'b'])
    """
    if len(text) <= width:
        return [text]
    lines, line = [], ""
    for piece in _pieces(text):
        if line and len((line + piece).rstrip()) > width:
            lines.append(line.rstrip())
            line = piece.lstrip()
        else:
            line += piece
    return [*lines, line.rstrip()]


def _pieces(text: str) -> list[str]:
    """Words with the space before them, long ones in parts."""
    words = re.findall(r"\s*\S+", text)
    return [part for word in words for part in (BREAKS.split(word) if len(word.strip()) > LONG else [word])]


def _longest(text: str) -> int:
    """Characters that stand on one line: of the longest word, or of all the text where it is short."""
    if len(text) <= SHORT:
        return len(text)
    return max((len(piece.strip()) for piece in _pieces(text)), default=0)


def aligned(
    rows: Sequence[Sequence[str]], width: int, *, right: Sequence[int] = (), header: bool = False, indent: str = "  "
) -> list[str]:
    """Rows as lines, two spaces between columns.

    Args:
        rows: cells of equally many columns.
        width: of a whole line.
        right: columns that stand right and whose cells are not folded.
        header: whether the first row is one, which stands low where it is folded.
        indent: what every line begins with.
    """
    if not rows:
        return []
    count = len(rows[0])
    cells = folded(rows, width - len(indent) - 2 * (count - 1), right)
    widths = [max(len(line) for row in cells for line in row[i]) for i in range(count)]
    lines = []
    for index, row in enumerate(cells):
        tall = max(map(len, row))
        for k in range(tall):
            shown = []
            for i, cell in enumerate(row):
                at = k - (tall - len(cell)) if header and index == 0 else k
                text = cell[at] if 0 <= at < len(cell) else ""
                shown.append(text.rjust(widths[i]) if i in right else text.ljust(widths[i]))
            lines.append((indent + "  ".join(shown)).rstrip())
    return lines
