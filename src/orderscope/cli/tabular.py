"""Tables as files: CSV and Parquet."""

from __future__ import annotations

import csv
import io
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from orderscope.answers.tables import Table


def write_csv(raw: IO[bytes], table: Table) -> None:
    """A header and one line per row; unknown values are empty, truth values are `true` or `false`."""
    file = io.TextIOWrapper(raw, newline="", encoding="utf-8", write_through=True)
    writer = csv.writer(file)
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow([str(value).lower() if isinstance(value, bool) else value for value in row])
    file.detach()


def write_parquet(raw: IO[bytes], table: Table) -> None:
    """Typed columns; unknown values are null."""
    import pyarrow
    from pyarrow import parquet

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    arrays = {
        name: pyarrow.array([row[i] for row in table.rows], types[kind])
        for i, (name, kind) in enumerate(table.columns.items())
    }
    parquet.write_table(pyarrow.table(arrays), raw)
