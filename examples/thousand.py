#!/usr/bin/env python3
"""A fine-tune of a thousand steps in a plain PyTorch loop, and three questions that its owner has about the order.

    python examples/thousand.py record out     # train it, watched by a recorder, then probes and sketch
    python examples/thousand.py ask out        # answer the questions, and let the rival answer them
    python examples/thousand.py train out      # train every order that was asked about, and compare

Which domain should come last? Does easy-to-hard help? Where does a little good data belong? A character transformer
of 118,000 weights goes on from a checkpoint under AdamW with cosine decay. Every batch is of one domain: prose, code,
columns of numbers, or "good", one batch in twenty, code of the package that the model will work on. The rival trains
every order on an eighth of each batch. Every command resumes if it was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))
from characters import ALPHABET, BATCH, CONTEXT, CharacterModel, Passages, corpora, loss

import orderscope as osc
from orderscope.errors import IncompleteRun
from orderscope.files import written
from orderscope.orders import resolve, step_groups
from orderscope.recording.costs import cpu_seconds, part_runs, training_seconds

STEPS = 1000
WIDTH = 64
WARM_UP = 400  # steps on mixed batches of the three domains, before the recorded loop
RATE = 1e-3
DOMAINS = ("prose", "code", "numbers")
GOOD, GOOD_SHARE = "good", 0.05
HELD_OUT = 340  # passages of a domain; three times as many of the good data
EFFORT = 0.125  # share of each batch that the rival trains on
BLOCK = 2000  # characters; every tenth block of a text is kept for held-out passages

Order = np.ndarray  # sample ids, int64 [steps, batch]


@cache
def texts() -> dict[str, Tensor]:
    """Domain -> its characters, integers [length]."""
    found = corpora()
    package = sorted((Path(sysconfig.get_path("stdlib")) / "asyncio").glob("*.py"))
    sources = {
        "prose": found["prose"],
        "code": found["code"],
        "numbers": "\n".join(f"{n:6d} {n * n:10d} {n**0.5:9.4f} {1000 / n:9.4f}" for n in range(1, 20001)),
        GOOD: "\n".join(path.read_text(encoding="utf-8") for path in package),
    }
    return {name: torch.tensor([min(ord(c), ALPHABET - 1) for c in text]) for name, text in sources.items()}


def passages(text: Tensor, count: int, seed: int, *, held_out: bool = False) -> Tensor:
    """Random rows of a text, [count, CONTEXT + 1], from blocks of their own where they are held out."""
    starts = torch.arange(len(text) - CONTEXT)
    inside = starts % BLOCK < BLOCK - CONTEXT
    starts = starts[inside & ((starts // BLOCK % 10 == 0) == held_out)]
    drawn = torch.randint(len(starts), (count,), generator=torch.Generator().manual_seed(seed))
    return text.unfold(0, CONTEXT + 1, 1)[starts[drawn]]


def training_data(steps: int) -> tuple[Passages, list[str]]:
    """The rows in the order in which they are trained, `steps` batches of one domain each, and the domain of each."""
    count = max(1, round(GOOD_SHARE * steps))
    names = [GOOD] * count + [DOMAINS[i % len(DOMAINS)] for i in range(steps - count)]
    turns = [names[i] for i in torch.randperm(steps, generator=torch.Generator().manual_seed(1)).tolist()]
    rows = torch.empty(steps, BATCH, CONTEXT + 1, dtype=torch.long)
    for seed, (name, text) in enumerate(texts().items()):
        places = torch.tensor([turn == name for turn in turns])
        rows[places] = passages(text, int(places.sum()) * BATCH, seed).view(-1, BATCH, CONTEXT + 1)
    return Passages(rows.flatten(0, 1)), [name for name in turns for _ in range(BATCH)]


def held_out_data() -> dict[str, Passages]:
    """What the final model is judged by: the three domains together, each of them, and the good data."""
    sources = texts()
    rows = {name: passages(sources[name], HELD_OUT, 10, held_out=True) for name in DOMAINS}
    rows = {"eval": torch.cat(list(rows.values())), **rows}
    rows[GOOD] = passages(sources[GOOD], len(DOMAINS) * HELD_OUT, 10, held_out=True)
    return {name: Passages(found) for name, found in rows.items()}


def build() -> CharacterModel:
    return CharacterModel(WIDTH)


def checkpoint() -> tuple[CharacterModel, torch.optim.AdamW]:
    """A model and its optimizer after `WARM_UP` steps on mixed batches of the three domains."""
    sources = texts()
    rows = torch.cat([passages(sources[name], 1600, 20) for name in DOMAINS])
    torch.manual_seed(0)
    model = build()
    adam = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.01)
    for _ in range(WARM_UP):
        adam.zero_grad()
        loss(model, rows[torch.randint(len(rows), (BATCH,))]).mean().backward()
        adam.step()
    return model, adam


def fine_tune(run: Path, steps: int) -> None:
    """The loop that is recorded."""
    model, adam = checkpoint()
    data, _ = training_data(steps)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, eta_min=0.1 * RATE)
    with osc.Recorder(run, model, adam, steps=steps) as rec:
        for ids, rows in osc.with_ids(DataLoader(data, BATCH)):
            adam.zero_grad()
            value = loss(model, rows).mean()
            value.backward()
            adam.step()
            scheduler.step()
            rec.step(ids, value)


def recorded_steps(run: Path) -> int | None:
    """Steps of the loop recorded there; None where it did not reach its end."""
    if not run.exists():
        return None
    try:
        found = osc.recorded(run)
    except IncompleteRun:
        return None
    return None if found.problems else len(found.batches)


def recorded_task(run: Path) -> osc.Task:
    """The recorded loop as a task."""
    steps = recorded_steps(run)
    if steps is None:
        raise SystemExit(f"found no finished loop at {run}; `thousand.py record` trains it")
    data, groups = training_data(steps)
    return osc.recorded(run).task(model=build, loss=loss, data=data, metrics=held_out_data(), groups=groups)


def questions(task: osc.Task) -> dict[str, tuple[str, dict[str, Order]]]:
    """Question -> the metric that decides it, and the orders that it compares."""
    order, groups = task.order, task.groups
    signals = {"start": starting_losses(task)}

    def says(*texts: str) -> dict[str, Order]:
        return {text: resolve(text, order, groups, signals) for text in texts}

    within = {f"{text} within each domain": within_domains(order, groups, resolve(text, order, groups, signals))
              for text in ("sort:start", "sort:-start")}  # fmt: skip
    return {
        "which domain last": ("eval", says(*(f"late:{name}" for name in DOMAINS))),
        "easy to hard": ("eval", says("sort:start", "sort:-start") | within),
        "where the good data": (GOOD, says(f"early:{GOOD}", f"late:{GOOD}") | {"spread": spread(order, groups)}),
    }


def starting_losses(task: osc.Task) -> np.ndarray:
    """The loss of each sample under the checkpoint, [samples]: how hard it is before the fine-tune."""
    model = task.build_model()
    with torch.no_grad():
        parts = [loss(model, rows) for rows in DataLoader(task.data, 256)]
    return torch.cat(parts).double().numpy()


def within_domains(order: Order, groups: Any, wanted: Order) -> Order:
    """The domains in their recorded turn, the batches of each in the turn that they have in `wanted`."""
    turns, found = np.array(step_groups(order, groups)), order.copy()
    for name in set(turns):
        found[turns == name] = wanted[np.array(step_groups(wanted, groups)) == name]
    return found


def spread(order: Order, groups: Any) -> Order:
    """The good batches at even distances, the others as they were."""
    good = np.array(step_groups(order, groups)) == GOOD
    places = np.zeros(len(order), dtype=bool)
    places[((np.arange(good.sum()) + 0.5) * len(order) / good.sum()).astype(int)] = True
    found = np.empty_like(order)
    found[places], found[~places] = order[good], order[~good]
    return found


def record(out: Path, steps: int = STEPS, **options: Any) -> None:
    """Train the loop, then record probes and sketch; the options are those of `osc.record`."""
    run = out / "run"
    if recorded_steps(run) is None:
        fine_tune(run, steps)
    store = osc.record(recorded_task(run), run, **options)
    print(f"one training: {training_seconds(store):.1f} CPU seconds")
    print("recording, in trainings: " + ", ".join(f"{part} {cost:.2f}" for part, cost in part_runs(store).items()))


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What a JSON file holds; where there is none it is made."""
    if not path.exists():
        made = json.dumps(make(), indent=1)
        with written(path) as file:
            file.write(made.encode())
    return json.loads(path.read_text())


