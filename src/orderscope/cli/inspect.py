"""`orderscope inspect`: the contents of a run, what is missing or damaged, and where its predictions go wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from orderscope.cli.layout import natural_width
from orderscope.cli.onward import not_yet, onward
from orderscope.cli.options import run_argument
from orderscope.cli.progress import doing
from orderscope.cli.shifts import as_json as shifts_json
from orderscope.cli.shifts import shifts_of, show_shifts
from orderscope.cli.steps import as_json as steps_json
from orderscope.cli.steps import show_steps, steps_of
from orderscope.cli.tasks import remembered_task
from orderscope.cli.text import columns, json_option, plain, print_json, say, short, size, width
from orderscope.errors import DamagedRun, IncompleteRun, OrderscopeError
from orderscope.recording.costs import part_runs, part_seconds
from orderscope.store import SCHEMA, RunStore
from orderscope.store.names import FURTHER, PLAN, REFERENCE, SPLIT, TABLE, TASK_SHARD, latest_plan
from orderscope.text import number

SEGMENT = re.compile(r"record/([^/]+)/segment-\d+")
STAGES = {
    TASK_SHARD: "the task's description",
    "record/reference/": "the reference run",
    "sketch/": "the sketch",
}
TASK_FACTS = (
    "model", "size", "dtype", "steps", "batch", "samples", "group_names", "metrics",
    "optimizer", "param_groups", "scheduler", "warm", "max_grad_norm", "mapped",
)  # fmt: skip


@click.command()
@run_argument
@click.option(
    "--steps", "by_step", is_flag=True,
    help="Show the steps at which predictions go wrong, from leave-one-out predictions of the true runs.",
)  # fmt: skip
@click.option(
    "--shifts", is_flag=True,
    help="Tell by how many steps a batch, or a group, must be moved for predictions to tell the difference.",
)  # fmt: skip
@click.option(
    "--metric",
    default=None,
    help="With --steps or --shifts, the held-out loss they are about. Default: the first.",
)
@json_option
def inspect(run: Path, by_step: bool, shifts: bool, metric: str | None, as_json: bool) -> None:
    """List the contents of a run, and what is missing or damaged. Every byte is read once.

    Exit code 4 if it is damaged, 5 if it is sound but not finished.
    """
    if metric is not None and not (by_step or shifts):
        raise click.UsageError("--metric goes with --steps and --shifts: what a run holds is the same for all metrics")
    if by_step and shifts:
        raise click.UsageError("--steps or --shifts, one at a time")
    try:
        store = RunStore.open(run)
        with doing(f"read every byte of {run}", quiet=as_json):
            facts = inventory(store)
        lines = list(_lines(facts))
        complete = facts["state"] == "complete"
        told = _steps(facts, run, metric, as_json) if by_step and complete else None
        shifted = _shifts(facts, run, metric, as_json) if shifts and complete else None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise DamagedRun(
            f"shards that do not hold what they should ({type(error).__name__}: {error})",
            "what this version of orderscope writes",
            "ask whoever made the run, or record it again",
        ) from error
    if as_json:
        print_json(facts)
    elif told is not None:
        show_steps(run, told)
    elif shifted is not None:
        show_shifts(run, shifted)
    else:
        say("\n".join(lines))
    state = facts["state"]
    code = {"damaged": DamagedRun.exit_code, "incomplete": IncompleteRun.exit_code}.get(state, 0)
    click.get_current_context().exit(code)


def _steps(facts: dict[str, Any], run: Path, metric: str | None, quiet: bool) -> Any:
    """Compute the errors step by step, and add them to `facts`."""
    others = [run["name"] for run in facts["runs"] if run["finished"] and run["name"] != REFERENCE]
    found, kept, read = steps_of(run, metric, others, quiet=quiet)
    facts["step_errors"] = steps_json(found) | {"kept": kept, "read": read}
    return found


def _shifts(facts: dict[str, Any], run: Path, metric: str | None, quiet: bool) -> Any:
    """Which shifts in time are told apart, which becomes part of `facts`."""
    found = shifts_of(run, metric, quiet=quiet)
    facts["resolution"] = shifts_json(found)
    return found


def inventory(store: RunStore) -> dict[str, Any]:
    """The contents of a run as JSON values: `state` is "complete", "incomplete" or "damaged"."""
    damage = store.verify()
    shards = store.describe()
    attrs = {info.name: _attrs_or_none(store, info.name) for info in shards}
    if PLAN in attrs:
        attrs[PLAN] = attrs[latest_plan(attrs)]
    task = attrs.get(TASK_SHARD)
    runs = _runs(attrs)
    parts = _parts({info.name: info.size for info in shards})
    missing, units = _missing(attrs, runs), _units(attrs)
    further = sum(run["finished"] for run in runs) - 1
    state = "damaged" if damage else "incomplete" if missing else "complete"
    step = None if damage else onward(
        store.path, attrs, missing, spec=remembered_task(store), sketching=0 < len(missing) == len(units),
        probes=further, packed=store.path.is_file(),
    )  # fmt: skip
    return {
        "path": str(store.path),
        "packed": store.path.is_file(),
        "schema": SCHEMA,
        "state": state,
        "damage": damage,
        "missing": missing,
        "not_yet": [] if missing or damage else not_yet(attrs),
        "next": None if step is None else {"command": step.command, "why": step.why},
        "unlisted": store.unlisted(),
        "remnants": [run["name"] for run in runs if run["name"].startswith(FURTHER) and not run["finished"]],
        "ignored_lines": store.ignored(),
        "shards": len(shards),
        "bytes": sum(info.size for info in shards),
        "disk_bytes": _disk_bytes(store.path),
        "task": None if task is None else {key: task.get(key) for key in TASK_FACTS},
        "weights": None if task is None else len(task.get("parameters", [])),
        "runs": runs,
        "sketch": _sketch(attrs.get(PLAN), attrs.get(SPLIT)),
        "remainder_kept": _remainder_kept(attrs),
        "parts": parts,
        "environment": None if task is None else task.get("environment"),
        "seconds": part_seconds(store),
        "cost": part_runs(store),
    }


def _remainder_kept(attrs: dict[str, dict[str, Any] | None]) -> float | None:
    """The share of predicted weights that other runs do not span, and that is kept; None before there is a table."""
    tables = sorted(name for name in attrs if name.startswith(f"{TABLE}left-out-"))
    return (attrs[tables[-1]] or {}).get("kept", 1.0) if tables else None


def _attrs_or_none(store: RunStore, name: str) -> dict[str, Any] | None:
    try:
        return store.attrs(name)
    except OrderscopeError:
        return None  # listed as damage


def _runs(attrs: dict[str, dict[str, Any] | None]) -> list[dict[str, Any]]:
    """The reference run and the probes: the steps whose state is kept, how many were planned, and the last metrics."""
    runs: dict[str, dict[str, Any]] = {}
    for name, values in attrs.items():
        if match := SEGMENT.fullmatch(name):
            new = {"name": match[1], "anchors": [], "planned": None, "steps": None, "metrics": {}}
            run = runs.setdefault(match[1], new)
            if values is not None:
                run["anchors"].append(values["stop"])
                run |= {"planned": len(values["boundaries"]), "steps": values["boundaries"][-1]}
                run["metrics"] = values["metrics"]
    for run in runs.values():
        run["finished"] = len(run["anchors"]) == run["planned"]
    return list(runs.values())


def _parts(sizes: dict[str, int]) -> dict[str, dict[str, int]]:
    """Shards and bytes of everything except recorded runs, by the first two words of the name."""
    parts: dict[str, dict[str, int]] = {}
    for name, length in sizes.items():
        if name != TASK_SHARD and not SEGMENT.fullmatch(name):
            part = parts.setdefault("/".join(name.split("/")[:2]), {"shards": 0, "bytes": 0})
            part["shards"] += 1
            part["bytes"] += length
    return parts


def _sketch(plan: dict[str, Any] | None, split: dict[str, Any] | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    samples = sum(len(ids) for ids in plan["curvature_ids"])
    return {
        "coordinates": plan["carried"],
        "anchors": len(plan["anchors"]),
        "curvature_rows": samples * plan["draws"],
        "seed": plan["seed"],
        "loss": None if split is None else {"kind": split["kind"], "why": split["why"]},
    }


def _missing(attrs: dict[str, dict[str, Any] | None], runs: list[dict[str, Any]]) -> list[str]:
    """What was never written; what was and can no longer be read is listed as damage. Nothing waits for the end of a
    run that was begun after recording."""
    missing = [title for prefix, title in STAGES.items() if not any(name.startswith(prefix) for name in attrs)]
    missing += [f"{wanted - found} of {wanted} units of {part}" for part, (found, wanted) in _units(attrs).items()]
    planned = (attrs.get(PLAN) or {}).get("probes", 0)
    probes = sum(run["name"].startswith("probe-") and run["finished"] for run in runs)
    built = any(name.startswith(f"{TABLE}left-out-") for name in attrs)
    if not built and not (attrs.get(PLAN) or {}).get("settled", True):
        missing.append("what else is bought")
    if probes < planned:
        missing.append(f"{planned - probes} of {planned} probes")
    for run in runs:
        if run["anchors"] and not run["finished"] and not run["name"].startswith(FURTHER):
            missing.append(f"run {run['name']} after step {run['anchors'][-1]} of {run['steps']}")
    return missing


def _units(attrs: dict[str, dict[str, Any] | None]) -> dict[str, tuple[int, int]]:
    """The parts of a planned sketch that are unfinished: units written, units planned. Counts as `SketchPlan`."""
    plan = attrs.get(PLAN)
    if plan is None or any(name.startswith(f"{TABLE}left-out-") for name in attrs):
        return {}  # the units were dropped when the table was built
    held_out, metrics = plan.get("held_out_ids") or [], plan["metrics"]
    planned = {
        "sketch/rows": len(plan["anchors"]) * len(plan["blocks"]),
        "sketch/curvature": len(plan["curvature_ids"]),
        "sketch/metric": 0 if held_out else len(metrics),
        "sketch/known": 1 + plan["probes"] if held_out and metrics else 0,
        "sketch/held-out": len(held_out),
    }
    found = {part: sum(name.startswith(f"{part}/") for name in attrs) for part in planned}
    return {part: (found[part], wanted) for part, wanted in planned.items() if found[part] < wanted}


def _disk_bytes(path: Path) -> int:
    files = [path] if path.is_file() else [path / entry.name for entry in os.scandir(path) if entry.is_file()]
    return sum(file.stat().st_size for file in files)


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    kind = "packed file" if facts["packed"] else "directory"
    yield f"{plain(facts['path'])}: {facts['state']}, {kind} of {size(facts['disk_bytes'])}, {facts['shards']} shards"
    for line in facts["damage"]:
        yield f"  damaged: {plain(line)}"
    for line in facts["missing"]:
        yield f"  missing: {plain(line)}"
    for name in facts["unlisted"]:
        yield f"  unlisted: {plain(name)}, in no line of the manifest: not read, and never written over"
    for name in facts["remnants"]:
        yield f"  left over: run {plain(name)} was interrupted, and is not used"
    if facts["ignored_lines"]:
        yield f"  ignored: {facts['ignored_lines']} lines of the journal are not what was written"
    for line in facts["not_yet"]:
        yield f"  not yet: {line}"
    if facts["next"] is not None:
        yield f"  next: {plain(facts['next']['command'])}"
        yield f"        {facts['next']['why']}"
    elif facts["damage"]:
        yield "  next: copy the run again from an undamaged source, or record it again in another directory"
    if facts["task"] is not None:
        yield ""
        yield columns(list(_task_rows(facts)))
    if facts["runs"]:
        yield ""
        yield columns(_run_rows(facts["runs"]))
    if facts["parts"]:
        yield ""
        rows = [[name, str(part["shards"]), size(part["bytes"])] for name, part in facts["parts"].items()]
        yield columns([["part", "shards", "size"], *rows])


def _task_rows(facts: dict[str, Any]) -> Iterator[list[str]]:
    task = facts["task"]
    yield ["model", f"{task['model']}: {_count(task['size'])} {task['dtype']} weights in {facts['weights']} tensors"]
    yield ["order", f"{task['steps']} steps of {task['batch']} samples, from {_count(task['samples'])}"]
    yield ["groups", ", ".join(map(str, task["group_names"] or [])) or "none"]
    clipping = f"clipped at {task['max_grad_norm']}" if task["max_grad_norm"] else "not clipped"
    start = "from a state in mid-run" if task["warm"] else "from the start"
    groups = f"{task['param_groups']} parameter groups" if task["param_groups"] != 1 else "1 parameter group"
    yield ["optimizer", f"{task['optimizer']}, {groups}, {task['scheduler'] or 'no scheduler'}, {clipping}, {start}"]
    rows = [f"{name} ({'a function' if n is None else f'{n} rows'})" for name, n in (task["metrics"] or {}).items()]
    yield ["metrics", ", ".join(rows) or "none"]
    if facts["sketch"]:
        sketch = facts["sketch"]
        yield [
            "sketch",
            f"{_count(sketch['coordinates'])} coordinates, {sketch['anchors']} anchors, "
            f"{_count(sketch['curvature_rows'])} curvature rows, seed {sketch['seed']}",
        ]
        if task["mapped"] is False:
            yield ["gradients", "of one sample after the other, which is slower: torch.func cannot take this model"]
        if sketch["loss"]:
            yield ["curvature from", f"{sketch['loss']['why']} ({sketch['loss']['kind']})"]
    kept = facts["remainder_kept"]
    if kept is not None and kept < 1:
        yield ["predicted ends", f"drawn towards recorded ones: {kept:.0%} is kept of what recorded ends do not span"]
    if facts["environment"]:
        yield ["recorded on", ", ".join(f"{key} {value}" for key, value in facts["environment"].items())]
    yield ["time", ", ".join(f"{part} {number(seconds, 3)} s" for part, seconds in facts["seconds"].items())]
    if facts["cost"]:
        parts = ", ".join(f"{part} {number(runs, 3)}" for part, runs in facts["cost"].items())
        yield ["cost", f"{number(sum(facts['cost'].values()), 3)} runs ({parts})"]


def _run_rows(runs: list[dict[str, Any]]) -> list[list[str]]:
    """A column a metric where they fit, else all in one."""
    names = list(dict.fromkeys(name for run in runs if run["finished"] for name in run["metrics"] or {}))
    rows = [["run", "states at steps", *map(short, names)]]
    for run in runs:
        states = " ".join(map(str, run["anchors"])) + ("" if run["finished"] else f" (of {run['steps']})")
        told = (run["metrics"] or {}) if run["finished"] else {}
        values = [number(told[name], 5) if name in told else "" for name in names]
        rows.append([run["name"], states if run["anchors"] else "unreadable", *values])
    if natural_width(rows) <= width():
        return rows
    joined = [", ".join(f"{n} {v}" for n, v in zip(names, row[2:], strict=True) if v) for row in rows[1:]]
    return [[*rows[0][:2], "metrics"], *([*row[:2], told] for row, told in zip(rows[1:], joined, strict=True))]


def _count(number: Any) -> str:
    return f"{number:,}" if isinstance(number, int) else str(number)
