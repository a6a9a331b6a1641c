"""Accuracy against speed of a search's replay: coordinates, rank of the curvature, type of the tables.

    python benchmarks/pareto.py [--windows text_24 text_96] [--orders 32]

Each row changes one thing of what `Simulator.score` uses. Accuracy is of the uncalibrated metric, against true
retraining; speed is orders scored in the CPU time of one training measured right before. Writes its section of
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from fidelity import load, unseen_orders
from scipy.stats import spearmanr
from speed import cpu_seconds, write_section

import orderscope as osc
from orderscope import simulator
from orderscope.engine import Batches, replay, units_of
from orderscope.engine.reduce import reduced, reduced_expansion, some_coordinates

COORDS = (2048, 8192, 1 << 20)
ENERGIES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
TYPES = {"int8": torch.int8, "bf16": torch.bfloat16, "fp32": None}
REPEATS = 3


def settings() -> list[tuple[int, float, str]]:
    base = (simulator.SEARCH_COORDS, simulator.SEARCH_ENERGY, "bf16")
    found = [(m, *base[1:]) for m in COORDS] + [(base[0], e, base[2]) for e in ENERGIES]
    found += [(*base[:2], kind) for kind in TYPES]
    return sorted(set(found))


def rows(name: str, orders: int, block: int) -> list[str]:
    task = osc.Task(**load(f"windows.py:{name}"))
    asked = unseen_orders(task, orders, 101)
    metric = next(iter(task.metrics))
    truth = osc.retrain(task, asked).metrics[metric]
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        osc.record(task, f"{folder}/run")
        sim = osc.Simulator(f"{folder}/run", task)
        rng = np.random.default_rng(7)
        many = np.stack([np.asarray(task.order)[rng.permutation(task.steps)] for _ in range(block)])
        states = torch.cat([sim.window.anchors.own.flatten(0, 1), sim.window.anchors.shared])
        for coords, energy, kind in settings():
            chosen = some_coordinates(sim.window, coords, sim.plan.seed)
            window = reduced(sim.window, chosen, energy=energy, dtype=TYPES[kind], halves=False)
            expansion = reduced_expansion(sim._expansions[metric], states, chosen)
            batches = Batches(sim.order)

            def score(
                asked: np.ndarray, window=window, expansion=expansion, batches=batches
            ) -> tuple[np.ndarray, torch.Tensor]:
                done = replay(window, units_of(window, batches, asked), members=1)
                return expansion(done.theta[0]).numpy(), done.outside

            values, _ = score(asked)
            score(many)
            ratios = [
                block
                * cpu_seconds(lambda: osc.retrain(task, task.order))
                / cpu_seconds(lambda score=score: score(many))
                for _ in range(REPEATS)
            ]
            rank = statistics.mean(len(first) + len(second) for first, second in window.factors)
            lines.append(
                f"| {name} | {len(chosen)} | {energy} | {rank:.0f} | {kind} |"
                f" {float(np.asarray(spearmanr(values, truth))[0]):.3f} | {np.corrcoef(values, truth)[0, 1]:.3f} |"
                f" {statistics.median(ratios):.0f} ({min(ratios):.0f} to {max(ratios):.0f}) |"
            )
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", nargs="*", default=["text_24", "text_96", "text_mixed"])
    parser.add_argument("--orders", type=int, default=32, help="that are truly retrained")
    parser.add_argument("--block", type=int, default=128, help="orders scored at once for the speed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        f"`python benchmarks/pareto.py`: what a search's replay may leave out. {options.orders} unseen orders against",
        "true retraining, one setting changed at a time; rank is the mean over groups, both halves together; the last",
        f"column is orders scored in the CPU time of one training, {options.block} at once.",
        "",
        "| window | coordinates | energy | rank | tables | Spearman | Pearson | orders a training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in options.windows:
        lines += rows(name, options.orders, options.block)
    write_section(options.out, "Accuracy against speed", lines)


if __name__ == "__main__":
    main()
