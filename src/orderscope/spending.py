"""Buy a recording by measurement: a least one first, then what narrows the error of left-out runs most for its cost."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from orderscope.budget import QUICK, RUNS, RUNS_OF_QUICK, Held, falling, purchase
from orderscope.costs import cpu_seconds, recording_seconds, training_seconds
from orderscope.engine.worth import worth
from orderscope.names import REFERENCE
from orderscope.sketch import Anchor, SketchPlan
from orderscope.store import RunStore

# The second, at the end, costs 1.3 runs and takes text_96 from 0.35 to 0.27, digits from 0.59 to 0.56 (three probes).
LEAST_ANCHORS = 2
MOST_AT_ONCE = 2048  # curvature rows of a pass
LEAST_PROBES = 3  # two in blocks and one shuffle: fewer calibrate nothing
KEPT_THIRD = 30.0  # honest runs from which the reference keeps a third state: on less, two anchors are the most
MOST_PASSES = 12
# CPU of building the table and of the first answer over that of measuring, for each run and anchor in the table, and
# how many times that a pass adds: 2.1 runs on text_24 with one pass, 4.1 with three and one probe more; 4.5 on
# text_mixed with three passes, 8.4 with six and two probes more.
TABLE, PASS_TABLE = 0.2, 1.5
AT_ONCE = 0.5  # of what is left is spent before measuring anew
WORTH_IT = 4.0  # times what measuring costs must be left for it; on less the law's priors decide
# What measuring costs, before it was done once: 2.3 runs on text_24 (0.19 s of CPU a run), 2.5 on text_mixed (0.42 s),
# 7 on digits (0.05 s).
MEASURING_RUNS, MEASURING_SECONDS = 2.0, 0.2
# Pseudo-gradients of held-out rows, in passes over the order, and the least and most of them. With 1,152, 512, 256 and
# 128, one anchor, five probes and one pass, two seeds, mae is on text_24 (384 samples) 0.163, 0.189, 0.175, 0.194 and
# 0.122, 0.141, 0.137, 0.161; on text_mixed (768) 0.272, 0.304, 0.308, 0.260 and 0.534, 0.519, 0.483, 0.668; on digits
# (480) within 0.006. On text_96 (1,536), six probes and two passes, 1,152 and 256 give 0.255, 0.339 and 0.160, 0.270.
HELD_OUT_PASSES, LEAST_HELD_OUT, MOST_HELD_OUT = 0.75, 256, 1152


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
        """One honest run."""
        return training_seconds(self._store) or math.inf

    @property
    def spent(self) -> float:
        """Honest runs."""
        return (self._before + cpu_seconds() - self._began) / self.run

    @property
    def budget(self) -> float:
        """Honest runs that may be spent."""
        if self._asked is not None:
            return self._asked
        return RUNS_OF_QUICK if self.run < QUICK else RUNS

    @property
    def asked(self) -> bool:
        return self._asked is not None


def bought(store: RunStore, plan: SketchPlan, purse: Purse, used: int, most_rows: int) -> SketchPlan:
    """The plan that comes after one whose units are all computed.

    Args:
        used: samples of the order.
        most_rows: pseudo-gradients that may be drawn in all.
    """
    began = time.process_time()
    passes = _passes(plan)
    held = Held(plan.probes, len(plan.anchors), len(passes))
    prices = _prices(store, plan, purse.run)
    measuring = MEASURING_RUNS + MEASURING_SECONDS / purse.run
    table = TABLE * measuring
    prices |= {"probes": prices["probes"] + table, "anchors": prices["anchors"] + table,
               "curvature": prices["curvature"] + PASS_TABLE * table}  # fmt: skip
    reserve = table * (held.probes + 1 + held.anchors)
    found = worth(store) if plan.metrics and purse.budget - purse.spent - reserve > WORTH_IT * measuring else None
    left = purse.budget - purse.spent - reserve
    parts = ("probes", "anchors", "curvature")
    if found is not None:
        error, falls = found.error, falling(found.error, found.growth, held, found.left)
    elif "error" in plan.measured:  # what was found before still holds
        error, falls = plan.measured["error"], {part: plan.measured[f"falls:{part}"] for part in parts}
    else:
        error, falls = 1.0, falling(1.0, None, held)
    known = found is not None or "error" in plan.measured
    # By the priors alone nobody can tell when to stop: text_mixed, seed 1, would with three probes, 0.415 and coverage
    # 0.25, where twenty runs give 0.256 and 0.88.
    stops = known and not purse.asked
    again = found is not None and left * (1 - AT_ONCE) > WORTH_IT * measuring
    kept = len(store.attrs(f"record/{REFERENCE}/segment-000")["boundaries"]) - 1
    most = {"probes": 1 << 20, "anchors": kept, "curvature": min(MOST_PASSES, max(1, most_rows // max(1, used)))}
    wanted = purchase(error, falls, held, prices, max(0.0, left * (AT_ONCE if again else 1)), most=most,
                      spent=purse.spent + reserve if stops else None)  # fmt: skip
    first = "budget" not in plan.measured
    measured = {key: value for key, value in plan.measured.items() if key in ("asked", "short")}
    measured |= {"budget": purse.budget, "spent": purse.spent, "reserve": reserve}
    measured |= {"error": error} if known else {}
    measured |= {f"falls:{part}": value for part, value in falls.items()}
    if first and left <= 0:
        measured["short"] = 1.0
    measured |= {f"price:{part}": value for part, value in prices.items()}
    store.log({"event": "bought", "cpu": time.process_time() - began, **measured})
    return grown(store, plan, wanted, settled=not again or wanted == held, measured=measured)


def grown(store: RunStore, plan: SketchPlan, wanted: Held, *, settled: bool, measured: dict[str, float]) -> SketchPlan:
    """The plan with more of it; what there is keeps its place."""
    boundaries = store.attrs(f"record/{REFERENCE}/segment-000")["boundaries"]
    taken = {a.segment for a in plan.anchors}
    # The end first: what leads there is least known.
    free = [k for k in reversed(range(1, len(boundaries))) if k not in taken]
    more = [Anchor(REFERENCE, k, int(boundaries[k]), False) for k in free[: wanted.anchors - len(plan.anchors)]]
    passes = _passes(plan)
    return replace(
        plan,
        probes=wanted.probes,
        anchors=[*plan.anchors, *more],
        curvature_ids=passes[0] * wanted.curvature,
        settled=settled,
        measured=measured,
    )


def _passes(plan: SketchPlan) -> list[list[list[int]]]:
    """The curvature's blocks, one list for each pass over the same samples; each draws numbers of its own."""
    first = plan.curvature_ids[0]
    count = plan.curvature_ids.count(first)
    size = len(plan.curvature_ids) // count
    return [plan.curvature_ids[i * size : (i + 1) * size] for i in range(count)]


def _prices(store: RunStore, plan: SketchPlan, run: float) -> dict[str, float]:
    """Of one more probe, anchor and pass, in honest runs, by what the last ones have cost."""
    seconds: dict[str, list[float]] = {"probe": [], "known": [], "rows": [], "curvature": []}
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
        "anchors": middle["rows"] * len(plan.blocks) / run,
        "curvature": middle["curvature"] * per_pass / run,
    }


def told_least(plan: SketchPlan) -> str | None:
    """One line for a budget below what the least recording costs; None where it was enough."""
    if not plan.measured.get("short"):
        return None
    cost, budget = plan.measured["spent"] + plan.measured["reserve"], plan.measured["budget"]
    return f"the least recording costs about {cost:.1f} runs, more than a budget of {budget:g}"
