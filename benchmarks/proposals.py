"""Proposals and plain rules beside luck, on fresh rows nobody searched; docs/proposals.md shows what it measured.

    python benchmarks/proposals.py --windows text_24 text_96 --seeds 5 6

Every order is truly trained, and judged on fresh rows of the held-out rows' source: 2,100 of text, and the digits that
are neither trained on nor held out, 917. Gains are in standard deviations of random orders (shuffled steps) on those
rows, counted from their mean: more is better. The best of N is chosen on the recorded held-out rows, N being what the
proposal cost in runs, in CPU seconds of everything, up to 256; where it cost more the table says so.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import windows
from measured import DATA, merge, origin
from torch.utils.data import default_collate

import orderscope as osc
from orderscope.search.readable import Schedule

STEPS = {"text_24": (24, False), "text_96": (96, False), "text_512": (512, False), "text_mixed": (48, True)}
WINDOWS = [*STEPS, "digits"]
RULES = ("interleave", "easy first", "hard first", "easy groups first", "influence sort", "impulse sort",
         "valley of the average", "best data last", "group bandit", "group schedule", "descent", "regroup")  # fmt: skip
FRESH = 700  # rows of each domain
MOST = 256  # random orders truly trained


@dataclass
class Result:
    """One window; gains on fresh rows.

    Args:
        gains: name -> gain.
        searched: gain of the proposal on the rows that were searched and confirmed on.
        noise: standard error of a gain on the fresh rows.
        std: standard deviation of random orders on fresh rows, in units of the loss.
        cost: of the proposal, in runs.
        randoms: of how many random orders the best is taken: `cost`, or `MOST` where it is more.
        verdict: the product's own.
        inside: whether the fresh gain over the reference lies in the interval given for other rows; None where none is.
        transfer: where the simple schedule was played -> gain there.
    """

    gains: dict[str, float]
    searched: float
    noise: float
    std: float
    cost: float
    randoms: int
    verdict: str
    inside: bool | None
    transfer: dict[str, float] = field(default_factory=dict)


def fresh_rows(seed: int) -> Any:
    generator = torch.Generator().manual_seed(10_000 + seed)
    texts = {
        name: torch.tensor([min(ord(c), windows.characters.ALPHABET - 1) for c in text])
        for name, text in windows.characters.corpora().items()
    }
    rows = []
    for name in sorted(texts):
        starts = torch.randint(len(texts[name]) - windows.characters.CONTEXT - 1, (FRESH,), generator=generator)
        rows.append(texts[name].unfold(0, windows.characters.CONTEXT + 1, 1)[starts])
    return windows.characters.Passages(torch.cat(rows))


def judged(kw: dict[str, Any], fresh: Any) -> osc.Task:
    return osc.Task(**(kw | {"metrics": kw["metrics"] | {"fresh": fresh}}))


def shuffles(task: osc.Task, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([task.order[rng.permutation(task.steps)] for _ in range(count)])


def window_of(name: str, seed: int) -> tuple[dict[str, Any], Any]:
    """Keyword arguments of a task, and its fresh rows; of the digits there is one draw only."""
    if name == "digits":
        return windows.digits(), windows.other_digits()
    steps, mixed = STEPS[name]
    return windows.text_window(steps, mixed=mixed, seed=seed), fresh_rows(seed)


def measure(window: str, seed: int, search_seed: int, randoms: int) -> Result:
    kw, fresh = window_of(window, seed)
    task, judge = osc.Task(**kw), judged(kw, fresh)
    osc.retrain(task, task.order)  # warms up
    began = time.process_time()
    osc.retrain(task, task.order[None].repeat(4, 0))
    run = (time.process_time() - began) / 4
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        osc.record(task, f"{folder}/run", jobs=1)
        best = osc.propose(osc.Simulator(f"{folder}/run", task), "eval", anyway=True, seed=search_seed)
        cost = (time.process_time() - began) / run
    count = min(MOST, max(randoms, math.ceil(cost)))
    true = osc.retrain(judge, shuffles(task, count, 29)).metrics
    mean, std = float(true["fresh"].mean()), float(true["fresh"].std(ddof=1))
    orders = {"proposal": best.order, "as recorded": task.order}
    if best.simple is not None:
        orders["its simple schedule"] = best.simple.order
    for row in reversed(best.table):
        if row.name in RULES:
            orders[row.name] = row.order
    found = osc.retrain(judge, np.stack(list(orders.values())))
    gains = {name: (mean - float(v)) / std for name, v in zip(orders, found.metrics["fresh"], strict=True)}
    used = min(math.ceil(cost), count)
    luck = int(true["eval"][:used].argmin())
    gains["best of N random"] = (mean - float(true["fresh"][luck])) / std
    gains["averaged experts"] = (mean - averaged_experts(kw, judge, fresh)) / std
    apart = found.losses["fresh"][0] - found.losses["fresh"][1]
    other, fresh_gain = best.elsewhere, -float(apart.mean())
    return Result(
        gains=gains,
        searched=(float(true["eval"].mean()) - float(found.metrics["eval"][0])) / float(true["eval"].std(ddof=1)),
        noise=float(apart.std(ddof=1)) / math.sqrt(len(apart)) / std,
        std=std,
        cost=cost,
        randoms=used,
        verdict=best.verdict,
        inside=None if other is None else abs(other.gain - fresh_gain) <= other.error,
        transfer={} if best.simple is None or window == "digits" else transferred(best.simple.schedule, window, seed),
    )


def averaged_experts(kw: dict[str, Any], judge: osc.Task, fresh: Any) -> float:
    """Fresh loss of the mean of one model a group, each trained on the steps of its own alone from the start, weighted
    by their number; batches that mix groups have none."""
    order, groups = np.asarray(kw["order"]), np.array(kw["groups"])
    total, weights = torch.zeros(judge.layout.size), 0
    for name in np.unique(groups):
        own = order[(groups[order] == name).all(1)]
        if not len(own):
            return math.nan
        found = osc.retrain(osc.Task(**(kw | {"order": own})), own, keep_parameters=True).parameters
        assert found is not None
        total, weights = total + len(own) * found[0], weights + len(own)
    model = judge.build_model()
    torch.nn.utils.vector_to_parameters(total / weights, judge.layout.of_model(model))
    with torch.no_grad():
        return float(kw["loss"](model, default_collate([fresh[i] for i in range(len(fresh))])).mean())


def transferred(schedule: Schedule, window: str, seed: int) -> dict[str, float]:
    """Gain of the schedule on another draw of samples, and on one twice as long."""
    found, (steps, mixed) = {}, STEPS[window]
    for what, length in (("another draw", steps), ("twice as long", 2 * steps)):
        kw = windows.text_window(length, mixed=mixed, seed=seed + 100)
        judge = judged(kw, fresh_rows(seed + 100))
        labels = np.array([schedule.groups.index(name) for name in kw["groups"]])
        codes = labels if mixed else labels[judge.order[:, 0]]
        order = schedule.order(judge.order, codes, regroup=mixed)
        true = osc.retrain(judge, np.concatenate([order[None], shuffles(judge, 24, 31)])).metrics["fresh"]
        found[what] = float((true[1:].mean() - true[0]) / true[1:].std(ddof=1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", nargs="*", default=["text_24", "text_96"], choices=WINDOWS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[5, 6], help="of the samples")
    parser.add_argument("--search-seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--randoms", type=int, default=48)
    parser.add_argument("--out", type=Path, default=DATA / "proposals.json", help="the data that rows are put into")
    options = parser.parse_args()
    for window in options.windows:
        for seed in options.seeds:
            for search in options.search_seeds:
                found = measure(window, seed, search, options.randoms)
                print(window, seed, search, found, flush=True)
                merge(options.out, "rules", [row(window, seed, search, found)])


def row(window: str, seed: int, search: int, found: Result) -> dict[str, Any]:
    gains = found.gains | {f"the simple schedule on {name}": gain for name, gain in found.transfer.items()}
    figures = {name.replace(" ", "_"): round(gain, 2) for name, gain in gains.items() if math.isfinite(gain)}
    figures |= {
        "searched": round(found.searched, 2), "noise": round(found.noise, 2), "std": found.std,
        "cost": round(found.cost), "randoms": found.randoms, "verdict": found.verdict,
        "inside": {True: "yes", False: "no", None: ""}[found.inside],
    }  # fmt: skip
    command = f"python benchmarks/proposals.py --windows {window} --seeds {seed} --search-seeds {search}"
    return {"window": window, "samples": seed, "search": search, "figures": figures} | origin(command, "search")


if __name__ == "__main__":
    main()
