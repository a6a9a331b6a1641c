"""The whole path on a small model: record, ask, check, propose, confirm, map positions, report.

    make demo                  # or: python examples/demo.py

Everything is written to demo-run/ and report.html. The `orderscope` commands that do the same are shown on the way.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import characters

import orderscope as osc
from orderscope.answers.asked import remember_orders, resolve_order
from orderscope.answers.effect import effects
from orderscope.answers.known import train_orders
from orderscope.answers.stored import keep_heat, keep_proposal
from orderscope.cli.progress import progress_bars
from orderscope.cli.table import print_table
from orderscope.cli.tasks import remember_task
from orderscope.report.page import write_report
from orderscope.report.words import figures, signed, two

METRIC = "eval"
ASKED = ["reverse", "interleave", "groups:code,names,prose", "groups:names,code,prose", "late:code"]
BEGAN = time.monotonic()


def main() -> None:
    options = arguments()
    run, page = options.out, options.report
    torch.set_num_threads(1)
    start_afresh(run)

    say("Record one run, and a few more in other orders for the error bars.",
        f"orderscope record examples/characters.py:task --out {run}")  # fmt: skip
    task = characters.task(options.steps)
    spec = f"{Path(characters.__file__)}:task"
    with progress_bars() as progress:
        osc.record(task, run, progress=progress)
        remember_task(run, spec, task)
    sim = osc.Simulator(run, task)
    effect = effects(sim, [METRIC])[0]
    print(f"  {METRIC} loss {effect.reference:.4f}; order moves it by ±{two(effect.sigma)} (1 sigma)")

    say("Ask about orders nobody trained.", f"orderscope query {run} " + " ".join(f"--order {o}" for o in ASKED[:2]))
    orders = np.stack([resolve_order(sim, text) for text in ASKED])
    prediction = sim.predict(orders, metrics=[METRIC])
    remember_orders(run, ASKED)

    say("Train these and some more after all, to see whether that was right.",
        f"orderscope query {run} --train ...; orderscope validate {run} --orders {options.checks}")  # fmt: skip
    with progress_bars() as progress:
        truth = train_orders(sim, orders, progress)
        check = osc.validate(sim, orders=options.checks, progress=progress)

    say("Look for a better order, and train the best to confirm them.",
        f"orderscope propose {run} --metric {METRIC} --verify 3 --budget {options.budget}")  # fmt: skip
    with progress_bars() as progress:
        best = osc.propose(
            sim, metric=METRIC, budget=options.budget, verify=3, seconds=options.seconds, progress=progress
        )
    with osc.RunStore.create(run) as store:
        keep_proposal(store, best)

    say("Map how well a batch is remembered, by when it comes.", f"orderscope positions {run}")
    with progress_bars() as progress:
        heat = osc.positions(sim, spread(task.steps, 12), places=spread(task.steps, 10), progress=progress)
    with osc.RunStore.create(run) as store:
        keep_heat(store, heat)

    say("Write it all down.", f"orderscope report {run} --out {page}")
    with progress_bars() as progress:
        write_report(osc.Simulator(run, task), page, metric=METRIC, progress=progress)

    print(f"\nWhat order would have changed ({METRIC} loss, {effect.reference:.4f} in the recorded order)\n")
    rows = [
        row(text, prediction.metrics[METRIC][i], prediction.error[METRIC][i], truth[METRIC][i], effect.reference)
        for i, text in enumerate(ASKED)
    ]
    rows.append(row("proposed order", best.predicted, best.error, best.confirmed, effect.reference))
    print_table(["order", "predicted", "error", "difference", "really trained", "difference"], rows)
    print(f"\n{len(check.orders)} more unseen orders: rank correlation with the truth {check.spearman[METRIC]:.2f}, "
          f"off by {100 * check.mae_ratio[METRIC]:.0f} % of what a constant guess is off by.")  # fmt: skip
    print(f"The proposal: {gain(best)}")
    print(f"\nOpen {page} in a browser. All in {time.monotonic() - BEGAN:.0f} seconds; the run is in {run}/.")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-run"), help="directory of the run, made anew")
    parser.add_argument("--report", type=Path, default=Path("report.html"))
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--checks", type=int, default=12, help="unseen orders to train")
    parser.add_argument("--budget", type=int, default=60, help="orders to score in the search")
    parser.add_argument(
        "--seconds", type=float, default=90, help="longest search; met, the result depends on the clock"
    )
    return parser.parse_args()


def spread(steps: int, count: int) -> np.ndarray:
    """`count` steps from the first to the last."""
    return np.unique(np.linspace(0, steps - 1, count).round().astype(int))


def start_afresh(run: Path) -> None:
    """Remove what an earlier demo left; anything that is no run stays and stops the demo."""
    if (run / "manifest.jsonl").is_file():
        shutil.rmtree(run)


def say(what: str, command: str) -> None:
    print(f"\n[{time.monotonic() - BEGAN:3.0f} s] {what}\n  $ {command}", flush=True)


def row(name: str, predicted: float, error: float, true: float | None, reference: float) -> list[str]:
    value, width = figures(predicted, error)
    trained = ["", ""] if true is None else [figures(true, error)[0], signed(true - reference, error)]
    return [name, value, width, signed(predicted - reference, error), *trained]


def gain(best) -> str:
    """What the proposal gained over the recorded order and over random ones, in words."""
    got, word = (best.predicted, "predicted") if best.confirmed is None else (best.confirmed, "really trained")
    said = f"{got:.4f}, {signed(got - best.reference, best.error)} to the recorded order ({word})"
    if best.undetectable:
        said += f"; no detectable effect: {best.why}"
    if best.best_of_n is not None:
        said += (
            f".\nThe best of {best.cost:.0f} random orders, trained at the same cost, would be at {best.best_of_n:.4f}"
        )
    return said + "."


if __name__ == "__main__":
    main()
