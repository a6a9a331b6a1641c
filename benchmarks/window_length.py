"""What asking about a longer last part of the same training gives: how much order matters, and how well it is told.

    python benchmarks/window_length.py [--steps 12 24 48 96] [--orders 12]

The training is `windows.py:text_96`. Of each window, its last steps with the optimizer's state as it was: CPU seconds
of training it once, cost of recording and the first answer in runs, cost of an answer as a share of a training,
sigma_order and held-out noise, and unseen orders predicted against true retraining; mae_ratio is the mean absolute
error over that of a constant guess. Its rows go into the data that docs/howto/budget-and-window.md shows.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fidelity import compare, load, unseen_orders
from measured import DATA, merge, origin

import orderscope as osc
from orderscope.recording.costs import cpu_seconds, training_seconds
from orderscope.simulation.verdict import held_out_noise


def tail(keywords: dict[str, Any], steps: int) -> osc.Task:
    """The last steps of a training, from the weights and the optimizer's state that it had there."""
    whole = osc.Task(**keywords)
    order = np.asarray(keywords["order"])
    begin = len(order) - steps
    model = whole.build_model()
    optimizer = whole.build_optimizer(model)
    scheduler = whole.build_scheduler(optimizer)
    for ids in order[:begin]:
        optimizer.zero_grad()
        keywords["loss"](model, whole.batch(ids)).mean().backward()
        optimizer.step()
        scheduler.step()
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())

    def started() -> torch.nn.Module:
        fresh = keywords["model"]()
        fresh.load_state_dict(weights)
        return fresh

    def later(adam: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        rate = keywords["scheduler"](adam).lr_lambdas[0]
        return torch.optim.lr_scheduler.LambdaLR(adam, lambda step: rate(step + begin))

    parts = {"model": started, "scheduler": later, "order": order[begin:], "optimizer_state": state}
    return osc.Task(**keywords | parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="*", default=[12, 24, 48, 96])
    parser.add_argument("--orders", type=int, default=12)
    parser.add_argument("--order-seed", type=int, default=2027)
    parser.add_argument("--out", type=Path, default=DATA / "window.json", help="the data that rows are put into")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keywords = load("windows.py:text_96")
    metric = next(iter(keywords["metrics"]))
    for steps in options.steps:
        task = tail(keywords, steps)
        orders = unseen_orders(task, options.orders, options.order_seed)
        truth = osc.retrain(task, orders).metrics[metric]
        with tempfile.TemporaryDirectory() as folder:
            began = cpu_seconds()
            store = osc.record(task, f"{folder}/run")
            sim = osc.Simulator(f"{folder}/run")
            sim.predict(orders[:1])
            spent, run = cpu_seconds() - began, training_seconds(store) or float("nan")
            asked = time.process_time()
            found = sim.predict(orders)
            answer = (time.process_time() - asked) / len(orders)
            scores = compare(found.metrics[metric], found.error[metric], truth)
            noise, _ = held_out_noise(sim, metric)
            figures = {
                "seconds": run, "cost": spent / run, "answer": answer / run, "sigma": sim.sigma_order(metric),
                "noise": noise, **{key: scores[key] for key in ("spearman", "mae_ratio", "coverage")},
            }  # fmt: skip
        figures = {key: float(f"{value:.4g}") for key, value in figures.items()}
        print(steps, figures, flush=True)
        row = {"steps": steps, "seed": 0, "figures": figures} | origin("python benchmarks/window_length.py")
        merge(options.out, "lengths", [row])


if __name__ == "__main__":
    sys.exit(main())
