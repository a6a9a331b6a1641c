"""Training loops as people write them, each with a place for a recorder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

import tasks_tiny


@dataclass
class Loop:
    """One loop; `run(rec)` trains and returns the ids of each step that moved the weights."""

    order: np.ndarray
    build: Callable[[], nn.Module]
    data: Any
    loss: Callable[[Any, Any], torch.Tensor]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    scheduler: Callable[[Any], Any] | None = None
    micro: int = 1
    tell: str = "step"  # "step": once, after it; "micro": for every micro-batch; "before": once, before it
    clip: float | None = None
    autocast: torch.dtype | None = None
    scale: float | None = None
    zero: str = "after"
    set_to_none: bool = True
    model: nn.Module = field(init=False)
    opt: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.model = self.build()
        self.opt = self.optimizer(self.model.parameters())
        self.sched = self.scheduler(self.opt) if self.scheduler else None

    def run(self, rec: Any = None, first: int = 0, last: int | None = None) -> list[list[int]]:
        scaler = torch.amp.GradScaler("cpu", init_scale=self.scale) if self.scale else None
        trained = []
        for ids in self.order[first:last]:
            if self.zero == "before":
                self.opt.zero_grad(set_to_none=self.set_to_none)
            parts = np.array_split(ids, self.micro)
            for k, part in enumerate(parts):
                batch = torch.utils.data.default_collate([self.data[int(i)] for i in part])
                with torch.autocast("cpu", self.autocast) if self.autocast else nullcontext():
                    loss = self.loss(self.model, batch).mean()
                scaled = loss * len(part) / len(ids)
                (scaler.scale(scaled) if scaler else scaled).backward()
                if rec is not None and self.tell == "micro" and k < len(parts) - 1:
                    rec.step(part, loss)
            if rec is not None and self.tell == "before":
                rec.step(ids)
            if self.clip:
                if scaler:
                    scaler.unscale_(self.opt)
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            before = [p.detach().clone() for p in self.model.parameters()]
            if scaler:
                scaler.step(self.opt)
                scaler.update()
            else:
                self.opt.step()
            moved = any(not torch.equal(a, b) for a, b in zip(before, self.model.parameters(), strict=True))
            if moved:
                trained.append([int(i) for i in ids])
            if self.sched is not None and moved:
                self.sched.step()
            if self.zero == "after":
                self.opt.zero_grad(set_to_none=self.set_to_none)
            if rec is not None and self.tell == "step":
                rec.step(ids, loss if self.micro == 1 else None)
            elif rec is not None and self.tell == "micro":
                rec.step(parts[-1], loss)
        return trained


def make(name: str) -> Loop:
    kw = tasks_tiny.classifier()
    base = {k: kw[k] for k in ("order", "data", "loss", "optimizer", "scheduler")} | {"build": kw["model"]}
    groups = lambda params: _groups(list(params))  # noqa: E731
    changes: dict[str, dict[str, Any]] = {
        "plain": {},
        "zero first": {"zero": "before"},
        "zeros kept": {"set_to_none": False},
        "sgd": {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)},
        "adam": {"optimizer": lambda p: torch.optim.Adam(p, lr=5e-3, weight_decay=0.01)},
        "fused": {"optimizer": lambda p: torch.optim.AdamW(p, lr=5e-3, fused=True)},
        "groups": {"optimizer": groups, "clip": 0.1},
        "clipped": {"clip": 0.1},
        "accumulated": {"micro": 2},
        "accumulated, told by micro-batch": {"micro": 2, "tell": "micro"},
        "accumulated, zero first": {"micro": 2, "tell": "micro", "zero": "before"},
        "told before": {"tell": "before"},
        "told before, zero first": {"tell": "before", "zero": "before", "clip": 0.1},
        "bfloat16": {"autocast": torch.bfloat16},
        "float16, skips": {"autocast": torch.float16, "scale": 2.0**24, "clip": 0.1},
        "float16, skips, zero first": {"autocast": torch.float16, "scale": 2.0**24, "zero": "before"},
        "float16, fused, skips": {
            "autocast": torch.float16, "scale": 2.0**24,
            "optimizer": lambda p: torch.optim.AdamW(p, lr=5e-3, fused=True),
        },
        "float16, accumulated": {"autocast": torch.float16, "scale": 2.0**24, "micro": 2, "tell": "micro"},
        "onecycle": {"scheduler": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.01, total_steps=12)},
    }  # fmt: skip
    return Loop(**(base | changes[name]))


def _groups(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [{"params": params[::2], "lr": 3e-3}, {"params": params[1::2], "weight_decay": 0.2}], lr=1e-3
    )


NAMES = (
    "plain", "zero first", "zeros kept", "sgd", "adam", "fused", "groups", "clipped", "accumulated",
    "accumulated, told by micro-batch", "accumulated, zero first", "told before", "told before, zero first", "bfloat16",
    "float16, skips", "float16, skips, zero first", "float16, fused, skips", "float16, accumulated", "onecycle",
)  # fmt: skip
