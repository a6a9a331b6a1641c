"""Where experiments are kept: TensorBoard, Weights & Biases, MLflow. Each is imported when it is written to."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from orderscope.cli.tabular import write_csv
from orderscope.errors import OrderscopeError
from orderscope.files import written

if TYPE_CHECKING:
    from orderscope.answers.tracked import Tracked

SUFFIX = ".orderscope"  # of event files, so that a second export replaces those of the first
BATCH = 500  # metrics that are sent to MLflow at once; it allows 1000
NEEDED = {
    "parquet": ("pyarrow.parquet", "pyarrow", "--to csv"),
    "tensorboard": ("tensorboard", "tensorboard", "--to csv"),
    "wandb": ("wandb", "wandb", "--to tensorboard"),
    "mlflow": ("mlflow", "mlflow", "--to tensorboard"),
}  # format -> module, what to call it, what to take instead; the extra has the format's name
REPORTS = {"wandb": ("WANDB_ERROR_REPORTING", "false"), "mlflow": ("MLFLOW_DISABLE_TELEMETRY", "true")}


def need(kind: str) -> None:
    """Import the library that writes a format. What it reports about itself to its makers is switched off, unless the
    user's environment says otherwise: an export to this disk sends nothing.

    Raises: OrderscopeError where it is missing.
    """
    if kind not in NEEDED:
        return
    if kind in REPORTS:
        os.environ.setdefault(*REPORTS[kind])
    module, name, instead = NEEDED[kind]
    try:
        __import__(module)
    except ImportError:
        raise OrderscopeError(
            f"--to {kind}, and no {name} here", f"{name}, which writes it",
            f"pip install 'orderscope[{kind}]', or take {instead}",
        ) from None  # fmt: skip


def to_tensorboard(found: Tracked, out: Path) -> dict[str, Any]:
    """Event files: a folder for each recorded run, so that their curves lie over each other, and one for the summary.

    Args:
        found: what is exported.
        out: log directory; made if it is not there. Event files of an earlier export in it are replaced.
    """
    from torch.utils.tensorboard import SummaryWriter

    for old in out.glob(f"*/events.out.tfevents.*{SUFFIX}"):
        old.unlink()
    for run, curves in found.curves.items():
        with SummaryWriter(str(out / _name(run)), filename_suffix=SUFFIX) as writer:
            for metric, points in curves.items():
                for step, value in points:
                    writer.add_scalar(metric, value, step)
    with SummaryWriter(str(out / "summary"), filename_suffix=SUFFIX) as writer:
        for name, value in found.summary.items():
            if isinstance(value, int | float):
                writer.add_scalar(name, value, 0)
        writer.add_text("recorded", _markdown([{"what": k, "is": v} for k, v in found.config.items()]))
        said = [{"what": k, "is": v} for k, v in found.summary.items() if isinstance(v, str)]
        writer.add_text("verdicts", _markdown(said))
        for name, table in found.tables.items():
            if name not in ("curves", "steps"):
                writer.add_text(name, _markdown(table.records()))
    return {"log_directory": str(out), "runs": [*map(_name, found.curves), "summary"]}


def to_wandb(found: Tracked, out: Path | None, project: str) -> dict[str, Any]:
    """One run of Weights & Biases, with the tables and the order as an artifact. `WANDB_MODE=offline` writes it to
    disk only.

    Args:
        found: what is exported.
        out: where its files go; where wandb puts them if not given.
        project: its name there.
    """
    import wandb

    quiet = wandb.Settings(
        silent=True, console="off", x_disable_stats=True, disable_git=True, x_save_requirements=False
    )
    if out is not None:
        out.mkdir(exist_ok=True)
    run = wandb.init(
        project=project, name=found.name, job_type="orderscope", config=dict(found.config), settings=quiet,
        dir=None if out is None else str(out),
    )  # fmt: skip
    for step, values in _by_step(found):
        run.log(values, step=step)
    for name, table in found.tables.items():
        if table.rows:
            run.summary[name] = wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
    for name, value in found.summary.items():
        run.summary[name] = value
    with TemporaryDirectory() as folder:
        artifact = wandb.Artifact(f"order-{found.config['order_hash'][:12]}", type="training-order")  # pyright: ignore[reportIndexIssue]
        artifact.add_file(str(_saved(Path(folder) / "order.npy", found.order)))
        run.log_artifact(artifact)
        run.finish()
    return {"project": project, "run": run.id, "directory": str(Path(run.dir).parent), "mode": run.settings.mode}


def to_mlflow(found: Tracked, out: Path | None, experiment: str) -> dict[str, Any]:
    """One run of MLflow, with the tables as CSV and the order as artifacts.

    Args:
        found: what is exported.
        out: a folder with a store of its own, `mlflow.db` and `artifacts`, made if it is not there; the store that
            `MLFLOW_TRACKING_URI` names if not given.
        experiment: its name there.

    Raises:
        OrderscopeError: neither of the two says where.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    uri = os.environ.get("MLFLOW_TRACKING_URI") if out is None else f"sqlite:///{out.resolve() / 'mlflow.db'}"
    if not uri:
        raise OrderscopeError(
            "--to mlflow without a place", "a folder, or a server that MLFLOW_TRACKING_URI names",
            "pass --out FOLDER, or set MLFLOW_TRACKING_URI",
        )  # fmt: skip
    if out is not None:
        out.mkdir(exist_ok=True)
    for name in ("mlflow", "alembic"):  # how a new store is set up
        logging.getLogger(name).setLevel(logging.WARNING)
    client = MlflowClient(uri)
    known = client.get_experiment_by_name(experiment)
    place = None if out is None else (out.resolve() / "artifacts").as_uri()
    number = known.experiment_id if known else client.create_experiment(experiment, artifact_location=place)
    run = client.create_run(number, run_name=found.name, tags={"source": "orderscope"}).info.run_id
    now = int(time.time() * 1000)
    metrics = [Metric(_key(k), float(v), now, 0) for k, v in found.summary.items() if not isinstance(v, str)]
    metrics += [
        Metric(_key(f"{metric}/{name}"), value, now, step)
        for name, curves in found.curves.items()
        for metric, points in curves.items()
        for step, value in points
    ]
    client.log_batch(
        run,
        params=[Param(_key(k), str(v)) for k, v in found.config.items()],
        tags=[RunTag(_key(k), v) for k, v in found.summary.items() if isinstance(v, str)],
    )
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run, metrics=metrics[start : start + BATCH])
    with TemporaryDirectory() as folder:
        for name, table in found.tables.items():
            with written(Path(folder) / f"{name}.csv") as file:
                write_csv(file, table)
            client.log_artifact(run, str(Path(folder) / f"{name}.csv"), "tables")
        client.log_artifact(run, str(_saved(Path(folder) / "order.npy", found.order)))
    client.set_terminated(run)
    return {"tracking_uri": uri, "experiment": experiment, "run": run}


def _by_step(found: Tracked) -> Iterator[tuple[int, dict[str, float]]]:
    """All curves by step, rising, as `metric/run`."""
    steps: dict[int, dict[str, float]] = {}
    for run, curves in found.curves.items():
        for metric, points in curves.items():
            for step, value in points:
                steps.setdefault(step, {})[f"{metric}/{run}"] = value
    yield from sorted(steps.items())


def _saved(path: Path, order: np.ndarray) -> Path:
    np.save(path, order)
    return path


def _name(text: str) -> str:
    """A folder's name."""
    return re.sub(r"[^\w.-]", "_", text).strip(".") or "run"


def _key(text: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", text)[:250]


def _markdown(records: list[dict[str, Any]]) -> str:
    if not records:
        return "none"
    cells = [[str("" if v is None else v).replace("|", "\\|") for v in record.values()] for record in records]
    lines = [list(records[0]), ["---"] * len(records[0]), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
