"""Losses of models that compute in low precision or return more than tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import orderscope as osc
from orderscope.sketching import draw_coordinates
from orderscope.sketching.gradients import Point, point
from orderscope.sketching.outputs import find_split
from orderscope.sketching.pseudo_gradients import gauss_newton_matrix, pseudo_gradients
from orderscope.training.loop import start
from orderscope.training.state import capture
from tasks_tiny import classifier


def at_start(task: osc.Task) -> Point:
    session = start(task)
    return point(task, session.model, capture(session))


def under_autocast(temperature: float) -> Any:
    def loss(model: Any, batch: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(batch[0].repeat(1, 1))
        return F.cross_entropy(scores.float() / temperature, batch[1], reduction="none")

    return loss


class Linear(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 3)
        with torch.no_grad():
            self.weight.copy_(torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.0, -1.0]]))
            self.bias.zero_()


@pytest.mark.parametrize(("temperature", "kind"), [(1.0, "softmax"), (0.7, "dense")])
def test_outputs_in_bfloat16_are_split_as_in_float32(temperature: float, kind: str) -> None:
    task = osc.Task(**classifier() | {"model": Linear, "loss": under_autocast(temperature)})
    wide = osc.Task(**classifier() | {
        "model": Linear, "loss": lambda m, b: F.cross_entropy(m(b[0]) / temperature, b[1], reduction="none"),
    })  # fmt: skip
    coordinates, ids = draw_coordinates(task.layout.size, task.layout.size, 0), np.arange(40)
    at, there = at_start(task), at_start(wide)
    split = find_split(at, task.batch(ids[:4]))
    assert split.kind == kind
    rows = pseudo_gradients(at, split, task.batch, ids, coordinates, draws=300, seed=0, micro_batch=64).double()
    found = torch.einsum("sdi,sdj->ij", rows, rows) / (40 * 300)
    exact = gauss_newton_matrix(there, find_split(there, wide.batch(ids[:4])), wide.batch, ids, coordinates)
    # bfloat16 rounds gradients by 2^-9. Labels: 12,000 draws leave 1/sqrt(12000), three times over. Signs: the draws of
    # one sample share their random numbers, so 40 samples leave up to 1/sqrt(40) between two outputs.
    assert (found - exact).norm() < (0.03 if kind == "softmax" else 0.15) * exact.trace()


class Cache:
    """Keys and values of the past: what language models return beside their scores."""


class WithCache(Linear):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), Cache()


def test_a_leaf_that_is_no_tensor_is_left_out() -> None:
    loss = lambda m, b: F.cross_entropy(m(b[0])[0], b[1], reduction="none")  # noqa: E731
    plain = lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")  # noqa: E731
    drawn = []
    for model, function in ((WithCache, loss), (Linear, plain)):
        task = osc.Task(**classifier() | {"model": model, "loss": function})
        at = at_start(task)
        split = find_split(at, task.batch([0, 1, 2]))
        assert split.kind == "softmax"
        coordinates = draw_coordinates(task.layout.size, task.layout.size, 0)
        drawn.append(pseudo_gradients(at, split, task.batch, np.arange(8), coordinates, draws=2, seed=0, micro_batch=8))
    torch.testing.assert_close(drawn[0], drawn[1])
