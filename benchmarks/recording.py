#!/usr/bin/env python3
"""What recording costs on top of the bare training loop, per step and per boundary.

    OMP_NUM_THREADS=1 python benchmarks/recording.py

`record`: both run the same steps of a character transformer of 35,000 weights, in turns; medians and quartiles of 15
rounds. `Recorder`, inside a loop of one's own: two loops of the same model take their steps in turns, one of them
recorded; CPU time of the loop's thread, a second thread writes. Also with a BERT of MiniLM's size, its weights random,
where transformers is installed. Prints one JSON object.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("tests", "examples")]

ROUNDS, STEPS = 15, 48
BOUNDARIES = list(range(0, STEPS + 1, 12))


def character_model() -> tuple[Any, Callable[[Any], Any]]:
    import characters

    rows = torch.randint(0, characters.ALPHABET, (characters.BATCH, characters.CONTEXT + 1))
    return characters.CharacterModel(), lambda model: characters.loss(model, rows).mean()


def minilm_size() -> tuple[Any, Callable[[Any], Any]]:
    """Six layers of 384 numbers, 32 tokens, 16 rows."""
    from transformers import BertConfig, BertModel

    shape = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    tokens = torch.randint(0, shape.vocab_size, (16, 32))
    return BertModel(shape), lambda model: model(tokens).last_hidden_state.square().mean()


def inside(made: Callable[[], tuple[Any, Callable[[Any], Any]]], steps: int, rounds: int) -> dict[str, Any]:
    """A recorded loop's time over a bare one's: all of its steps, and the median step, which keeps no state."""
    import orderscope as osc

    every, middle, milliseconds = [], [], 0.0
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            loops = []
            for _ in range(2):
                model, loss = made()
                loops.append((model, loss, torch.optim.AdamW(model.parameters(), lr=1e-4)))
            ids, seconds = list(range(16)), ([], [])
            with osc.Recorder(f"{folder}/run", loops[1][0], loops[1][2]) as recorder:
                for step in range(steps + 2):
                    for recorded, (model, loss, optimizer) in enumerate(loops):
                        began = time.thread_time()
                        optimizer.zero_grad()
                        loss(model).backward()
                        optimizer.step()
                        if recorded:
                            recorder.step(ids)
                        if step >= 2:  # the first of each warm up
                            seconds[recorded].append(time.thread_time() - began)
        every.append(sum(seconds[1]) / sum(seconds[0]))
        middle.append(float(np.median(seconds[1]) / np.median(seconds[0])))
        milliseconds = float(np.median(seconds[0])) * 1e3
    return {
        "steps": steps,
        "ms_per_step": round(milliseconds, 2),
        "all_steps": [round(float(q), 3) for q in np.quantile(every, [0, 0.5, 1])],
        "median_step": [round(float(q), 3) for q in np.quantile(middle, [0, 0.5, 1])],
    }


def main() -> None:
    import orderscope as osc
    from orderscope.recording.runs import record_run
    from orderscope.store import RunStore
    from orderscope.training.loop import start, train
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
        "Recorder": {
            "35k weights": inside(character_model, 384, 5),
            **({"22M weights": inside(minilm_size, 64, 3)} if find_spec("transformers") else {}),
        },
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": platform.processor() or platform.machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
