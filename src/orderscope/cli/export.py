"""`orderscope export`: what a run knows and was asked, as tables for other programs."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from orderscope.cli.kept import end, try_writing
from orderscope.cli.options import open_simulator, run_argument, threads_option
from orderscope.cli.text import columns, json_option, plain, print_json, say
from orderscope.errors import OrderscopeError
from orderscope.files import check_output, inside, written
from orderscope.store import RunStore

if TYPE_CHECKING:
    from orderscope.answers.tables import Table


@click.command()
@run_argument
@click.option(
    "--to", "kind", type=click.Choice(["csv", "parquet"]), default="csv", show_default=True,
    help="The format; parquet needs pyarrow.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True,
    help="Directory of the tables; made if it is not there. Tables of these names in it are replaced.",
)  # fmt: skip
@threads_option
@json_option
def export(run: Path, kind: str, out: Path, threads: int, as_json: bool) -> None:
    """Write tables of what a run knows and was asked, for other programs.

    \b
    orders     of every order recorded, asked about or validated: value, error, trusted, true where it was trained
    proposals  the best order of every strategy, of every proposal
    positions  the maps, one row a batch and place
    curves     metrics of the recorded runs where their states were kept
    steps      loss of every batch when the reference run trained on it

    No model is run: of orders asked about there are the held-out losses.
    """
    if kind == "parquet":
        need_pyarrow()
    RunStore.open(run)
    if inside(out, run):
        raise OrderscopeError(f"{out}, inside the run", "a place outside of it", "choose another path with --out")
    check_output(out / "orders" if out.is_dir() else out)
    sim, _ = open_simulator(run, None, threads, with_task=False)
    from orderscope.answers.tables import tables

    found, left_out = tables(sim)
    failed = None
    files: dict[str, int] = {}
    for name, table in found.items():
        file = out / f"{name}.{kind}"
        write = write_csv if kind == "csv" else write_parquet
        error = try_writing(file, lambda path, write=write, table=table: _write(path, write, table))
        if error is None:
            files[str(file)] = len(table.rows)
        failed = failed or error
    if as_json:
        print_json({"run": str(run), "format": kind, "files": files, "left_out": left_out})
    else:
        say(columns([[file, f"{rows} row" + "s" * (rows != 1)] for file, rows in files.items()], ""))
        for line in left_out:
            say(f"left out: {plain(line)}")
    end(failed, 0)


def need_pyarrow() -> None:
    """Raises: OrderscopeError where it is missing."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise OrderscopeError(
            "--to parquet, and no pyarrow here", "pyarrow, which writes it",
            "pip install 'orderscope[parquet]', or take --to csv",
        ) from None  # fmt: skip


def _write(path: Path, write: object, table: Table) -> None:
    path.parent.mkdir(exist_ok=True)
    with written(path) as file:
        assert callable(write)
        write(file, table)


def write_csv(raw: IO[bytes], table: Table) -> None:
    """A header and one line a row; what is not known is empty, and truth is `true` or `false`."""
    file = io.TextIOWrapper(raw, newline="", encoding="utf-8", write_through=True)
    writer = csv.writer(file)
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow([str(value).lower() if isinstance(value, bool) else value for value in row])
    file.detach()


def write_parquet(raw: IO[bytes], table: Table) -> None:
    """Typed columns; what is not known is null."""
    import pyarrow
    from pyarrow import parquet

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    arrays = {
        name: pyarrow.array([row[i] for row in table.rows], types[kind])
        for i, (name, kind) in enumerate(table.columns.items())
    }
    parquet.write_table(pyarrow.table(arrays), raw)
