"""Which domain a passage of characters is of: code, names or prose. The data of the examples beside this file."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from characters import ALPHABET, corpora

LENGTH = 24
DOMAINS = ("code", "names", "prose")


def passages(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """`count` samples in random turn: `input_ids` [LENGTH] and `labels`, the domain."""
    generator = torch.Generator().manual_seed(seed)
    texts = corpora()
    rows = []
    for label in torch.randint(len(DOMAINS), (count,), generator=generator).tolist():
        text = texts[DOMAINS[label]]
        start = int(torch.randint(len(text) - LENGTH, (1,), generator=generator))
        ids = torch.tensor([min(ord(c), ALPHABET - 1) for c in text[start : start + LENGTH]])
        rows.append({"input_ids": ids, "labels": torch.tensor(label)})
    return rows
