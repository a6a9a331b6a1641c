"""Losses that only the user can draw targets for: inside the model, and summed over two tasks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import orderscope as osc
from orderscope import losses
from orderscope.sketching import draw_coordinates
from orderscope.sketching.gradients import point
from orderscope.sketching.outputs import find_split
from orderscope.sketching.pseudo_gradients import gauss_newton_matrix
from orderscope.sketching.stage import stored_split
from orderscope.sketching.targets import target_gradients
from orderscope.training.loop import start
from orderscope.training.state import capture
from tasks_tiny import classifier, generator


class Inside(nn.Module):
    """Computes its loss itself where it is given labels, as Hugging Face's models do."""

    def __init__(self) -> None:
        super().__init__()
        g = generator(1)
        self.net = nn.Linear(2, 3)
        with torch.no_grad():
            self.net.weight.copy_(torch.randn(3, 2, generator=g))
            self.net.bias.zero_()

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        logits = self.net(x)
        return SimpleNamespace(logits=logits, loss=None if labels is None else F.cross_entropy(logits, labels))


class Dicts(torch.utils.data.Dataset):
    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        x, y = self.rows[i]
        return {"x": x, "labels": y}


def labels_drawn(model: Any, batch: Any, rng: torch.Generator) -> Any:
    p = model(batch["x"]).logits.softmax(-1)
    return {**batch, "labels": torch.multinomial(p, 1, generator=rng)[:, 0]}


def inside(**change: Any) -> dict[str, Any]:
    kw = classifier()
    parts = {"model": Inside, "loss": losses.inside, "data": Dicts(kw["data"]), "optimizer": kw["optimizer"],
             "scheduler": kw["scheduler"], "metrics": {"eval": Dicts(kw["metrics"]["eval"])}, "order": kw["order"],
             "groups": kw["groups"], "targets": labels_drawn}  # fmt: skip
    return parts | change


def at_start(task: osc.Task) -> Any:
    session = start(task)
    return point(task, session.model, capture(session))


def test_their_second_moment_is_the_gauss_newton_matrix() -> None:
    task = osc.Task(**inside())
    plain = {"model": lambda: Inside().net, "targets": None}
    outside = osc.Task(**inside(**plain, loss=lambda m, b: F.cross_entropy(m(b["x"]), b["labels"], reduction="none")))
    coordinates = draw_coordinates(task.layout.size, task.layout.size, 0)
    ids, draws = np.arange(40), 600
    rows = target_gradients(
        at_start(task), labels_drawn, task.batch, ids, coordinates, draws=draws, seed=0, micro_batch=16
    ).double()
    found = torch.einsum("sdi,sdj->ij", rows, rows) / (len(ids) * draws)
    at = at_start(outside)
    exact = gauss_newton_matrix(at, find_split(at, outside.batch(ids[:4])), outside.batch, ids, coordinates)
    assert find_split(at, outside.batch(ids[:4])).kind == "softmax"
    # 24,000 rank-one terms of size about the trace: 1/sqrt(24000) of it, three times over.
    assert (found - exact).norm() < 0.02 * exact.trace()


def test_draws_do_not_depend_on_the_micro_batch() -> None:
    task = osc.Task(**inside())
    coordinates = draw_coordinates(task.layout.size, 5, 0)
    a, b = (
        target_gradients(at_start(task), labels_drawn, task.batch, np.arange(40) % 7, coordinates, draws=2, seed=3,
                         micro_batch=size) for size in (3, 40)
    )  # fmt: skip
    torch.testing.assert_close(a, b)


def test_a_loss_inside_the_model_is_predicted_with_and_without_targets(tmp_path: Path) -> None:
    errors = {}
    for name, change in {"with": {}, "without": {"targets": None}}.items():
        task = osc.Task(**inside(**change))
        osc.record(task, tmp_path / name, probes=2, jobs=1)
        store = osc.RunStore.open(tmp_path / name)
        orders = np.stack([task.order[::-1], np.roll(task.order, 5, axis=0)])
        truth = osc.retrain(task, orders).metrics["eval"]
        errors[name] = np.abs(osc.Simulator(tmp_path / name, task).predict(orders).metrics["eval"] - truth).mean()
        assert stored_split(store).kind == ("targets" if name == "with" else "empirical")
        moved = np.abs(truth - osc.Simulator(tmp_path / name, task).reference["eval"]).mean()
        assert errors[name] < 0.5 * moved


def test_other_targets_are_another_task() -> None:
    a, b = osc.Task(**inside()).fingerprint(), osc.Task(**inside(targets=None)).fingerprint()
    assert {part for part in a if a[part] != b.get(part)} == {"targets"}


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        g = generator(2)
        self.net = nn.Linear(2, 5)
        with torch.no_grad():
            self.net.weight.copy_(torch.randn(5, 2, generator=g))
            self.net.bias.zero_()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores, values = self.net(x).split([3, 2], dim=-1)
        return scores, values


def both_losses(model: Any, batch: Any) -> torch.Tensor:
    scores, values = model(batch["x"])
    return F.cross_entropy(scores, batch["labels"], reduction="none") + 0.5 * (values - batch["y"]).square().sum(1)


def both_drawn(model: Any, batch: Any, rng: torch.Generator) -> Any:
    scores, values = model(batch["x"])
    noise = torch.randn(values.shape, generator=rng)  # 0.5 r^2 is the negative log-likelihood of a unit Gaussian
    return {**batch, "labels": torch.multinomial(scores.softmax(-1), 1, generator=rng)[:, 0], "y": values + noise}


def test_a_sum_of_two_tasks() -> None:
    g = generator(4)
    rows = [{"x": torch.randn(2, generator=g), "labels": torch.tensor(i % 3), "y": torch.randn(2, generator=g)}
            for i in range(24)]  # fmt: skip
    parts = {"model": TwoHeads, "loss": both_losses, "data": rows, "optimizer": lambda p: torch.optim.SGD(p, lr=0.1),
             "order": np.arange(24).reshape(6, 4)}  # fmt: skip
    at = at_start(osc.Task(**parts))
    assert find_split(at, osc.Task(**parts).batch([0, 1])).why == "the loss uses several outputs of the model"
    task = osc.Task(**parts, targets=both_drawn)
    coordinates = draw_coordinates(task.layout.size, task.layout.size, 0)
    drawn = target_gradients(at, both_drawn, task.batch, range(24), coordinates, draws=800, seed=0, micro_batch=24)
    found = torch.einsum("sdi,sdj->ij", drawn.double(), drawn.double()) / (24 * 800)
    exact = torch.zeros_like(found)
    for row in rows:  # net(x) = W x + b, so J is x (or 1) for each output
        p = at.model(row["x"])[0].softmax(-1).double()
        block = torch.block_diag(torch.diag(p) - torch.outer(p, p), torch.eye(2, dtype=torch.float64))
        x = torch.cat([row["x"].double(), torch.ones(1, dtype=torch.float64)])
        whole = torch.einsum("ab,i,j->aibj", block, x, x).detach()
        order = [*(a * 3 + i for a in range(5) for i in range(2)), *(a * 3 + 2 for a in range(5))]
        exact += whole.reshape(15, 15)[order][:, order] / 24
    assert (found - exact).norm() < 0.02 * exact.trace()


def test_targets_of_another_form_are_refused() -> None:
    with pytest.raises(osc.OrderscopeError, match=r"targets\(\) that returns a batch of another form"):
        osc.Task(**inside(targets=lambda model, batch, rng: {"x": batch["x"]}))
