#!/usr/bin/env python3
"""A loop of one's own, with two lines added: accumulation, bfloat16, clipping, a schedule.

python examples/loops/plain.py out
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from domains import DOMAINS, LENGTH, passages
from torch import Tensor, nn
from torch.utils.data import DataLoader

import orderscope as osc

MICRO = 2  # micro-batches a step


class Guess(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(128, 16)
        self.guess = nn.Sequential(nn.Linear(16 * LENGTH, 32), nn.GELU(), nn.Linear(32, len(DOMAINS)))

    def forward(self, ids: Tensor) -> Tensor:
        return self.guess(self.letters(ids).flatten(1))


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(batch["input_ids"])
    return F.cross_entropy(scores.float(), batch["labels"], reduction="none")


def main(out: str, samples: int = 256) -> dict[str, float]:
    torch.manual_seed(0)
    data, held_out = passages(samples), passages(96, seed=1)
    model = Guess()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps = samples // 8
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    loader = DataLoader(data, batch_size=8 // MICRO, shuffle=True, drop_last=True)

    with osc.Recorder(out, model, optimizer) as rec:
        for k, (ids, batch) in enumerate(osc.with_ids(loader)):
            losses = loss(model, batch)
            (losses.mean() / MICRO).backward()
            if k % MICRO == MICRO - 1:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            rec.step(ids, losses.mean())

    task = rec.task(model=model, loss=loss, data=data, metrics={"eval": held_out}, max_grad_norm=1.0)
    osc.record(task, out)
    return asked(out, task)


def asked(out: str, task: osc.Task) -> dict[str, float]:
    """The reversed order: as predicted, with its error, and as it truly comes out."""
    answer = osc.Simulator(out, task).predict(task.order[::-1])
    found = {
        "recorded": answer.reference["eval"],
        "predicted": float(answer.metrics["eval"][0]),
        "error": float(answer.error["eval"][0]),
        "true": float(osc.retrain(task, task.order[::-1]).metrics["eval"][0]),
    }
    print("  ".join(f"{name} {value:.4f}" for name, value in found.items()))
    return found


if __name__ == "__main__":
    main(*sys.argv[1:2])
