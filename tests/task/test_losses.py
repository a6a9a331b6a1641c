"""Losses as libraries average them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import orderscope as osc
from orderscope import losses
from tasks_tiny import generator

VOCAB = 7


class Scores(torch.nn.Module):
    """A language model that looks one token back."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(VOCAB, VOCAB)
        with torch.no_grad():
            self.table.weight.copy_(torch.randn(VOCAB, VOCAB, generator=generator(0)))

    def forward(self, input_ids: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.table(input_ids))


def rows(count: int = 12, length: int = 6) -> list[dict[str, torch.Tensor]]:
    g = generator(1)
    found = []
    for i in range(count):
        ids = torch.randint(VOCAB, (length,), generator=g)
        found.append({"input_ids": ids, "labels": torch.where(torch.arange(length) < 2 + i % 5, ids, -100)})
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_sums_are_the_mean_over_a_steps_tokens(smoothing: float) -> None:
    data, model = rows(), Scores()
    order = np.random.default_rng(0).permutation(12).reshape(3, 4)
    weights = losses.token_mean_weights(order, losses.token_counts(data))
    weighted = losses.Weighted(data, weights)
    for ids in order:
        batch = torch.utils.data.default_collate([weighted[int(i)] for i in ids])
        scores = model(batch["input_ids"]).logits[:, :-1].reshape(-1, VOCAB)
        wanted = F.cross_entropy(scores, batch["labels"][:, 1:].reshape(-1), label_smoothing=smoothing)
        torch.testing.assert_close(losses.causal_lm(model, batch, label_smoothing=smoothing).mean(), wanted)


def test_a_sample_alone_is_averaged_over_its_own_tokens() -> None:
    data, model = rows(), Scores()
    batch = torch.utils.data.default_collate(data)
    each = [F.cross_entropy(model(r["input_ids"]).logits[:-1], r["labels"][1:]) for r in data]
    torch.testing.assert_close(losses.causal_lm(model, batch), torch.stack(each))


def test_the_split_is_softmax_with_ignored_labels_smoothing_and_weights(tmp_path: Any) -> None:
    from orderscope.sketching.gradients import point
    from orderscope.sketching.outputs import find_split
    from orderscope.training.loop import start
    from orderscope.training.state import capture

    class Plain(Scores):
        def forward(self, input_ids: torch.Tensor) -> Any:
            return Logits(logits=self.table(input_ids))

    data = rows()
    order = np.arange(12).reshape(3, 4)
    weighted = losses.Weighted(data, losses.token_mean_weights(order, losses.token_counts(data)))
    task = osc.Task(
        model=Plain, loss=lambda m, b: losses.causal_lm(m, b, label_smoothing=0.1), data=weighted, order=order,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
    )  # fmt: skip
    session = start(task)
    split = find_split(point(task, session.model, capture(session)), task.batch([0, 1, 2, 3]))
    assert (split.kind, split.dim) == ("softmax", 2)


class Logits(dict):
    """As Hugging Face's ModelOutput: a dict, a tree of tensors, whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


torch.utils._pytree.register_pytree_node(
    Logits, lambda out: (list(out.values()), list(out)), lambda values, keys: Logits(zip(keys, values, strict=True)),
    serialized_type_name="tests.Logits",
)  # fmt: skip


def test_several_epochs_take_the_mean_and_unused_samples_nothing() -> None:
    found = losses.token_mean_weights([[0, 1], [0, 2]], [1, 3, 1, 5])
    np.testing.assert_allclose(found, [(0.5 + 1) / 2, 0.5, 1.0, 0.0])


def test_errors() -> None:
    with pytest.raises(osc.OrderscopeError, match="step 1 without tokens"):
        losses.token_mean_weights([[0], [1]], [1, 0])
    with pytest.raises(osc.OrderscopeError, match="2 weights; expected one per sample, 3"):
        losses.Weighted([{}, {}, {}], [1, 2])
