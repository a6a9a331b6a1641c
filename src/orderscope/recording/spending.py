"""Spend a budget of runs: fixed shares first, then the part that reduces the error of left-out runs most for its
cost."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from orderscope.engine.worth import worth
from orderscope.recording.budget import QUICK, RUNS, RUNS_OF_QUICK, Held, affordable, falling, purchase
from orderscope.recording.costs import cpu_seconds, recording_seconds, training_seconds
from orderscope.sketching import SketchPlan
from orderscope.store import RunStore
from orderscope.store.names import REFERENCE

FIRST = 0.65  # of a budget is spent in fixed shares before anything is measured, all of it where little would be left
WORTH_IT = 4.0  # measuring is done if this many times its cost is left of the budget
# What measuring costs: 2.3 runs on text_24 (0.19 s of CPU a run), 2.5 on text_mixed (0.42 s), 7 on digits (0.05 s).
MEASURING_RUNS, MEASURING_SECONDS = 2.0, 0.2
# CPU of building the table and of the first answer over that of measuring, for each run and anchor in the table, and
# how many times that a pass adds: 2.1 runs on text_24 with one pass, 4.1 with three and one probe more; 4.5 on
# text_mixed with three passes, 8.4 with six and two probes more.
TABLE, PASS_TABLE = 0.2, 1.5


class Purse:
    """Counts what a recording has cost, in seconds of CPU, also before it was resumed.

    Args:
        began: `cpu_seconds` at the start of this command.
    """

    def __init__(self, store: RunStore, began: float, budget: float | None) -> None:
        self._store, self._began, self._asked = store, began, budget
        self._before = recording_seconds(store)

    @property
    def run(self) -> float:
        """CPU seconds of one run."""
        return training_seconds(self._store) or math.inf

    @property
    def spent(self) -> float:
        """Runs spent so far."""
        return (self._before + cpu_seconds() - self._began) / self.run

    @property
    def budget(self) -> float:
        """Runs that are left to spend."""
        if self._asked is not None:
            return self._asked
        return RUNS_OF_QUICK if self.run < QUICK else RUNS

    @property
    def asked(self) -> bool:
        return self._asked is not None

    @property
    def measuring(self) -> float:
        """Runs that measuring costs."""
        return MEASURING_RUNS + MEASURING_SECONDS / self.run

    def first(self, *, mixed: bool, partial: bool, most_passes: int) -> tuple[Held, dict[str, float], bool]:
        """What is bought before anything is measured. To be asked once the reference run is recorded.

        Args:
            mixed: whether batches mix groups.
            partial: whether only some of the weights are carried.
            most_passes: most passes of the curvature.

        Returns:
            What is bought; what the decision rests on, numbers by name; and whether nothing is to be bought later.
        """
        settled = (1 - FIRST) * self.budget < WORTH_IT * self.measuring
        spend = self.budget * (1 if settled else FIRST)
        held = affordable(spend, self.run, mixed=mixed, partial=partial, most_passes=most_passes)
        cost = held.cost(self.run, mixed=mixed)
        rests = {"budget": self.budget, "run": self.run, "cost": cost}
        if self._asked is not None:
            rests["asked"] = self._asked
        if cost > self.budget:
            rests["short"] = 1.0
        return held, rests, settled


def bought(store: RunStore, plan: SketchPlan, purse: Purse, most_rows: int) -> SketchPlan:
    """The plan that comes after one whose units are all computed.

    Args:
        store: the run on disk.
        plan: its sketch so far.
        purse: what may be spent.
        most_rows: pseudo-gradients that may be drawn in all.
    """
    began = time.process_time()
    passes = _passes(plan)
    held, rows = Held(plan.probes, len(passes)), sum(map(len, passes[0])) * plan.draws
    table = TABLE * purse.measuring
    prices = _prices(store, plan, purse.run)
    prices = {"probes": prices["probes"] + table,
              "curvature": prices["curvature"] + PASS_TABLE * table * plan.draws}  # fmt: skip
    reserve = table * (held.probes + 1 + len(plan.anchors)) + PASS_TABLE * table * (plan.draws - 1)
    found = worth(store)
    measured = {**plan.measured, "spent": purse.spent, "reserve": reserve}
    wanted = held
    if found is not None:
        falls = falling(found.error, found.growth, held, found.left)
        wanted = purchase(found.error, falls, held, prices, purse.budget - purse.spent - reserve,
                          most_curvature=max(1, most_rows // max(1, rows)),
                          spent=None if purse.asked else purse.spent + reserve)  # fmt: skip
        measured |= {"error": found.error} | {f"growth:{part}": value for part, value in found.growth.items()}
        measured |= {f"price:{part}": value for part, value in prices.items()}
    store.log({"event": "bought", "cpu": time.process_time() - began, **measured})
    more = passes[0] * wanted.curvature
    return replace(plan, probes=wanted.probes, curvature_ids=more, settled=True, measured=measured)


def _passes(plan: SketchPlan) -> list[list[list[int]]]:
    """The curvature's blocks, one list for each time that the same samples come; each draws numbers of its own."""
    first = plan.curvature_ids[0]
    count = plan.curvature_ids.count(first)
    size = len(plan.curvature_ids) // count
    return [plan.curvature_ids[i * size : (i + 1) * size] for i in range(count)]


def _prices(store: RunStore, plan: SketchPlan, run: float) -> dict[str, float]:
    """Of one more probe and of once more the curvature, in honest runs, by what the last ones have cost."""
    seconds: dict[str, list[float]] = {"probe": [], "known": [], "curvature": []}
    segments: dict[str, float] = {}
    for event in store.journal():
        if event.get("event") == "segment" and str(event["run"]).startswith("probe-"):
            segments[str(event["run"])] = segments.get(str(event["run"]), 0.0) + float(event["cpu"])
        elif event.get("event") == "sketched":
            kind, which = str(event["unit"]).split("/")[1:]
            if kind in seconds and which != REFERENCE:
                seconds[kind].append(float(event["cpu"]))
    seconds["probe"] = list(segments.values())
    middle = {kind: float(np.median(values)) if values else 0.0 for kind, values in seconds.items()}
    per_pass = len(plan.curvature_ids) / len(_passes(plan))
    return {
        "probes": (middle["probe"] + middle["known"]) / run,
        "curvature": middle["curvature"] * per_pass / run,
    }


def told_least(plan: SketchPlan) -> str | None:
    """One line for a budget below what the least recording costs; None where it was enough."""
    if not plan.measured.get("short"):
        return None
    cost, budget = plan.measured["cost"], plan.measured["budget"]
    return f"the least recording costs about {cost:.1f} runs, more than a budget of {budget:g}"
