"""The parts of `gpu.py`. Each writes what it found after every measurement: what is measured is not lost."""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import orderscope as osc
from orderscope_kernels import projection, reference
from orderscope_kernels.reference import Clip, Part, Terms
from orderscope_kernels.replay import named

ROOT = Path(__file__).resolve().parents[1]
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


class Report:
    """What a part has found, on disk after every row."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.deadline = path, time.monotonic() + seconds
        self.found: dict[str, Any] = {"rows": [], "memory": {"host": 0}, "error": None}

    def row(
        self, what: str, values: float | Sequence[float], unit: str = "", *, least: float | None = None,
        most: float | None = None,
    ) -> None:  # fmt: skip
        """A measurement, its median and spread where there are several; `least` or `most` is its goal."""
        values = [float(v) for v in np.atleast_1d(values)]
        if not np.isfinite(values).all():
            raise ArithmeticError(f"{what}: {values}")
        middle = statistics.median(values)
        goal = f">= {least:g}" if least is not None else f"<= {most:g}" if most is not None else None
        met = None if goal is None else middle >= least if least is not None else middle <= most
        self.found["rows"].append(
            dict(what=what, value=middle, low=min(values), high=max(values), unit=unit, goal=goal, met=met)
        )
        print(what, middle, unit, flush=True)
        self.write()

    def write(self, **more: Any) -> None:
        self.found |= more
        kilobyte = 1 if sys.platform == "darwin" else 1024
        self.found["memory"]["host"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte
        if GPU:
            with suppress(RuntimeError):  # where the part broke the device
                peak = torch.cuda.max_memory_allocated()
                self.found["memory"]["device"] = max(peak, self.found["memory"].get("device", 0))
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.found), encoding="utf-8")
        new.replace(self.path)

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()


def synchronised() -> float:
    """The clock when the device has done all it was asked."""
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def taken(work: Callable[[], object]) -> float:
    began = synchronised()
    work()
    return synchronised() - began


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(values: Any) -> Any:
    """Tensors, also inside named tuples and dicts, on the device."""
    if isinstance(values, Tensor):
        return values.to(DEVICE)
    if isinstance(values, dict):
        return {key: moved(value) for key, value in values.items()}
    return type(values)(*(moved(v) if isinstance(v, Tensor) else v for v in values))


# The kernels


def kernels(report: Report, tiny: bool) -> None:
    """Every kernel on the device against the reference on the CPU, and the tests of tests/kernels where pytest is."""
    name = next((n for n in ("triton", "numba") if find_spec(n) and (n == "triton" or not GPU)), None)
    if name is None:
        raise RuntimeError("triton is not installed: there is no kernel to try")
    sizes = [(7, 63)] if tiny else [(1, 1), (7, 63), (19, 1000)]
    tried: list[tuple[str, float]] = []
    for what, found, expected, tolerance in comparisons(name, sizes, tiny):
        off = float(((found.cpu().double() - expected.double()).abs() / tolerance).max())
        tried.append((what, off if off == off else float("inf")))
    worst = max(tried, key=lambda one: one[1])
    print(f"farthest: {worst[0]}", flush=True)
    report.row(f"{name}: comparisons with the plain-torch reference", len(tried))
    report.row(f"{name}: largest difference, in what rounding allows", min(worst[1], 1e9), most=1)
    wrong = [f"{what}: {off:.3g} times what rounding allows" for what, off in tried if not off <= 1]
    if not tiny and find_spec("pytest") and find_spec("hypothesis"):
        wrong += tests_of_kernels(report)
    if wrong:
        raise AssertionError("\n".join(wrong[:50]))


def tests_of_kernels(report: Report) -> list[str]:
    """What went wrong in tests/kernels; those that only compile need no device and are left out."""
    command = [sys.executable, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", "-m", "not slow"]
    done = subprocess.run(
        [*command, "tests/kernels"], cwd=ROOT, capture_output=True, text=True, timeout=report.left, check=False,
        env=os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
    )  # fmt: skip
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    report.row("tests of tests/kernels that passed", counts.get("passed", 0))
    return [] if done.returncode == 0 else [f"tests/kernels:\n{done.stdout[-2000:]}{done.stderr[-500:]}"]


def comparisons(
    name: str, sizes: Sequence[tuple[int, int]], tiny: bool
) -> Iterator[tuple[str, Tensor, Tensor, float | Tensor]]:
    """What was compared, the kernel's numbers, the reference's, and the difference that rounding may make."""
    from kernel_cases import OPTIMIZERS, TYPES, made_clip, made_parts, made_states, made_terms, table_of

    ours = named(name)

    def stepped(case: str, rows: int, coords: int, terms: Terms, clip: Clip | None, here: bool) -> dict[str, Tensor]:
        place: Callable[[Any], Any] = moved if here else lambda values: values
        theta, moments, at = (place(x) for x in made_states(case, coords))
        chosen = ours if here else reference
        chosen.replay_step(
            OPTIMIZERS[case][0], theta, moments, at[:rows], place(terms), made_parts(case, coords),
            None if clip is None else place(clip),
        )  # fmt: skip
        return {"theta": theta} | moments

    def steps(what: str, case: str, rows: int, coords: int, terms: Terms, clip: Clip | None = None) -> Iterator[Any]:
        found = stepped(case, rows, coords, terms, clip, True)
        wide = terms._replace(table=terms.table.float(), factor=terms.factor.float())
        short = terms.factor.dtype != torch.float32
        for key, values in stepped(case, rows, coords, wide, clip, False).items():
            # Float32 sums in another order, of up to 73 terms of size one to ten; a short factor's 8 bits.
            allowed = (2e-5 if not short else 0.05) * (1 + values.abs())
            yield f"{what}, {case}, {rows} x {coords}, {key}", found[key], values, allowed

    for rows, coords in sizes:
        for case in OPTIMIZERS:
            yield from steps("step", case, rows, coords, made_terms(rows, coords))
        for case in ("adamw", "momentum"):
            yield from steps("clipped step", case, rows, coords, made_terms(rows, coords), made_clip(rows))
        for key, dtype in TYPES.items():
            terms = made_terms(rows, coords, table=dtype)
            terms = terms._replace(weights=terms.weights / 40) if key == "int8" else terms
            yield from steps(f"table of {key}", "adamw", rows, coords, terms)
        yield from steps("short factor", "plain", rows, coords, made_terms(rows, coords, factor=torch.bfloat16))
        g = generator(3)
        theta, start = torch.randn(rows + 2, coords, generator=g), torch.randn(coords, generator=g)
        terms = made_terms(rows, coords, rank=33)
        table = table_of(torch.float32, len(terms.table), coords, g)
        arguments = (theta, start, torch.arange(rows) + 1, table, terms.index, terms.factor, terms.ranges)
        found = ours.displacement_products(*(moved(x) for x in arguments))
        expected = reference.displacement_products(*(x.double() if x.is_floating_point() else x for x in arguments))
        for key in ("square", "along", "curved"):
            values = getattr(expected, key)
            yield f"{key}, {rows} x {coords}", getattr(found, key), values, 1e-3 + 1e-5 * values.abs()
    g = generator(5)
    for kind in ("rademacher", "sparse"):
        x = torch.randn(3, 100 if tiny else 40_000, generator=g)
        found = kernel_projection(name).project(moved(x), kind, 40, 5, first=2**31 - 10)
        yield (
            f"{kind} projection",
            found,
            projection.project(x, kind, 40, 5, first=2**31 - 10),
            1e-5 * x.shape[1] ** 0.5,
        )
    inputs, outward = torch.randn(3, 5, 40, generator=g), torch.randn(3, 5, 30, generator=g)
    entries = torch.randperm(1200, generator=g)[:100]
    found = kernel_projection(name).linear_entries(*(moved(x) for x in (inputs, outward, entries)))
    yield "entries of a linear layer", found, projection.linear_entries(inputs, outward, entries), 1e-5 * 5


def kernel_projection(name: str) -> Any:
    if name != "triton":
        return projection
    from orderscope_kernels import triton_projection

    return triton_projection


# A step of a replay

ADAM = dict(count=3.0, lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.01, decoupled=True, maximize=False)
UNITS, ANCHORS, RANK = 96, 8, 128


def replay(report: Report, tiny: bool) -> None:
    """One step by the fused kernels, by plain torch, and what it moves through memory against a plain copy."""
    bandwidth = [copied(1 << 16 if tiny else 1 << 28) for _ in range(5)]
    report.row("a plain copy, bytes read and written", [b / 1e9 for b in bandwidth], "GB/s")
    name = "triton" if find_spec("triton") else "numba" if find_spec("numba") and not GPU else "reference"
    sizes = [(3, 200), (5, 130)] if tiny else [(64, 8192), (256, 8192), (256, 32768), (512, 65536), (100, 131072)]
    for rows, coords in sizes:
        for clipped in (False, True) if (rows, coords) == sizes[-1] else (False,):
            one_size(report, name, rows, coords, clipped, statistics.median(bandwidth), tiny)


def one_size(report: Report, name: str, rows: int, coords: int, clipped: bool, bandwidth: float, tiny: bool) -> None:
    what = f"{rows} states of {coords} coordinates" + (", clipped" if clipped else "")
    found, expected = (after_a_step(kernels, rows, coords, clipped) for kernels in (name, "reference"))
    # A step of Adam moves a weight by about its rate, and these gradients are known to the 8 bits of bfloat16.
    off = float((found - expected).abs().max()) / ADAM["lr"]
    report.row(f"{what}: largest difference to plain torch, in learning rates", off, most=0.1)
    del found, expected
    step, moves, most = made(rows, coords, clipped)
    repeats = 1 if tiny else 20
    times: dict[str, list[float]] = {"reference": [], name: []}
    for _ in range(2 if tiny else 5):
        for which in times:
            step(which)
            times[which].append(taken(lambda which=which: [step(which) for _ in range(repeats)]) / repeats)
    report.row(f"{what}: {name}", [t * 1e6 for t in times[name]], "microseconds")
    report.row(f"{what}: plain torch", [t * 1e6 for t in times["reference"]], "microseconds")
    quicker = [a / b for a, b in zip(times["reference"], times[name], strict=True)]
    report.row(f"{what}: times quicker than plain torch", quicker, least=5)
    share = [100 * moves / t / bandwidth for t in times[name]]
    report.row(f"{what}: least bytes that must move, of a copy's bandwidth", share, "%", least=80)
    share = [100 * most / t / bandwidth for t in times[name]]
    report.row(f"{what}: the same if states of a unit shared no reads of its entries", share, "%")


def copied(numbers: int, repeats: int = 10) -> float:
    """Bytes a second of a copy, read and written."""
    a = torch.ones(numbers, device=DEVICE)
    b = torch.empty_like(a)
    b.copy_(a)
    return 2 * a.nbytes * repeats / taken(lambda: [b.copy_(a) for _ in range(repeats)])


def material(rows: int, coords: int, clipped: bool) -> tuple[Tensor, dict[str, Tensor], Tensor, Terms, Clip | None]:
    g = generator(0)
    unit = torch.randint(0, UNITS, (rows,), generator=g).sort().values
    terms = Terms(
        torch.randn(UNITS * ANCHORS, coords, generator=g).bfloat16(),
        unit[:, None] * ANCHORS + torch.arange(ANCHORS),
        torch.randn(rows, ANCHORS, generator=g),
        torch.randn(RANK, coords, generator=g).bfloat16(),
        torch.randn(rows, RANK, generator=g),
        torch.tensor([[0, RANK]]).repeat(rows, 1).int(),
    )
    theta = torch.randn(rows, coords, generator=g)
    moments = {"exp_avg": torch.zeros_like(theta), "exp_avg_sq": torch.ones_like(theta)}
    clip = Clip(1.0, torch.ones(rows), torch.full((rows,), torch.nan)) if clipped else None
    return moved(theta), moved(moments), moved(torch.arange(rows)), moved(terms), None if clip is None else moved(clip)


def after_a_step(name: str, rows: int, coords: int, clipped: bool) -> Tensor:
    theta, moments, at, terms, clip = material(rows, coords, clipped)
    named(name).replay_step("AdamW", theta, moments, at, terms, [Part(0, coords, ADAM)], clip)
    return theta


def made(rows: int, coords: int, clipped: bool) -> tuple[Callable[[str], None], float, float]:
    """A step to be taken by the kernels of a name; the bytes it moves at the least, and with nothing shared."""
    theta, moments, at, terms, clip = material(rows, coords, clipped)
    start, parts = torch.zeros(coords, device=DEVICE), [Part(0, coords, ADAM)]

    def step(name: str) -> None:
        ours = named(name)
        ours.displacement_products(theta, start, at, terms.table, terms.index, terms.factor, terms.ranges)
        ours.replay_step("AdamW", theta, moments, at, terms, parts, clip)

    # Weights are read twice and written once, two moments read and written. The entries and the factor are read in both
    # passes, and once more for the norm: the distinct ones at the least, by every state at the most.
    states, passes = 4 * 7 * rows * coords, 3 if clipped else 2
    distinct = terms.index.unique().numel()
    least = states + passes * 2 * coords * (distinct + RANK) + 4 * coords
    return step, least, states + passes * 2 * coords * (rows * ANCHORS + RANK) + 4 * coords


# A language model


class Layer(nn.Module):
    """Causal attention, then a two-layer network, each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_network = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.query_key_value(self.before_attention(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in parts)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(seen.transpose(-3, -2).flatten(-2))
        return x + self.network(self.before_network(x))


class LanguageModel(nn.Module):
    def __init__(self, vocabulary: int, context: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.last, self.score = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        # A layer's weight that is used beside the layer would have all gradients formed: see orderscope.sketching.taps.
        places = self.place(torch.arange(ids.shape[-1], device=ids.device))
        return self.score(self.last(self.layers(self.token(ids) + places)))


def sequence_loss(model: Any, rows: Tensor) -> Tensor:
    """Mean negative log-likelihood of the next token, one value a row."""
    return F.cross_entropy(model(rows[:, :-1]).transpose(1, 2), rows[:, 1:], reduction="none").mean(1)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=RATE, betas=BETAS, weight_decay=DECAY)


def sequences(domain: int, count: int, length: int, vocabulary: int, seed: int) -> Tensor:
    """Random tokens of a domain: four in five follow the last by the domain's own table, the others are any."""
    follower = torch.randperm(vocabulary, generator=generator(100 + domain))
    g = generator(seed)
    rows = torch.randint(0, vocabulary, (count, length), generator=g)
    kept = torch.rand(count, length, generator=g) < 0.8
    for t in range(1, length):
        rows[:, t] = torch.where(kept[:, t], follower[rows[:, t - 1]], rows[:, t])
    return rows


RATE, BETAS, EPS, DECAY = 2e-4, (0.9, 0.95), 1e-8, 0.01
DOMAINS = 4


def language_task(tiny: bool) -> osc.Task:
    """A window in the middle of the training of a model of 100 million weights, a domain a batch."""
    vocabulary, context, width, layers, heads = (32, 8, 16, 1, 2) if tiny else (8192, 256, 768, 12, 12)
    steps, batch, warm = (6, 4, 2) if tiny else (32, 32, 24)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        template = LanguageModel(vocabulary, context, width, layers, heads).to(DEVICE)
    optimizer = adamw(template.parameters())
    for step in range(warm):
        rows = [
            sequences(d, batch // DOMAINS, context + 1, vocabulary, 1000 + DOMAINS * step + d) for d in range(DOMAINS)
        ]
        optimizer.zero_grad()
        sequence_loss(template, torch.cat(rows).to(DEVICE)).mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    turns = [int(i) % DOMAINS for i in torch.randperm(steps, generator=generator(1))]
    held_out = [sequences(d, 2 if tiny else 8, context + 1, vocabulary, 7 + d) for d in range(DOMAINS)]
    return osc.Task(
        model=lambda: copy.deepcopy(template),
        loss=sequence_loss,
        data=list(torch.cat([sequences(d, batch, context + 1, vocabulary, 2000 + i) for i, d in enumerate(turns)])),
        optimizer=adamw,
        metrics={"eval": list(torch.cat(held_out))},
        order=np.arange(steps * batch).reshape(steps, batch),
        groups=[f"domain {d}" for d in turns for _ in range(batch)],
        optimizer_state=copy.deepcopy(optimizer.state_dict()),
        collate=lambda rows: torch.stack(rows).to(DEVICE),
    )


def language(report: Report, tiny: bool) -> None:
    """What it costs to record a window and to ask about it, in trainings of the window on the same device."""
    folder = report.path.parent / "run"
    task = language_task(tiny)
    order = np.asarray(task.order)
    report.row("weights", task.layout.size)
    osc.retrain(task, order)
    trainings = [taken(lambda: osc.retrain(task, order)) for _ in range(2)]
    unit = statistics.median(trainings)
    report.row(f"training the window once, {len(order)} steps", trainings, "s")
    probes = 2 if tiny else 4
    require_disk(folder.parent, 4 * task.layout.size * 3 * (4 + 2 * probes))
    few = dict(coords=1024) if tiny else {}
    spent = taken(lambda: osc.record(task, folder, probes=probes, sketch=False, jobs=1, **few))
    report.row(f"recording it with {probes} probes, no sketch", spent / unit, "trainings")
    spent = taken(lambda: osc.sketch(task, folder, jobs=1))
    report.row("sketching it: gradients, curvature, metrics", spent / unit, "trainings")
    rng = np.random.default_rng(5)
    orders = np.stack([order[rng.permutation(len(order))] for _ in range(10 if tiny else 100)])
    device = DEVICE if GPU else None
    answers = {
        "by expansions": ask(report, "by expansions", lambda: osc.Simulator(folder, device=device), orders, unit)
    }
    some = orders[: 3 if tiny else 4]
    answers["by the real model"] = ask(
        report, "by the real model", lambda: osc.Simulator(folder, task, device=device), some, unit
    )
    true = [osc.retrain(task, one).metrics["eval"][0] for one in some if report.left > 2 * unit]
    for how, told in answers.items():
        if len(true) > 2:
            off = np.sqrt(np.mean((told[: len(true)] - np.array(true)) ** 2)) / np.std(true)
            report.row(
                f"error of answers {how}, over the standard deviation of {len(true)} orders that were trained", off
            )


def require_disk(folder: Path, size: int) -> None:
    """Room for the states of the recorded runs, and half as much again."""
    free = shutil.disk_usage(folder).free
    if free < 1.5 * size:
        raise OSError(f"{free / 1e9:.0f} GB free in {folder}, {1.5 * size / 1e9:.0f} GB needed: set TMPDIR")


def ask(report: Report, how: str, opened: Callable[[], osc.Simulator], orders: np.ndarray, unit: float) -> np.ndarray:
    """Answers; told are the cost of the first, which loads and calibrates, and that of a hundred after it."""
    began = synchronised()
    sim = opened()
    sim.predict(orders[:1], metrics=["eval"])
    report.row(f"the first answer {how}, with loading and calibration", (synchronised() - began) / unit, "trainings")
    answers: list[np.ndarray] = []
    spent = taken(lambda: answers.append(sim.predict(orders, metrics=["eval"]).metrics["eval"]))
    report.row(f"a hundred answers {how}, measured on {len(orders)}", spent / unit * 100 / len(orders), "trainings")
    if not np.isfinite(answers[0]).all():
        raise AssertionError(f"answers {how} that are not finite: {answers[0]}")
    return answers[0]


# Orders side by side

RUNS = 16
FAR = 1e-3


def together(report: Report, tiny: bool) -> None:
    """Sixteen orders of a window trained at once over stacked weights, against one after the other."""
    small, middle, large = (512, 64, 128, 4, 4), (2048, 64, 384, 6, 6), (8192, 64, 768, 12, 12)
    for batch, sizes in [(4, (32, 8, 16, 1, 2))] if tiny else [(16, small), (16, middle), (8, large)]:
        side_by_side(report, batch, 4 if tiny else 20, *sizes)


def side_by_side(
    report: Report, batch: int, steps: int, vocabulary: int, context: int, width: int, layers: int, heads: int
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LanguageModel(vocabulary, context, width, layers, heads).to(DEVICE)
    what = f"{sum(p.numel() for p in model.parameters()) / 1e6:.3g} million weights, {RUNS} orders of {steps} steps"
    rows = torch.stack([sequences(t % DOMAINS, batch, context + 1, vocabulary, t) for t in range(steps)]).to(DEVICE)
    orders = torch.stack([torch.randperm(steps, generator=generator(i)) for i in range(RUNS)])
    times: dict[str, float] = {}
    losses: dict[str, Tensor] = {}
    for way, train in {"one after the other": trained_apart, "side by side": trained_together}.items():
        train(model, rows, orders[:, :2])  # whatever is chosen or compiled at the first call
        if GPU:
            report.write()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        began = synchronised()
        losses[way] = train(model, rows, orders).double()
        times[way] = synchronised() - began
        report.row(f"{what}, {way}", times[way], "s")
        if GPU:
            report.row(f"{what}, {way}: peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")
    apart, beside = losses.values()
    report.row(f"{what}: times quicker side by side", times["one after the other"] / times["side by side"])
    off = float(((apart - beside).abs() / apart).max())
    # Float32 sums in another order; Adam's first steps divide by small roots, which makes much of tiny gradients.
    report.row(f"{what}: largest relative difference of a loss", off, most=FAR)
    if off > FAR:
        raise AssertionError(f"losses side by side differ by {off:.2g} from those of ordinary training")


def trained_apart(model: nn.Module, rows: Tensor, orders: Tensor) -> Tensor:
    """Losses of every step of every order, [orders, steps], by an ordinary loop."""
    found = []
    for order in orders.tolist():
        own = copy.deepcopy(model)
        optimizer = adamw(own.parameters())
        for t in order:
            optimizer.zero_grad()
            loss = sequence_loss(own, rows[t]).mean()
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
    return torch.stack(found).view(orders.shape)


def trained_together(model: nn.Module, rows: Tensor, orders: Tensor) -> Tensor:
    """The same with all orders' weights in one tensor a parameter, [orders, *shape]."""
    weights = {n: p.detach().expand(len(orders), *p.shape).clone() for n, p in model.named_parameters()}
    first, second = ({n: torch.zeros_like(p) for n, p in weights.items()} for _ in range(2))

    def mean_loss(params: dict[str, Tensor], batch: Tensor) -> Tensor:
        return sequence_loss(lambda ids: functional_call(model, params, (ids,)), batch).mean()

    step = vmap(grad_and_value(mean_loss))
    found = []
    with sdpa_kernel(SDPBackend.MATH):  # the fused ones have no batching rule
        for t in range(orders.shape[1]):
            gradients, loss = step(weights, rows[orders[:, t].to(rows.device)])
            found.append(loss.detach())
            with torch.no_grad():
                for n, gradient in gradients.items():
                    adam(weights[n], gradient, first[n], second[n], t + 1)
    return torch.stack(found, 1)


def adam(weights: Tensor, gradient: Tensor, first: Tensor, second: Tensor, count: int) -> None:
    """A step of torch.optim.AdamW on stacked weights, in place."""
    weights.mul_(1 - RATE * DECAY)
    first.lerp_(gradient, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    root = second.sqrt().div_((1 - BETAS[1] ** count) ** 0.5).add_(EPS)
    weights.addcdiv_(first, root, value=-RATE / (1 - BETAS[0] ** count))


PARTS = {"kernels": kernels, "replay": replay, "together": together, "language": language}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("result", type=Path)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if not GPU:
        os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are first imported
    report, tiny = Report(options.result, options.seconds), options.tiny or not GPU
    report.write(tiny=tiny, device=torch.cuda.get_device_name() if GPU else f"CPU ({os.cpu_count()} cores)")
    try:
        PARTS[options.part](report, tiny)
        error = None
    except Exception:
        error = traceback.format_exc()
    report.write(error=error, finished=True)
    return int(error is not None)


if __name__ == "__main__":
    sys.exit(main())
