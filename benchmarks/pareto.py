"""Accuracy against speed and disk: how many coordinates are carried, and how much of the curvature is kept.

    python benchmarks/pareto.py [--windows text_24 text_96] [--orders 32]

Each row is a recording of its own, with one choice changed. Accuracy is what `Simulator.predict` reaches against true
retraining; speed is orders answered in the CPU time of one training measured right before. Writes its
section of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch
from fidelity import compare, load, unseen_orders
from speed import cpu_seconds, write_section

import orderscope as osc
from orderscope.engine import raw

COORDS = (4096, 16384, 1 << 20)
ENERGIES = (0.6, 0.8, 0.9, 0.95)
BASE = 16384, 0.8
REPEATS = 3


def settings() -> list[tuple[int, float]]:
    """Coordinates and share of the curvature's trace."""
    return sorted({(m, BASE[1]) for m in COORDS} | {(BASE[0], energy) for energy in ENERGIES})


def rows(name: str, orders: int) -> list[str]:
    task = osc.Task(**load(f"windows.py:{name}"))
    asked = unseen_orders(task, orders, 101)
    metric = next(iter(task.metrics))
    truth = osc.retrain(task, asked).metrics[metric]
    lines = []
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
        told = compare(found.metrics[metric], found.error[metric], truth)
        lines.append(
            f"| {name} | {sim.window.coords} | {energy} | {len(sim.window.factor)} | {told['spearman']:.3f} |"
            f" {told['mae_ratio']:.2f} | {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) |"
            f" {size:.0f} |"
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", nargs="*", default=["text_24", "text_96", "text_mixed"])
    parser.add_argument("--orders", type=int, default=32, help="that are truly retrained")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        f"`python benchmarks/pareto.py`: what may be left out. {options.orders} unseen orders against true retraining,",
        "one choice changed at a time; rank is that of all groups' curvature together.",
        "",
        "| window | coordinates | energy | rank | Spearman | mae_ratio | answers a training | MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in options.windows:
        lines += rows(name, options.orders)
    write_section(options.out, "Accuracy against speed", lines)


if __name__ == "__main__":
    main()