def ask(out: Path) -> dict[str, Any]:
    """The answers of Orderscope and of the rival, and what they cost; prints them."""
    task = recorded_task(out / "run")
    answers = kept(out / "answers.json", lambda: answered(out / "run", task))
    print(table(answers, {}))
    return answers


def answered(run: Path, task: osc.Task) -> dict[str, Any]:
    """A row an order, with what both estimators say of its question's metric, and the CPU time of all in trainings."""
    asked = questions(task)
    rows: list[dict[str, Any]] = [{"question": question, "metric": metric, "order": name}
            for question, (metric, orders) in asked.items() for name in orders]  # fmt: skip
    costs = {}
    for who, options in {"carried": {}, "proxy": {"effort": EFFORT}}.items():
        began = cpu_seconds()
        sim = osc.Simulator(run, task)
        found = [answer for metric, orders in asked.values() for answer in told(sim, orders, who, metric, options)]
        costs[who] = (cpu_seconds() - began) / (training_seconds(sim.store) or float("nan"))
        for row, answer in zip(rows, found, strict=True):
            row[who] = answer
    auto = {name: sim.predict(task.order, effort=EFFORT, metrics=[name]).estimator for name in ("eval", GOOD)}
    sigma = {name: sim.sigma_order(name) for name in auto}
    recording = sum(part_runs(sim.store).values())
    return {"rows": rows, "auto": auto, "sigma_order": sigma, "costs": {"recording": recording, **costs}}


