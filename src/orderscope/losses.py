"""Per-sample losses as the field's libraries average them.

A task wants one value per sample whose mean over the batch is what was trained on. Libraries that average over tokens
divide by the tokens of the whole step, over all micro-batches and devices: there a sample weighs the more the longer it
is. With s_i the sum over its n_i tokens, and B samples in a step,

    1/N sum_i s_i = 1/B sum_i w_i s_i,    w_i = B / N,    N = sum of n_j over the samples of the step.

`w_i` is data of the recorded run. It is exact for every order that keeps batches together; an order that regroups
samples keeps the weights they were recorded with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from orderscope.errors import OrderscopeError

IGNORED = -100
WEIGHT = "weight"


def causal_lm(model: Any, batch: Mapping[str, Tensor], *, label_smoothing: float = 0.0) -> Tensor:
    """Next-token cross-entropy of a language model that returns `.logits`, one value per sample, [batch].

    The model is run without its labels, so that the loss is a function of its outputs alone. Labels of -100 are left
    out. Each sample is averaged over its own tokens, or, where the batch has a "weight" (see `Weighted`), summed and
    multiplied by it.

    Args:
        model: returns an object with `.logits` [batch, tokens, vocabulary].
        batch: "labels" [batch, tokens], perhaps "weight" [batch], and what the model takes.
        label_smoothing: share of the target's probability that is spread over the vocabulary.
    """
    inputs = {key: value for key, value in batch.items() if key not in ("labels", WEIGHT)}
    scores = model(**inputs).logits[:, :-1].transpose(1, 2)
    labels = batch["labels"][:, 1:]
    tokens = F.cross_entropy(
        scores, labels, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="none"
    )  # fmt: skip
    if WEIGHT in batch:
        return tokens.sum(1) * batch[WEIGHT].to(tokens.dtype)
    return tokens.sum(1) / (labels != IGNORED).sum(1).clamp_min(1)


def classification(model: Any, batch: Mapping[str, Tensor], *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of a classifier that returns `.logits` [batch, classes], one value per sample, [batch].

    Args:
        model: returns an object with `.logits` [batch, classes].
        batch: "labels" [batch], perhaps "weight" [batch], and what the model takes.
        label_smoothing: share of the target's probability that is spread over all classes.
    """
    inputs = {key: value for key, value in batch.items() if key not in ("labels", WEIGHT)}
    losses = F.cross_entropy(
        model(**inputs).logits, batch["labels"], label_smoothing=label_smoothing, reduction="none"
    )  # fmt: skip
    return losses * batch[WEIGHT].to(losses.dtype) if WEIGHT in batch else losses


def inside(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The loss a model computes itself (`model(**batch).loss`), for each sample alone, [batch].

    Right for models that average over the samples, and slow: one forward pass a sample. The loss cannot be split from
    the outputs there; pass `targets=` to the task, or the samples' own gradients stand in for the curvature.

    Args:
        model: computes a loss of its own where it is called with `labels`.
        batch: keyword arguments of the model, [batch, ...] each.
    """
    size = len(next(iter(batch.values())))
    return torch.stack([model(**{key: value[i : i + 1] for key, value in batch.items()}).loss for i in range(size)])


def token_counts(data: Any, key: str = "labels") -> np.ndarray:
    """Tokens that each sample of a language model's data set is trained on, int64 [samples]: labels but the first,
    where they are not -100.

    Args:
        data: map-style; its samples are mappings.
        key: of the labels in a sample.
    """
    rows = (torch.as_tensor(data[i][key]).reshape(-1)[1:] for i in range(len(data)))
    return np.array([int((row != IGNORED).sum()) for row in rows], dtype=np.int64)


def token_mean_weights(order: Any, counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """w_i = B / N of the step each sample is trained in, float64 [samples]; the mean of them where it is trained more
    than once, 0 where never.

    Args:
        order: the recorded order, [steps, batch].
        counts: tokens of each sample, [samples].

    Raises: OrderscopeError for a step without tokens.

    Example:
        >>> token_mean_weights([[0, 1]], [3, 1])
        array([0.5, 0.5])
    """
    order, counts = np.asarray(order), np.asarray(counts)
    tokens = counts[order].sum(1)
    if (tokens == 0).any():
        step = int((tokens == 0).argmax())
        raise OrderscopeError(
            f"step {step} without tokens to learn",
            "at least one label that counts",
            "look at the labels of its samples",
        )
    times = np.bincount(order.ravel(), minlength=len(counts))
    each = np.repeat(order.shape[1] / tokens, order.shape[1])
    return np.bincount(order.ravel(), weights=each, minlength=len(counts)) / np.maximum(times, 1)


class Weighted(Dataset):
    """A data set of dicts, each with its "weight" added.

    Args:
        data: map-style; its samples are mappings.
        weights: what the loss of each sample is multiplied by, [samples].
    """

    def __init__(self, data: Any, weights: Sequence[float] | np.ndarray) -> None:
        if len(data) != len(weights):
            raise OrderscopeError(f"{len(weights)} weights", f"one per sample, {len(data)}", "pass one weight a sample")
        self.data, self.weights = data, torch.as_tensor(weights, dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.data[index], WEIGHT: self.weights[index]}
