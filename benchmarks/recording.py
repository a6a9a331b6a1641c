#!/usr/bin/env python3
"""What recording costs on top of the bare training loop, per step and per boundary.

    OMP_NUM_THREADS=1 python benchmarks/recording.py

Both run the same steps of a character transformer of 35,000 weights, in turns; medians and quartiles of 15 rounds.
Prints one JSON object.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

ROUNDS, STEPS = 15, 48
BOUNDARIES = list(range(0, STEPS + 1, 12))


def main() -> None:
    import orderscope as osc
    from orderscope.record import record_run
    from orderscope.record.loop import start, train
    from orderscope.store import RunStore
    from tasks_tiny import char

    torch.set_num_threads(1)
    task = osc.Task(**char(steps=STEPS, batch=16, vocab=128, context=32, width=64))

    def bare() -> float:
        session = start(task)
        began = time.perf_counter()
        train(task, session, task.order, 0, STEPS)
        return time.perf_counter() - began

    def recorded(**options) -> tuple[float, float]:
        """Seconds in the steps, and seconds a boundary costs without its metrics."""
        with tempfile.TemporaryDirectory() as folder, RunStore.create(f"{folder}/run") as store:
            record_run(task, store, "reference", task.order, BOUNDARIES, metrics_at="final", **options)
            events = store.journal()
        at = [e["seconds"] - e["train_seconds"] for e in events[:-1]]
        return sum(e["train_seconds"] for e in events), sum(at) / len(at)

    coords = torch.arange(0, task.layout.size, 8)
    steps: dict[str, list[float]] = {"bare": [], "all": [], "some_coordinates": [], "no_gradients": []}
    boundary = []
    for _ in range(ROUNDS):
        steps["bare"].append(bare())
        for name, options in (
            ("all", {}),
            ("some_coordinates", {"coords": coords}),
            ("no_gradients", {"keep_gradients": False}),
        ):
            in_steps, at_boundary = recorded(**options)
            steps[name].append(in_steps)
            boundary.append(at_boundary)
    quartiles = {name: np.quantile(values, [0.25, 0.5, 0.75]) / STEPS * 1e3 for name, values in steps.items()}
    result = {
        "parameters": task.layout.size,
        "ms_per_step": {name: [round(float(q), 3) for q in values] for name, values in quartiles.items()},
        "ratio": {name: round(float(q[1] / quartiles["bare"][1]), 3) for name, q in quartiles.items()},
        "ms_per_boundary": [round(float(q), 3) for q in np.quantile(boundary, [0.25, 0.5, 0.75]) * 1e3],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": platform.processor() or platform.machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