def told(sim: osc.Simulator, orders: dict[str, Order], who: str, metric: str, options: Any) -> list[dict[str, Any]]:
    """What an estimator says of each order: change against the recorded order, its error, whether it is trusted."""
    found = sim.predict(np.stack(list(orders.values())), who, metrics=[metric], **options)
    change = found.metrics[metric] - found.reference[metric]
    columns = zip(change.tolist(), found.error[metric].tolist(), found.trusted.tolist(), strict=True)
    return [{"change": value, "error": error, "trusted": trusted} for value, error, trusted in columns]


def train(out: Path) -> dict[str, Any]:
    """Train every order that was asked about; prints answers and truths."""
    run = out / "run"
    task = recorded_task(run)
    answers = kept(out / "answers.json", lambda: answered(run, task))
    orders = [order for _, orders in questions(task).values() for order in orders.values()]
    truths = [
        kept(out / f"truth-{place}.json", lambda order=order: trained(task, order))
        for place, order in enumerate(orders)
    ]
    reference = osc.Simulator(run).reference
    changes = [truth[row["metric"]] - reference[row["metric"]]
               for row, truth in zip(answers["rows"], truths, strict=True)]  # fmt: skip
    seconds = training_seconds(osc.RunStore.open(run)) or float("nan")
    costs = answers["costs"] | {"trained": sum(truth["seconds"] for truth in truths) / seconds}
    print(table(answers, dict(enumerate(changes))))
    print("costs, in trainings: " + ", ".join(f"{what} {cost:.2f}" for what, cost in costs.items()))
    print("sigma_order: " + ", ".join(f"{name} {value:.4f}" for name, value in answers["sigma_order"].items()))
    print('estimator="auto" takes: ' + ", ".join(f"{name} {who}" for name, who in answers["auto"].items()))
    return {"answers": answers, "changes": changes, "truths": truths, "costs": costs}


def trained(task: osc.Task, order: Order) -> dict[str, Any]:
    began = cpu_seconds()
    metrics = osc.retrain(task, order).metrics
    return {"seconds": cpu_seconds() - began} | {name: float(values[0]) for name, values in metrics.items()}


def table(answers: dict[str, Any], changes: dict[int, float]) -> str:
    """Changes against the recorded order, in Markdown; a dash where the true one is not known."""
    lines = ["| question | order | metric | predicted | trusted | true | rival | trusted |", "|---" * 8 + "|"]
    for place, row in enumerate(answers["rows"]):
        cells = [row["question"], f"`{row['order']}`", row["metric"]]
        true = f"{changes[place]:+.4f}" if place in changes else "-"
        for who, after in (("carried", [true]), ("proxy", [])):
            said = row[who]
            cells += [f"{said['change']:+.4f} ± {said['error']:.4f}", "yes" if said["trusted"] else "no", *after]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Record a fine-tune of a thousand steps and ask about its order.")
    parser.add_argument("verb", choices=["record", "ask", "train"])
    parser.add_argument("out", type=Path, help="directory of the run, the answers and the truths")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the loop, for `record`")
    parser.add_argument("--anchors", type=int, help="as `osc.record` takes them, for `record`")
    parser.add_argument("--curvature-rows", type=int, help="as `osc.record` takes them, for `record`")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.verb == "record":
        options.out.mkdir(parents=True, exist_ok=True)
        record(options.out, options.steps, anchors=options.anchors, curvature_rows=options.curvature_rows)
    else:
        {"ask": ask, "train": train}[options.verb](options.out)
