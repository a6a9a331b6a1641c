"""Every strategy's best order, predicted and truly trained, on some windows; writes docs/proposals.md.

    python benchmarks/proposals.py --windows text_24 digits

Gains are in standard deviations of truly trained random orders (shuffled steps), from their mean; more is better.
Predicted and error are of `Simulator.predict`. Nothing is tuned for a window.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fidelity import load
from scipy.stats import spearmanr

import orderscope as osc
from orderscope.search import STRATEGIES

HERE = Path(__file__).parent
WINDOWS = ["text_24", "text_mixed", "digits"]


@dataclass(frozen=True)
class Result:
    """One window, gains in standard deviations of random orders.

    Args:
        rows: strategy -> (predicted gain, error, true gain).
        rank: Spearman correlation of predicted and true over strategies.
        proposed: true gain of the proposal.
        claimed: its predicted gain.
        rival: true gain of the best of `cost` truly trained random orders, fresh ones.
        cost: what the proposal cost, in runs.
        std: standard deviation of random orders, in units of the metric.
        undetectable: whether the product itself says so.
        notes: why strategies are missing.
    """

    rows: dict[str, tuple[float, float, float]]
    rank: float
    claimed: float
    proposed: float
    rival: float
    cost: float
    std: float
    undetectable: bool
    notes: list[str]


def measure(window: str, metric: str, randoms: int, seed: int) -> Result:
    task = osc.Task(**load(f"windows.py:{window}"))
    osc.retrain(task, task.order)  # warms up
    rng = np.random.default_rng(seed)
    shuffled = np.stack([task.order[rng.permutation(task.steps)] for _ in range(randoms)])
    began = time.process_time()
    random = osc.retrain(task, shuffled).metrics[metric]
    run = (time.process_time() - began) / randoms
    mean, std = float(random.mean()), float(random.std(ddof=1))
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        osc.record(task, f"{folder}/run", jobs=1)
        sim = osc.Simulator(f"{folder}/run", task)
        best = osc.propose(sim, metric)
        cost = (time.process_time() - began) / run
        kept = {row.name: row.order for row in reversed(best.table)}
        orders = np.stack(list(kept.values()))
        prediction = sim.predict(orders, metrics=[metric])
    true = osc.retrain(task, orders).metrics[metric]
    many = np.stack([task.order[rng.permutation(task.steps)] for _ in range(math.ceil(cost))])
    fresh = osc.retrain(task, many).metrics[metric]
    predicted, error = (mean - prediction.metrics[metric]) / std, prediction.error[metric] / std
    gains = (mean - true) / std
    assert best.confirmed is not None
    return Result(
        rows={n: (float(predicted[i]), float(error[i]), float(gains[i])) for i, n in enumerate(kept)},
        rank=float(np.asarray(spearmanr(predicted, gains))[0]),
        claimed=(mean - best.predicted) / std,
        proposed=(mean - best.confirmed) / std,
        rival=(mean - float(fresh.min())) / std,
        cost=cost,
        std=std,
        undetectable=best.undetectable,
        notes=best.notes,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", nargs="*", default=WINDOWS)
    parser.add_argument("--metric", default="eval")
    parser.add_argument("--randoms", type=int, default=64)
    parser.add_argument("--seed", type=int, default=29)
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "proposals.md")
    options = parser.parse_args()
    found = {name: measure(name, options.metric, options.randoms, options.seed) for name in options.windows}
    options.out.write_text(page(found, options), encoding="utf-8")


def page(found: dict[str, Result], options: argparse.Namespace) -> str:
    ran = f"python benchmarks/proposals.py --windows {' '.join(options.windows)}"
    lines = [
        "# Proposals", "",
        "The best order of every strategy, predicted and then truly trained. Gains are in standard deviations of",
        f"{options.randoms} truly trained random orders (shuffled steps), counted from their mean: more is better.",
        "Everything is at default settings. Cost is CPU time of recording, searching and confirming over that of",
        "training once; the best of as many random orders was truly trained too.", "",
        f"Measured {datetime.date.today()} by `{ran}`: torch {torch.__version__}, Python {platform.python_version()},"
        f" {os.cpu_count()} cores, CPU.", "",
        "## The proposal", "",
        "| window | std of random orders | cost in runs | predicted | true | best of as many random | detectable |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, r in found.items():
        cells = [name, f"{r.std:.2g}", f"{r.cost:.0f}", f"{r.claimed:+.1f}", f"{r.proposed:+.1f}", f"{r.rival:+.1f}",
                 "no" if r.undetectable else "yes"]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    columns = " | ".join(f"{name}: predicted | true" for name in found)
    head = f"| strategy | {columns} | source |"
    lines += ["", "## Every strategy", "", head, "|---" * (2 + 2 * len(found)) + "|"]
    for name, strategy in STRATEGIES.items():
        cells = []
        for r in found.values():
            predicted, error, true = r.rows.get(name, (np.nan, np.nan, np.nan))
            cells += [f"{predicted:+.1f} ± {error:.1f}", f"{true:+.1f}"] if name in r.rows else ["", ""]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {strategy.source} |")
    ranks = " | ".join(f"{r.rank:.2f} | " for r in found.values())
    lines += [f"| *rank correlation over strategies* | {ranks}| |", "", "## Which rules hold where", ""]
    for name, r in found.items():
        rules = {n: row[2] for n, row in r.rows.items() if not (STRATEGIES[n].guided or STRATEGIES[n].weight)}
        good = sorted((n for n in rules if rules[n] >= 1), key=lambda n: -rules[n])
        bad = sorted((n for n in rules if rules[n] <= -1), key=lambda n: rules[n])
        better, worse = ", ".join(good) or "none", ", ".join(bad) or "none"
        lines.append(f"- **{name}**: a standard deviation or more better than chance: {better}; worse: {worse}.")
    lines += ["", "A strategy without figures had nothing to go by:", ""]
    for name, r in found.items():
        silent = [note for note in r.notes if note.partition(":")[0] in STRATEGIES]
        lines += [f"- {name}: {note}" for note in silent]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
