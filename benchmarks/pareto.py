"""Accuracy against speed and disk: how many coordinates are carried, and how much of the curvature is kept.

    python benchmarks/pareto.py [--windows text_24 text_96] [--orders 32]

Each row is a recording of its own, with one choice changed. Accuracy is what `Simulator.predict` reaches against true
retraining; speed is orders answered in the CPU time of one training measured right before. Its rows go into the
data that docs/benchmarks.md shows.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from fidelity import compare, load, unseen_orders
from measured import DATA, merge, origin
from speed import cpu_seconds

import orderscope as osc
from orderscope.engine import raw

COORDS = (4096, 16384, 1 << 20)
ENERGIES = (0.6, 0.8, 0.9, 0.95)
BASE = 16384, 0.8
REPEATS = 3


def settings() -> list[tuple[int, float]]:
    """Coordinates and share of the curvature's trace."""
    return sorted({(m, BASE[1]) for m in COORDS} | {(BASE[0], energy) for energy in ENERGIES})


def rows(name: str, orders: int) -> Iterator[dict[str, Any]]:
    task = osc.Task(**load(f"windows.py:{name}"))
    asked = unseen_orders(task, orders, 101)
    metric = next(iter(task.metrics))
    truth = osc.retrain(task, asked).metrics[metric]
    for coords, energy in settings():
        with tempfile.TemporaryDirectory() as folder:
            with patch.multiple(raw, ENERGY=energy, HIGH_ENERGY=energy):
                store = osc.record(task, f"{folder}/run", coords=coords)
            sim = osc.Simulator(f"{folder}/run")
            found = sim.predict(asked, metrics=[metric])
            ratios = [
                orders
                * cpu_seconds(lambda: osc.retrain(task, task.order))
                / cpu_seconds(lambda sim=sim: sim.predict(asked, metrics=[metric]))
                for _ in range(REPEATS)
            ]
            size = sum(shard.size for shard in store.describe()) / 1e6
        scores = compare(found.metrics[metric], found.error[metric], truth)
        figures = {
            "rank": len(sim.window.factor), "spearman": round(scores["spearman"], 3),
            "mae_ratio": round(scores["mae_ratio"], 2), "answers": round(statistics.median(ratios), 1),
            "least": round(min(ratios), 1), "most": round(max(ratios), 1), "megabytes": round(size),
        }  # fmt: skip
        print(name, sim.window.coords, energy, figures, flush=True)
        command = f"python benchmarks/pareto.py --windows {name} --orders {orders}"
        key = {"window": name, "coordinates": sim.window.coords, "energy": energy}
        yield key | {"figures": figures} | origin(command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", nargs="*", default=["text_24", "text_96", "text_mixed"])
    parser.add_argument("--orders", type=int, default=32, help="that are truly retrained")
    parser.add_argument("--out", type=Path, default=DATA / "benchmarks.json", help="the data that rows are put into")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.windows:
        for row in rows(name, options.orders):
            merge(options.out, "pareto", [row])


if __name__ == "__main__":
    main()
