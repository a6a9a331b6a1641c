"""Optimizers for tests of laws: as a task takes them, and as the engine sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from orderscope.engine.optimizers import Dynamics, Start, slices
from orderscope.task.hyper import hyper_parameters
from tasks_tiny import sgd


def two_groups(optimizer, **second: Any):
    """The optimizer over two parameter groups; `second` changes the options of the latter half of the parameters."""

    def build(params):
        params = list(params)
        half = len(params) // 2
        return optimizer([{"params": params[:half]}, {"params": params[half:], **second}])

    return build


def adam(kind=torch.optim.Adam, **options):
    return lambda params: kind(params, **({"lr": 3e-3} | options))


OPTIMIZERS = {
    "sgd": sgd,
    "momentum": lambda p: sgd(p, momentum=0.9),
    "dampening": lambda p: sgd(p, momentum=0.9, dampening=0.3),
    "nesterov, decay": lambda p: sgd(p, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": adam(),
    "adam, coupled decay": adam(weight_decay=0.1),
    "adam, amsgrad": adam(amsgrad=True),
    "adamw": adam(torch.optim.AdamW, weight_decay=0.1),
    "adamw, amsgrad, maximize": adam(torch.optim.AdamW, amsgrad=True, maximize=True),
    "nadam": adam(torch.optim.NAdam),
    "nadam, decoupled decay": adam(torch.optim.NAdam, weight_decay=0.1, decoupled_weight_decay=True, maximize=True),
    "two groups": two_groups(adam(torch.optim.AdamW), lr=1e-3, weight_decay=0.2, betas=(0.5, 0.9)),
    "two groups, sgd": two_groups(lambda p: sgd(p, momentum=0.9), lr=0.01, momentum=0.0),
}

# Eight coordinates in three parameters, five steps, learning rates that fall.

SHAPES = [(3,), (2, 2), ()]
SIZES = [3, 4, 1]
MAKE = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=0.1, momentum_decay=0.1),
    "two groups": lambda p: torch.optim.AdamW([
        {"params": p[:2]}, {"params": p[2:], "lr": 0.03, "betas": (0.5, 0.9), "weight_decay": 0.2},
    ], lr=0.01),
}  # fmt: skip
STEPS = 5
FACTORS = np.linspace(1.0, 0.2, STEPS)


def parameters(start):
    return [p.view(shape).clone().requires_grad_() for p, shape in zip(start.split(SIZES), SHAPES, strict=True)]


def schedule(make):
    """Hyper-parameters of every step, the learning rates of all groups falling together."""
    optimizer = make(parameters(torch.zeros(8)))
    rows = hyper_parameters(optimizer)
    hyper = {name: np.repeat(np.array([values]), STEPS, axis=0) for name, values in rows.items()}
    hyper["lr"] = hyper["lr"] * FACTORS[:, None]
    return type(optimizer).__name__, hyper


def dynamics(make, start, *, masked=False, max_grad_norm=None):
    name, hyper = schedule(make)
    groups = [0, 0, 1] if len(hyper["lr"][0]) == 2 else [0, 0, 0]
    described = [{"shape": shape, "group": g} for shape, g in zip(SHAPES, groups, strict=True)]
    parts = slices(described, None, torch.zeros(3), torch.zeros(3, dtype=torch.bool), masked)
    return Dynamics(name, hyper, Start(start, {}), parts, 3, masked, max_grad_norm, 1.0)
