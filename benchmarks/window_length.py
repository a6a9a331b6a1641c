"""What asking about a longer last part of the same training gives: how much order matters, and how well it is told.

    python benchmarks/window_length.py [--steps 12 24 48 96] [--orders 12]

The training is `windows.py:text_96`. Of each window, its last steps with the optimizer's state as it was: CPU seconds
of training it once, cost of recording and the first answer in runs, cost of an answer as a share of a training,
sigma_order and held-out noise, and unseen orders predicted against true retraining; mae_ratio is the mean absolute
error over that of a constant guess. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
from fidelity import compare, load, unseen_orders

import orderscope as osc
from orderscope.recording.costs import cpu_seconds, training_seconds
from orderscope.simulation.verdict import held_out_noise

HEAD = ("last steps", "training, s", "recording, runs", "an answer, trainings", "sigma_order", "noise", "Spearman",
        "mae_ratio", "coverage")  # fmt: skip


def line(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


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
    options = parser.parse_args()
    torch.set_num_threads(1)
    keywords = load("windows.py:text_96")
    metric = next(iter(keywords["metrics"]))
    line(*HEAD)
    line(*["---"] * len(HEAD))
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
            told = compare(found.metrics[metric], found.error[metric], truth)
            noise, _ = held_out_noise(sim, metric)
            line(steps, f"{run:.2g}", f"{spent / run:.0f}", f"{answer / run:.2g}", f"{sim.sigma_order(metric):.2g}",
                 f"{noise:.2g}", *(f"{told[key]:.2f}" for key in ("spearman", "mae_ratio", "coverage")))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
