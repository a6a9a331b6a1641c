"""What queries, searches and sketches cost, as ratios to training the same window in the same process.

    make bench                             # or: python benchmarks/speed.py [--windows text_24 text_96]

Every figure is a median with the least and the most of some repeats, taken in turn with the baseline it is divided by.
Writes docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from fidelity import load

import orderscope as osc

REPEATS = 5
ORDERS = 64


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratios(baseline: Callable[[], object], work: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Time of `work` over time of `baseline`, one after the other."""
    baseline()
    return [seconds(work) / seconds(baseline) for _ in range(repeats)]


def told(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def window(name: str) -> list[str]:
    task = osc.Task(**load(f"windows.py:{name}"))
    rng = np.random.default_rng(0)
    orders = np.stack([np.asarray(task.order)[rng.permutation(task.steps)] for _ in range(ORDERS)])

    def train() -> None:
        osc.retrain(task, task.order)

    with tempfile.TemporaryDirectory() as folder:
        count = iter(range(100))
        recorded = ratios(train, lambda: osc.record(task, f"{folder}/{next(count)}"), 3)
        sim = osc.Simulator(f"{folder}/0", task)
        metric = next(iter(task.metrics))
        sim.predict(orders[:1], metrics=[metric])
        sim.score(orders[:1], metric)
        predicted = ratios(train, lambda: sim.predict(orders, metrics=[metric]), 3)
        scored = ratios(train, lambda: sim.score(orders, metric), 3)
        plan = sim.plan.cost()
        size = sum(f.stat().st_size for f in Path(f"{folder}/0").iterdir()) / 1e6
    speed_up = [ORDERS / r for r in predicted]
    search = [ORDERS / r for r in scored]
    return [
        f"| {name} | {task.layout.size} | {task.steps} | {told(recorded, 1)} | {sum(plan.values()) + 7:.1f} "
        f"| {told(speed_up, 1)} | {told(search, 1)} | {size:.0f} |"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", nargs="*", default=["digits", "text_24", "text_mixed", "text_96"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "benchmarks.md")
    options = parser.parse_args()
    lines = [
        "# Speed", "",
        f"Measured {datetime.date.today()} by `make bench`: torch {torch.__version__}, Python"
        f" {platform.python_version()}, {os.cpu_count()} cores of a shared machine, CPU, one thread a process.",
        "Medians, in brackets the least and the most of three repeats, each divided by a training of the same window",
        "measured right after it. No GPU was at hand: nothing here has run on one.", "",
        "| window | weights | steps | record and sketch, in runs (wall) | in runs (gradients)"
        " | orders predicted in the time of one training | orders scored for a search in that time | MB on disk |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name in options.windows:
        lines += window(name)
        print(lines[-1], flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines += [
        "",
        f"`predict` and `score` are given {ORDERS} orders at once. Peak memory of the whole benchmark: {peak:.0f} MiB.",
        "",
        "What recording adds to a training step is measured by `python benchmarks/recording.py`, resumption after",
        "`SIGKILL` by `python benchmarks/kills.py`.",
    ]
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
