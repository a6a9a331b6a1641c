"""Tables and orders as links that hold the file itself: nothing is fetched."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Iterable, Sequence
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from orderscope.text import plain

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # at the beginning of a cell they make a spreadsheet compute it
MOST = 1 << 21  # largest order, in bytes, that a page carries


def csv_link(name: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A link to a table; numbers have all their digits, what is not known is empty.

    Args:
        name: of the file, without its ending.
        header: names of the columns.
        rows: text, numbers or None.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in (header, *rows):
        writer.writerow([_cell(cell) for cell in row])
    held = quote(text.getvalue(), safe="")
    return _link(f"{name}.csv", f"text/csv;charset=utf-8,{held}", "this table as CSV")


def npy_link(name: str, order: np.ndarray, words: str) -> Markup:
    """A link to an order as a .npy file, in the smallest signed integer type that holds it; empty where it is larger
    than `MOST`.

    Args:
        name: of the file, without its ending.
        order: sample ids, [steps, batch].
        words: text of the link.
    """
    small = next(kind for kind in (np.int16, np.int32, np.int64) if order.max(initial=0) <= np.iinfo(kind).max)
    if order.size * np.dtype(small).itemsize > MOST:
        return Markup("")
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(order, dtype=small))
    held = base64.b64encode(file.getvalue()).decode()
    return _link(f"{name}.npy", f"application/octet-stream;base64,{held}", words)


def _link(file: str, data: str, words: str) -> Markup:
    return Markup('<a class="download" download="{}" href="data:{}">{}</a>').format(file, data, words)


def _cell(value: object) -> object:
    if isinstance(value, float | np.floating):
        return repr(float(value)) if math.isfinite(value) else ""
    if isinstance(value, str):
        text = plain(value)
        return f"'{text}" if text.startswith(FORMULA) else text
    return "" if value is None else value
