"""A small character transformer in the middle of its training, on text that comes with Python.

    orderscope record examples/characters.py:task --out run

Three domains: prose (the help texts of `pydoc`), code (the standard library) and the names of Unicode characters. Every
batch is of one domain, so the order of the batches is a curriculum.
"""

from __future__ import annotations

import math
import sysconfig
import unicodedata
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

import orderscope as osc

ALPHABET = 128  # ASCII; anything else becomes the last of it
CONTEXT = 32
BATCH = 16
HELD_OUT = 64  # passages of each domain
WARM_UP = 400  # steps on mixed batches before the recorded window
RATE = 1.5e-3


def corpora() -> dict[str, str]:
    """Domain -> its text."""
    library = Path(sysconfig.get_path("stdlib"))
    modules = sorted(library.glob("*.py"))[:60]
    characters = map(chr, range(0xA0, 0x3000))
    return {
        "code": "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in modules),
        "names": "\n".join(filter(None, (unicodedata.name(c, "") for c in characters))),
        "prose": "\n".join(topics[key] for key in sorted(topics)),
    }


class Passages(Dataset):
    """Rows of `CONTEXT + 1` characters, as integers."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]


class Layer(nn.Module):
    """Causal attention, then a two-layer network, each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_network = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query_key_value, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.query_key_value(self.before_attention(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in parts)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(seen.transpose(-3, -2).flatten(-2))
        return x + self.network(self.before_network(x))


class CharacterModel(nn.Module):
    def __init__(self, width: int = 32, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.character, self.place = nn.Embedding(ALPHABET, width), nn.Embedding(CONTEXT, width)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.last, self.score = nn.RMSNorm(width), nn.Linear(width, ALPHABET, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.score(self.last(self.layers(self.character(ids) + self.place.weight[: ids.shape[-1]])))


def loss(model: nn.Module, rows: Tensor) -> Tensor:
    """Mean negative log-likelihood of the next character, one value a passage."""
    scores = model(rows[:, :-1])
    return F.cross_entropy(scores.transpose(1, 2), rows[:, 1:], reduction="none").mean(1)


def optimizer(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.95), weight_decay=0.01)


def warm_start(rows: Tensor) -> tuple[dict, dict]:
    """Weights and optimizer state after `WARM_UP` steps on mixed batches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CharacterModel()
        adam = optimizer(model.parameters())
        for step in range(WARM_UP):
            adam.param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 20)
            adam.zero_grad()
            loss(model, rows[torch.randint(len(rows), (BATCH,))]).mean().backward()
            adam.step()
    return model.state_dict(), adam.state_dict()


def task(steps: int = 48) -> osc.Task:
    """A window of `steps` steps with cosine decay, the domains in random turn."""
    generator = torch.Generator().manual_seed(1)
    texts = {
        name: torch.tensor([min(ord(c), ALPHABET - 1) for c in text], dtype=torch.long)
        for name, text in corpora().items()
    }
    domains = sorted(texts)

    def passages(name: str, count: int) -> Tensor:
        starts = torch.randint(len(texts[name]) - CONTEXT - 1, (count,), generator=generator)
        return texts[name].unfold(0, CONTEXT + 1, 1)[starts]

    weights, state = warm_start(torch.cat([passages(name, 1200) for name in domains]))
    held_out = {name: passages(name, HELD_OUT) for name in domains}
    turns = [domains[i % len(domains)] for i in torch.randperm(steps, generator=generator).tolist()]

    def model() -> CharacterModel:
        fresh = CharacterModel()
        fresh.load_state_dict(weights)
        return fresh

    return osc.Task(
        model=model,
        loss=loss,
        data=Passages(torch.cat([passages(name, BATCH) for name in turns])),
        optimizer=optimizer,
        scheduler=lambda adam: torch.optim.lr_scheduler.LambdaLR(
            adam, lambda step: 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps))
        ),
        metrics={"eval": Passages(torch.cat(list(held_out.values())))}
        | {name: Passages(rows) for name, rows in held_out.items()},
        order=torch.arange(steps * BATCH).view(steps, BATCH).numpy(),
        groups=[name for name in turns for _ in range(BATCH)],
        optimizer_state=state,
    )
