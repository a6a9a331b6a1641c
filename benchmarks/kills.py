#!/usr/bin/env python3
"""Kill a recording with SIGKILL at random instants, 50 times by default, and compare what it ends with byte for byte.

    python benchmarks/kills.py --kills 50 --stage all

Every run is killed one to four times before it may end. `--stage runs` only trains and records, `all` sketches too.
Prints one line of JSON; exits 1 where a run ended with other bytes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch._dynamo", "h5py", "orderscope.recording.runs"])


def job(path: Path, stage: str, ready: Event) -> None:
    import torch

    import orderscope as osc
    from orderscope.recording.runs import record_run
    from orderscope.store import RunStore
    from orderscope.training import task_shard
    from tasks_tiny import char

    torch.set_num_threads(1)
    task = osc.Task(**char(steps=24))
    ready.set()
    if stage == "all":
        osc.record(task, path)
        return
    with RunStore.create(path) as store:
        task_shard(task, store)
        record_run(task, store, "reference", task.order, range(0, 25, 3))
        record_run(task, store, "probe-0", task.order[::-1], range(0, 25, 6))


def begin(path: Path, stage: str):
    ready = CONTEXT.Event()
    child = CONTEXT.Process(target=job, args=(path, stage, ready))
    child.start()
    ready.wait()
    return child


def finish(path: Path, stage: str) -> float:
    """Run to the end; the seconds it took."""
    child = begin(path, stage)
    began = time.perf_counter()
    child.join()
    if child.exitcode:
        sys.exit(f"a resumed recording ended with exit code {child.exitcode}; its files are in {path}")
    return time.perf_counter() - began


def contents(path: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in path.iterdir() if f.suffix == ".h5" or f.name == "manifest.jsonl"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=("runs", "all"), default="all")
    options = parser.parse_args()
    instants = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    seconds = finish(folder / "whole", options.stage)
    whole = contents(folder / "whole")
    kills = runs = 0
    different = []
    while kills < options.kills:
        path = folder / f"run-{runs}"
        for _ in range(min(instants.randint(1, 4), options.kills - kills)):
            child = begin(path, options.stage)
            time.sleep(instants.uniform(0, seconds))
            child.kill()
            child.join()
            kills += child.exitcode != 0  # it may have been quicker
        finish(path, options.stage)
        runs += 1
        found = contents(path)
        if found != whole:
            different += [f"{path}: {n}" for n in {**found, **whole} if found.get(n) != whole.get(n)]
    result = {"kills": kills, "runs": runs, "seconds": round(seconds, 3)}
    print(json.dumps(result | {"stage": options.stage, "files": len(whole), "different": different}))
    if different:
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
