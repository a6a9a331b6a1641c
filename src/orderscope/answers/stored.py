"""Results stored in a run: validations, proposals, position maps and errors step by step, each an immutable shard of
its own."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from orderscope.errors import DamagedRun
from orderscope.store import RunStore
from orderscope.studies.heatmap import Heat
from orderscope.studies.step_map import COLUMNS, TABLES, StepErrorMap

VALIDATIONS, PROPOSALS, POSITIONS, STEP_ERRORS = "validation/", "proposal/", "positions/", "step-errors/"


@dataclass(frozen=True)
class StoredValidation:
    """Unseen orders that were trained; see `orderscope.studies.validation`.

    Args:
        orders: int64 [n, steps, batch].
        predicted, error, true: metric -> predicted value, half-width of its 90 % interval, and true value, [n].
        noise_floor: metric -> spread with the order of steps unchanged; metrics without one are left out.
    """

    orders: np.ndarray
    predicted: dict[str, np.ndarray]
    error: dict[str, np.ndarray]
    true: dict[str, np.ndarray]
    noise_floor: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredProposal:
    """A proposal as it was made; see `orderscope.propose`.

    Args:
        order: the proposed order, int64 [steps, batch].
        facts: its numbers and texts, JSON values by name.
        table: the best order of every strategy, one mapping a row.
    """

    order: np.ndarray
    facts: dict[str, Any]
    table: list[dict[str, Any]]


def validations(store: RunStore) -> list[StoredValidation]:
    """All validations of a run, oldest first."""
    found = []
    for name in store.names(VALIDATIONS):
        attrs = store.attrs(name)
        found.append(
            StoredValidation(
                orders=store.read(name, ["order"])["order"],
                predicted=_arrays(attrs.get("predicted")),
                error=_arrays(attrs.get("error")),
                true=_arrays(attrs.get("true")),
                noise_floor={k: v for k, v in (attrs.get("noise_floor") or {}).items() if v is not None},
            )
        )
    return found


def keep_proposal(store: RunStore, proposal: Any) -> str:
    """Write a proposal into a run.

    Args:
        store: the run, opened for writing.
        proposal: an `orderscope.search.Proposal`.

    Returns:
        Name of its shard.
    """
    name = store.next_name(PROPOSALS)
    store.write(name, {"order": np.asarray(proposal.order)}, proposal_facts(proposal))
    return name


def proposal_facts(proposal: Any) -> dict[str, Any]:
    """A `Proposal` as JSON values, without its orders."""
    names = (
        "metric", "maximize", "predicted", "error", "confirmed", "reference", "random", "gain_sigma", "scored", "cost",
        "best_of_n", "undetectable", "true", "notes", "verdict", "searched",
        "refined", "why",
    )  # fmt: skip
    row, point = ("name", "source", "predicted", "error", "confirmed"), ("name", "metrics", "true")
    simple, sort = proposal.simple, proposal.sort
    return {name: json_value(getattr(proposal, name)) for name in names} | {
        "elsewhere": None if proposal.elsewhere is None else json_value(proposal.elsewhere._asdict()),
        "effect": None if proposal.effect is None else proposal.effect.as_json(),
        "parts": [json_value(asdict(part)) for part in proposal.parts],
        "simple": None
        if simple is None
        else json_value(
            {
                "groups": list(simple.schedule.groups),
                "density": simple.schedule.density,
                "words": simple.schedule.words(),
                "predicted": simple.predicted,
                "confirmed": simple.confirmed,
                "kept": simple.kept,
            }
        ),
        "sort": None
        if sort is None
        else json_value(
            {
                "by": str(sort.by),
                "correlation": sort.by.correlation,
                "predicted": sort.predicted,
                "confirmed": sort.confirmed,
                "kept": sort.kept,
            }
        ),
        "table": [
            {key: json_value(getattr(entry, key)) for key in row}
            | {"proposed": bool(np.array_equal(entry.order, proposal.order))}
            | {"parts": [json_value(asdict(part)) for part in entry.parts]}
            for entry in proposal.table
        ],
        "front": [{key: json_value(getattr(entry, key)) for key in point} for entry in proposal.front],
    }


def proposals(store: RunStore) -> list[StoredProposal]:
    """All proposals of a run, oldest first."""
    found = []
    for name in store.names(PROPOSALS):
        facts = store.attrs(name)
        table = facts.pop("table")
        found.append(StoredProposal(store.read(name, ["order"])["order"], facts, table))
    return found


def keep_heat(store: RunStore, heat: Heat) -> str:
    """Write a position map into a run.

    Args:
        store: the run, opened for writing.
        heat: the map.

    Returns:
        Name of its shard.
    """
    name = store.next_name(POSITIONS)
    store.write(name, heat.arrays(), {"metric": heat.metric})
    return name


def heats(store: RunStore) -> list[Heat]:
    """All position maps of a run, oldest first."""
    names = store.names(POSITIONS)
    return [Heat(**store.read(name), metric=store.attrs(name).get("metric", "")) for name in names]


def keep_step_errors(store: RunStore, found: StepErrorMap) -> str:
    """Write the errors of predicted gradients, step by step, into a run.

    Their cost varies between machines and goes to the journal, so that equal runs have equal shards.

    Args:
        store: the run, opened for writing.
        found: the errors.

    Returns:
        Name of the shard.
    """
    name = store.next_name(STEP_ERRORS)
    store.write(name, found.arrays(), {"metric": found.metric, "runs": found.runs, "without": found.without})
    if math.isfinite(found.cost):
        store.log({"event": "step errors", "shard": name, "runs": found.cost})
    return name


def kept_step_errors(store: RunStore, metric: str, runs: Collection[str] | None = None) -> StepErrorMap | None:
    """The latest stored errors of a metric; None if there are none.

    Args:
        store: the run on disk.
        metric: name of the held-out loss.
        runs: names of the true runs that they must cover; any by default.

    Raises:
        DamagedRun: its arrays have different lengths.
    """
    for name in reversed(store.names(STEP_ERRORS)):
        attrs = store.attrs(name)
        of, without = tuple(attrs["runs"]), tuple(attrs["without"])
        if attrs["metric"] != metric or (runs is not None and {*of, *without} != set(runs)):
            continue
        arrays = store.read(name)
        shape = arrays["effect"].shape
        sound = len(shape) == 2 and shape[0] == len(of) and all(arrays[key].shape == shape for key in TABLES)
        if not sound or any(arrays[key].shape != shape[:1] for key in COLUMNS):
            raise DamagedRun(f"arrays of {name} of different lengths", "one row per run", "record the run again")
        costs = [event.get("runs") for event in store.journal() if event.get("shard") == name]
        known = [float(cost) for cost in costs if isinstance(cost, int | float)]
        kept = {key: arrays[key] for key in (*TABLES, *COLUMNS)}
        return StepErrorMap(metric, of, without, **kept, cost=known[-1] if known else math.nan)
    return None


def json_value(value: Any) -> Any:
    """A number, text, list or mapping as JSON values: arrays become lists, numbers that are not finite None."""
    if isinstance(value, dict):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number_of(value: float | None) -> float:
    """The inverse of `json_value` for a number: None becomes NaN."""
    return math.nan if value is None else float(value)


def because(facts: dict[str, Any]) -> str:
    """Why a proposal is undetectable, in words; a general reason for proposals of an earlier version."""
    return str(facts.get("why") or "training random orders at the same cost is expected to gain as much")


def _arrays(values: dict[str, Any] | None) -> dict[str, np.ndarray]:
    return {name: np.array(column, dtype=np.float64) for name, column in (values or {}).items()}
