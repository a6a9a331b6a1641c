"""Tiny tasks for tests: keyword arguments of `orderscope.Task`, built anew on every call.

linear        quadratic loss, P = 4: curvature is constant, everything has a closed form
classifier    MLP with tied-in extras on request (frozen layer, buffer, tied weights), P about 100
char          a character transformer with scaled_dot_product_attention, P about 1,500

Change one with `linear() | {"optimizer": ...}`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

GROUPS = ("a", "b", "c")


class Rows(Dataset):
    """Samples that are tuples of rows of some tensors, or plain rows of one."""

    def __init__(self, *columns: torch.Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, i: int):
        return self.columns[0][i] if len(self.columns) == 1 else tuple(c[i] for c in self.columns)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def permuted(steps: int, batch: int, seed: int) -> np.ndarray:
    return torch.randperm(steps * batch, generator=generator(seed)).view(steps, batch).numpy()


def blocks(steps: int, batch: int) -> list[str]:
    """Group labels of samples 0 .. steps * batch - 1, a run of `batch` samples each."""
    return [GROUPS[(i // batch) % len(GROUPS)] for i in range(steps * batch)]


def squared_error(model, batch):
    x, y = batch
    return (model(x).squeeze(-1) - y) ** 2


def cross_entropy(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


def next_char_loss(model, rows):
    logits = model(rows[:, :-1])
    return F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").mean(1)


def sgd(params, lr=0.05, **options):
    return torch.optim.SGD(params, lr=lr, **options)


def adamw(params, lr=5e-3, **options):
    return torch.optim.AdamW(params, lr=lr, **({"betas": (0.9, 0.95), "weight_decay": 0.01} | options))


def cosine(steps: int):
    def build(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.55 + 0.45 * math.cos(math.pi * t / steps))

    return build


def linear(steps: int = 8, batch: int = 4, width: int = 3) -> dict[str, Any]:
    """Least squares with plain SGD."""
    g = generator(0)
    x = torch.randn(steps * batch, width, generator=g)
    y = x @ torch.randn(width, generator=g) + 0.1 * torch.randn(len(x), generator=g)
    held = torch.randn(16, width, generator=g), torch.randn(16, generator=g)
    start = torch.randn(width + 1, generator=g)

    def build():
        model = nn.Linear(width, 1)
        with torch.no_grad():
            model.weight.copy_(start[None, :width])
            model.bias.copy_(start[width:])
        return model

    return {
        "model": build,
        "loss": squared_error,
        "data": Rows(x, y),
        "optimizer": sgd,
        "scheduler": None,
        "metrics": {"eval": Rows(*held)},
        "order": permuted(steps, batch, seed=1),
        "groups": blocks(steps, batch),
    }


class Mlp(nn.Module):
    """Two layers; `frozen`, `tied` and `counting` add what recorders get wrong."""

    calls: torch.Tensor

    def __init__(self, width: int, frozen: bool, tied: bool, counting: bool) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.scale = nn.Parameter(torch.ones(()))
        self.rare = nn.Parameter(torch.zeros(3))
        self.middle.requires_grad_(not frozen)
        self.counting = counting
        if tied:
            self.middle.weight = nn.Parameter(torch.eye(width))
            self.again = self.middle
        if counting:
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.counting and self.training:
            self.calls = self.calls + 1
        x = torch.tanh(self.middle(torch.tanh(self.first(x))))
        if hasattr(self, "again"):
            x = torch.tanh(self.again(x))
        return self.scale * self.last(x)


def classifier(
    steps: int = 10,
    batch: int = 4,
    width: int = 6,
    frozen: bool = False,
    tied: bool = False,
    counting: bool = False,
) -> dict[str, Any]:
    """Three noisy clusters, AdamW with cosine decay. `rare` never gets a gradient, `scale` is 0-dimensional."""
    g = generator(2)

    def rows(n):
        y = torch.randint(0, 3, (n,), generator=g)
        angle = y * (2 * math.pi / 3)
        return torch.stack([angle.cos(), angle.sin()], 1) + 0.6 * torch.randn(n, 2, generator=g), y

    train, held = rows(steps * batch), rows(24)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        weights = Mlp(width, frozen, tied, counting).state_dict()

    def build():
        model = Mlp(width, frozen, tied, counting)
        model.load_state_dict(weights)
        return model

    def accuracy(model):
        return float((model(held[0]).argmax(1) == held[1]).double().mean())

    return {
        "model": build,
        "loss": cross_entropy,
        "data": Rows(*train),
        "optimizer": adamw,
        "scheduler": cosine(steps),
        "metrics": {"eval": Rows(*held), "accuracy": accuracy},
        "order": permuted(steps, batch, seed=4),
        "groups": blocks(steps, batch),
    }


class CharGPT(nn.Module):
    def __init__(self, vocab: int, context: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.tok, self.pos = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)

    def forward(self, ids):
        x = self.tok(ids) + self.pos.weight[: ids.shape[1]]
        b, t, w = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, w)
        return self.head(self.norm(x + self.out(y)))


def char(steps: int = 9, batch: int = 4, vocab: int = 16, context: int = 8, width: int = 8) -> dict[str, Any]:
    """Next-character prediction; every group has its own alphabet. AdamW, clipped, warm moments."""
    g = generator(5)
    groups = blocks(steps, batch)

    def row(name):
        return (torch.randint(0, 6, (context + 1,), generator=g) + 5 * GROUPS.index(name)) % vocab

    rows = torch.stack([row(name) for name in groups])
    held = torch.stack([row(name) for name in GROUPS * 4])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        model = CharGPT(vocab, context, width, heads=2)
        optimizer = adamw(model.parameters())
        for ids in permuted(steps, batch, seed=8)[:5]:
            optimizer.zero_grad()
            next_char_loss(model, rows[ids]).mean().backward()
            optimizer.step()
    weights, moments = model.state_dict(), optimizer.state_dict()

    def build():
        fresh = CharGPT(vocab, context, width, heads=2)
        fresh.load_state_dict(weights)
        return fresh

    order = np.arange(steps * batch).reshape(steps, batch)
    return {
        "model": build,
        "loss": next_char_loss,
        "data": Rows(rows),
        "optimizer": adamw,
        "scheduler": cosine(steps),
        "metrics": {"eval": Rows(held)},
        "order": order[torch.randperm(steps, generator=generator(7)).numpy()],
        "groups": groups,
        "optimizer_state": moments,
        "max_grad_norm": 1.0,
    }
