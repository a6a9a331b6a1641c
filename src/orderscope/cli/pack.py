"""`orderscope pack`: one file of a run."""

from __future__ import annotations

from pathlib import Path

import click

from orderscope import store
from orderscope.cli.options import run_argument
from orderscope.cli.text import json_option, plain, print_json, say, size


@click.command()
@run_argument
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write, such as run.h5.")
@json_option
def pack(run: Path, out: Path, as_json: bool) -> None:
    """Pack a run into one HDF5 file, to share it. Every command that reads a run also reads this file."""
    store.pack(run, out)
    shards, length = len(store.RunStore.open(out).names()), out.stat().st_size
    if as_json:
        print_json({"file": str(out), "bytes": length, "shards": shards})
    else:
        say(f"{plain(str(out))}: {shards} shards, {size(length)}")
