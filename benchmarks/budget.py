"""What a budget of honest runs buys: accuracy against truly retrained orders, beside the cheapest rival.

    python benchmarks/budget.py [--windows text_24 text_mixed digits] [--budgets 4 6 8 12 20 30]

A run is the CPU time of training the window once; spent is that of recording and of the first answer, in runs. The
rival trains every order on an eighth of each batch and takes its difference to the reference's own eighth. 16 unseen
orders; mae_ratio is the mean absolute error over that of a constant guess. Prints a line a row, and puts the row into
the data that docs/budget.md shows, in the place of an older one of the same window, budget and seed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fidelity import compare, load, unseen_orders
from measured import DATA, merge, origin

import orderscope as osc
from orderscope.recording.costs import cpu_seconds, training_seconds
from orderscope.sketching import SketchPlan

EIGHTH = 8
SCORES = ("spearman", "mae_ratio", "coverage")


def keep(out: Path, command: str, window: str, budget: str, seed: int, figures: dict[str, Any]) -> None:
    print(window, budget, figures, flush=True)
    merge(out, "measured", [{"window": window, "budget": budget, "seed": seed, "figures": figures} | origin(command)])


def rival(keywords: dict, orders: np.ndarray, metric: str) -> tuple[np.ndarray, float]:
    """Values of the orders by an eighth of every batch, and its cost in seconds of CPU."""
    began = cpu_seconds()
    values = []
    for order in [np.asarray(keywords["order"]), *orders]:
        part = osc.Task(**keywords | {"order": order[:, ::EIGHTH]})
        values.append(osc.retrain(part, part.order).metrics[metric][0])
    return np.array(values[1:]) - values[0], cpu_seconds() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", nargs="*", default=["text_24", "text_mixed", "digits"])
    parser.add_argument("--budgets", type=float, nargs="*", default=[4, 6, 8, 12, 20, 30])
    parser.add_argument("--orders", type=int, default=16)
    parser.add_argument("--order-seed", type=int, default=2027)
    parser.add_argument("--seed", type=int, default=0, help="of probes and sketch")
    parser.add_argument("--out", type=Path, default=DATA / "budget.json", help="the data that rows are put into")
    options = parser.parse_args()
    command = f"python benchmarks/budget.py --budgets {' '.join(f'{b:g}' for b in options.budgets)}"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # a budget below the least recording
    for name in options.windows:
        keywords = load(f"windows.py:{name}")
        task = osc.Task(**keywords)
        orders = unseen_orders(task, options.orders, options.order_seed)
        metric = next(iter(task.metrics))
        truth = osc.retrain(task, orders).metrics[metric]
        run = float("nan")
        for budget in [*options.budgets, None]:
            with tempfile.TemporaryDirectory() as folder:
                began = cpu_seconds()
                store = osc.record(task, f"{folder}/run", budget=budget, seed=options.seed)
                sim = osc.Simulator(f"{folder}/run")
                sim.predict(orders[:1])
                run = training_seconds(store) or float("nan")
                spent = (cpu_seconds() - began) / run
                found = sim.predict(orders)
                plan = SketchPlan.read(store)
            drawn = sum(map(len, plan.curvature_ids)) * plan.draws / len(np.unique(task.order))
            scores = compare(found.metrics[metric], found.error[metric], truth)
            figures = {"spent": round(spent, 1), "probes": plan.probes, "anchors": len(plan.anchors),
                       "passes": round(drawn, 2)} | {key: round(scores[key], 3) for key in SCORES}  # fmt: skip
            keep(options.out, command, name, "none" if budget is None else f"{budget:g}", options.seed, figures)
        values, seconds = rival(keywords, orders, metric)
        reference = osc.retrain(task, task.order).metrics[metric][0]
        scores = compare(reference + values, np.zeros(len(values)), truth)
        figures = {"spent": round(seconds / run, 1)} | {key: round(scores[key], 3) for key in SCORES[:2]}
        keep(options.out, command, name, "an eighth of each batch", options.seed, figures)


if __name__ == "__main__":
    sys.exit(main())
