"""`orderscope export`: tables, a model card, or an experiment tracker's records from a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orderscope.cli.kept import end, try_writing
from orderscope.cli.options import check_question, open_simulator, run_argument, threads_option
from orderscope.cli.tabular import write_csv, write_parquet
from orderscope.cli.text import columns, json_option, plain, print_json, say
from orderscope.cli.trackers import need, to_mlflow, to_tensorboard, to_wandb
from orderscope.errors import OrderscopeError
from orderscope.files import check_output, inside, open_given, written
from orderscope.store import RunStore

if TYPE_CHECKING:
    from orderscope.simulation.simulator import Simulator

WRITERS = {"csv": write_csv, "parquet": write_parquet}
ONLINE = ("wandb", "mlflow")  # trackers with their own default location
CARD = "README.md"


@click.command()
@run_argument
@click.option(
    "--to", "kind", type=click.Choice(["csv", "parquet", "tensorboard", "wandb", "mlflow", "card"]), default="csv",
    show_default=True, help="The format. All but csv and card need the extra of their name.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False),
    help="Directory to write to; created if missing. Files of an earlier export are replaced. wandb and "
    "mlflow use their own location by default: WANDB_DIR, MLFLOW_TRACKING_URI.",
)  # fmt: skip
@click.option(
    "--project", default="orderscope", show_default=True, metavar="NAME", help="wandb's project, mlflow's experiment."
)
@click.option(
    "--order", metavar="ORDER",
    help="The order that a card is about: an expression or a .npy file. Default: that of the last proposal, the best "
    "trial of a study, or the recorded one.",
)  # fmt: skip
@threads_option
@json_option
def export(
    run: Path, kind: str, out: Path | None, project: str, order: str | None, threads: int, as_json: bool
) -> None:
    """Export the data and results of a run for other programs.

    \b
    csv, parquet  tables:
      orders      of every order recorded, asked about or validated: value,
                  error, trusted, true where it was trained
      proposals   the best order of every strategy, of every proposal
      positions   the maps, one row a batch and place
      curves      metrics of the recorded runs where their states were kept
      steps       loss of every batch when the reference run trained on it
      trials      of a study (osc.Study): predicted, error, value
    tensorboard, wandb, mlflow
                  the same tables, the curves, a summary and the order
    card          README.md and order.npy for a model or data hub: hash,
                  sigma_order, fidelity, cost, how to play the order

    No model is run: of orders asked about there are the held-out losses.
    """
    if out is None and kind not in ONLINE:
        raise click.UsageError(f"--to {kind} needs --out")
    if order is not None and kind != "card":
        raise click.UsageError(f"--order is for --to card, not for --to {kind}")
    need(kind)
    check_question(run, orders=[] if order is None else [order])
    if out is not None:
        _check_place(run, out, kind)
    sim, _ = open_simulator(run, None, threads, with_task=False)
    if kind in WRITERS:
        assert out is not None
        facts, failed = _tables(sim, kind, out)
    elif kind == "card":
        assert out is not None
        facts, failed = _card(sim, order, out)
    else:
        facts, failed = _tracker(sim, kind, out, project)
    if as_json:
        print_json({"run": str(run), "format": kind} | facts)
    else:
        _say(facts)
    end(failed, 0)


def _check_place(run: Path, out: Path, kind: str) -> None:
    """Check that the directory can be written to, before any work."""
    RunStore.open(run)
    if inside(out, run):
        raise OrderscopeError(f"{out}, inside the run", "a place outside of it", "choose another path with --out")
    check_output(out / "orders" if out.is_dir() else out)
    if kind == "card" and (out / CARD).exists():
        from orderscope.answers.card import MARK

        with open_given(out / CARD) as file:
            if MARK.encode() not in file.read(1 << 20):
                raise OrderscopeError(
                    f"{out / CARD}, which no export wrote", "a directory without one, or with one of an earlier export",
                    "choose another path with --out, and put the card into your page from there",
                )  # fmt: skip


def _tables(sim: Simulator, kind: str, out: Path) -> tuple[dict[str, Any], str | None]:
    from orderscope.answers.tables import tables

    found, left_out = tables(sim)
    failed = None
    files: dict[str, int] = {}
    for name, table in found.items():
        file = out / f"{name}.{kind}"
        error = try_writing(file, lambda path, table=table: _write(path, lambda raw: WRITERS[kind](raw, table)))
        if error is None:
            files[str(file)] = len(table.rows)
        failed = failed or error
    return {"files": files, "left_out": left_out}, failed


def _card(sim: Simulator, order: str | None, out: Path) -> tuple[dict[str, Any], str | None]:
    import numpy as np

    from orderscope.answers.card import ORDER_FILE, card
    from orderscope.orders import order_hash

    page, ids = card(sim, order)
    failed = try_writing(out / ORDER_FILE, lambda path: _write(path, lambda raw: np.save(raw, ids)))
    failed = failed or try_writing(out / CARD, lambda path: _write(path, lambda raw: raw.write(page.encode())))
    return {"card": str(out / CARD), "order": str(out / ORDER_FILE), "order_hash": order_hash(ids)}, failed


def _tracker(sim: Simulator, kind: str, out: Path | None, project: str) -> tuple[dict[str, Any], str | None]:
    from orderscope.answers.tracked import tracked

    found = tracked(sim)
    if kind == "tensorboard":
        assert out is not None
        facts = to_tensorboard(found, out)
    else:
        facts = (to_wandb if kind == "wandb" else to_mlflow)(found, out, project)
    return facts | {"order_hash": found.config["order_hash"], "left_out": found.left_out}, None


def _write(path: Path, write: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    with written(path) as file:
        write(file)


def _say(facts: dict[str, Any]) -> None:
    files, left_out = facts.pop("files", None), facts.pop("left_out", [])
    if files is not None:
        say(columns([[file, f"{rows} row" + "s" * (rows != 1)] for file, rows in files.items()], ""))
    else:
        shown = {key: ", ".join(v) if isinstance(v, list) else str(v) for key, v in facts.items()}
        say(columns([[key.replace("_", " "), value] for key, value in shown.items()], ""))
    for line in left_out:
        say(f"left out: {plain(line)}")
