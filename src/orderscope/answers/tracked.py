"""The data of a run in the form of an experiment tracker: a configuration, a summary, curves and tables."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orderscope.answers.effect import effects
from orderscope.answers.fidelity import fidelity
from orderscope.answers.stored import StoredProposal, proposals
from orderscope.answers.tables import Table, tables
from orderscope.answers.trials import stored_trials
from orderscope.orders import order_hash
from orderscope.recording.costs import part_runs
from orderscope.text import plain

if TYPE_CHECKING:
    from orderscope.simulation.simulator import Simulator

Value = str | int | float | bool
CONFIG = ("model", "size", "dtype", "optimizer", "scheduler", "steps", "batch", "samples", "max_grad_norm", "warm")
LOSS = "batch loss"


@dataclass(frozen=True)
class Tracked:
    """One run for a tracker.

    Args:
        name: name of the run: of its file or directory.
        config: what was recorded.
        summary: name/of/the/number -> value, finite; `METRIC/sigma_order`, `METRIC/spearman`, `proposal/confirmed`.
        curves: name of a recorded run -> metric -> [(step, value)], steps rising.
        tables: as `orderscope export` writes them.
        order: that of `chosen_order`, int64 [steps, batch].
        left_out: queried orders that are in no table, each with the reason.
    """

    name: str
    config: dict[str, Value]
    summary: dict[str, Value]
    curves: dict[str, dict[str, list[tuple[int, float]]]]
    tables: dict[str, Table]
    order: np.ndarray
    left_out: list[str]


def tracked(sim: Simulator) -> Tracked:
    """The records of a run for a tracker. No model is run."""
    found, left_out = tables(sim)
    order, proposal = chosen_order(sim)
    return Tracked(
        name=plain(Path(sim.path).resolve().name) or "run",
        config=_config(sim) | {"order_hash": order_hash(order)},
        summary=_finite(_summary(sim) | _proposed(proposal)),
        curves=_curves(found),
        tables=found,
        order=order,
        left_out=left_out,
    )


def chosen_order(sim: Simulator) -> tuple[np.ndarray, StoredProposal | None]:
    """The order of the last proposal that was confirmed, else of the last, and the proposal. Where nothing was proposed
    the best trial of a study and None; where none is better than the recorded order, that order."""
    made = proposals(sim.store)
    last = ([p for p in made if p.facts["confirmed"] is not None] or made or [None])[-1]
    if last is not None:
        return last.order, last
    metric = next(iter(sim.metric_names), None)
    best = min(stored_trials(sim.store, metric), key=lambda trial: trial.rank, default=None)
    better = best is not None and best.rank < (-1 if best.maximize else 1) * sim.reference[best.metric]
    return (best.order if best is not None and better else sim.order), None


def _config(sim: Simulator) -> dict[str, Value]:
    facts = sim.description
    found = {key: plain(v) if isinstance(v, str) else v for key in CONFIG if (v := facts.get(key)) is not None}
    return found | {
        "groups": ", ".join(map(plain, facts["group_names"])),
        "reference_order_hash": order_hash(sim.order),
        "orderscope": plain(str(facts["environment"].get("orderscope") or "unknown")),
    }


def _summary(sim: Simulator) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for effect in effects(sim, sim.metric_names):
        name = plain(effect.metric)
        found |= {
            f"{name}/reference": effect.reference,
            f"{name}/sigma_order": effect.sigma,
            f"{name}/noise": effect.noise,
            f"{name}/verdict": effect.verdict,
        }
        checked = fidelity(sim.store, effect.metric)
        if checked is not None:
            numbers = asdict(checked)
            numbers.pop("metric")
            found |= {f"{name}/validated_{key}": value for key, value in numbers.items()}
    spent = part_runs(sim.store)
    return found | ({"cost/recording_runs": float(sum(spent.values()))} if spent else {})


def _proposed(proposal: StoredProposal | None) -> dict[str, Value]:
    if proposal is None:
        return {}
    names = ("metric", "predicted", "error", "confirmed", "reference", "best_of_n", "cost", "scored", "undetectable")
    values = {name: proposal.facts[name] for name in names}
    return {f"proposal/{n}": plain(v) if isinstance(v, str) else v for n, v in values.items() if v is not None}


def _finite(values: dict[str, Value]) -> dict[str, Value]:
    return {name: v for name, v in values.items() if not isinstance(v, float) or math.isfinite(v)}


def _curves(found: dict[str, Table]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for record in found["curves"].records():
        if record["value"] is not None:
            points = curves.setdefault(record["run"], {}).setdefault(record["metric"], [])
            points.append((record["step"], record["value"]))
    losses = [(r["step"], r["loss"]) for r in found["steps"].records() if r["loss"] is not None]
    if losses:
        curves.setdefault("reference", {})[LOSS] = losses
    return curves
