"""Steps of a replay, small and odd, for every implementation to take."""

import torch

from orderscope_kernels.optimizers import KINDS
from orderscope_kernels.reference import Clip, Part, Terms
from tasks_tiny import generator

UNITS, ANCHORS, STATES = 5, 3, 19
ADAM = dict(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, decoupled=True, maximize=False, count=3.0, lr=1e-2)
SGD = dict(momentum=0.9, dampening=0.2, nesterov=False, weight_decay=0.1, maximize=False, first=False, lr=1e-2)
NADAM = ADAM | {"momentum_decay": 0.04}
OPTIMIZERS = {
    "adamw": ("AdamW", ADAM),
    "adam, coupled decay": ("Adam", ADAM | {"decoupled": False}),
    "amsgrad, maximize": ("AdamW", ADAM | {"maximize": True}),
    "nadam": ("NAdam", NADAM),
    "plain": ("SGD", SGD | {"momentum": 0.0}),
    "momentum": ("SGD", SGD),
    "first momentum": ("SGD", SGD | {"first": True}),
    "nesterov, maximize": ("SGD", SGD | {"nesterov": True, "maximize": True}),
}
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


def table_of(dtype, entries, coords, g):
    values = torch.randn(entries, coords, generator=g)
    return (40 * values).round().clamp(-127, 127).to(dtype) if dtype == torch.int8 else values.to(dtype)


def made_terms(rows, coords, *, table=torch.float32, factor=torch.float32, rank=70, seed=0):
    """Gradients of `rows` states, some entries with no weight; entries that nobody uses are poisoned."""
    g = generator(seed)
    entries = table_of(table, UNITS * ANCHORS, coords, g)
    unit = torch.randint(0, UNITS, (rows,), generator=g).sort().values
    index = unit[:, None] * ANCHORS + torch.arange(ANCHORS)
    weights = torch.randn(rows, ANCHORS, generator=g) * (torch.rand(rows, ANCHORS, generator=g) > 0.3)
    if table != torch.int8:
        entries[[e for e in range(len(entries)) if e not in index.flatten()]] = torch.nan
    upper = torch.randint(0, 2, (rows,), generator=g).sort().values
    ranges = torch.stack([upper * (rank // 2), rank // 2 + upper * (rank - rank // 2)], 1).int()
    ranges[rows // 2] = 0  # a row without curvature
    column = torch.arange(rank)
    used = (column >= ranges[:, :1]) & (column < ranges[:, 1:])
    coefficients = torch.randn(rows, rank, generator=g) * used
    vectors = torch.randn(rank, coords, generator=g).to(factor)
    return Terms(entries, index, weights, vectors, coefficients, ranges)


def made_states(name, coords, seed=1):
    """Weights, moments and the rows of a permutation of them."""
    g = generator(seed)
    optimizer, options = OPTIMIZERS[name]
    theta = torch.randn(STATES, coords, generator=g)
    present = options | {"amsgrad": "amsgrad" in name}
    keys = [key for key in KINDS[optimizer].keys if key.option is None or present[key.option]]
    moments = {key.name: torch.rand(STATES, coords, generator=g) for key in keys}
    return theta, moments, torch.randperm(STATES, generator=g)


def made_parts(name, coords):
    """Two parts with learning rates of their own."""
    cut = coords // 3
    options = OPTIMIZERS[name][1]
    parts = [Part(0, cut, options)] if cut else []
    return [*parts, Part(cut, coords, options | {"lr": 3e-3})]


def made_clip(rows):
    known = torch.full((rows,), torch.nan)
    known[: rows // 2] = 0.7
    return Clip(2.0, torch.linspace(1.0, 2.0, len(known)).to(known), known)
