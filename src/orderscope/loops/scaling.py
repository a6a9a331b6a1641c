"""How a loop weighs the samples of a step, found by comparing the documented loss with the gradient that was recorded.

A task's loss is one value per sample, l_i, and its gradient the mean over the step. Loops average otherwise: over the
tokens of the step or of each micro-batch, or they add up the means of micro-batches. All of these are

    sum over the step of  c w_i l_i / B,        w_i = 1, or B/M n_i / N of the micro-batch of sample i

with c one number, n_i the tokens of a sample, N those of its micro-batch, M micro-batches of equal size. Which of them
it was is seen at states that were kept, from the gradient's direction (w) and size (c).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.utils.data import Dataset, default_collate

from orderscope.loops.gradient_sample import GradientProbe
from orderscope.losses import IGNORED
from orderscope.task.layout import ParameterLayout

ALIKE = 0.1  # largest relative error of a gradient that counts as the recorded one; bfloat16 in the loop gives 1e-2
EXACT = 0.02  # relative distance up to which a factor counts as a whole number, or the inverse of one
STEADY = 0.05  # largest relative change of a factor from one kept state to another
LOSS = 0.02  # largest relative difference of the documented loss to the one passed to `step`
CLIPPED = 0.999  # from this share of max_grad_norm on a gradient was clipped, and its size says nothing of the factor
MOST = 16  # most micro-batches that are tried
SHARPER = 4.0  # a mean over tokens is taken where its error is so many times smaller than that of a mean over samples


@dataclass(frozen=True)
class Scaling:
    """How training weighs samples, relative to the documented loss.

    Args:
        micro_batches: 0 for a mean over samples; M for means over the tokens of M micro-batches, 1 being the tokens of
            the whole step.
        factor: c, what the sum is multiplied by.
    """

    micro_batches: int = 0
    factor: float = 1.0

    @property
    def plain(self) -> bool:
        return self == Scaling()

    @property
    def words(self) -> str:
        over = {0: "samples", 1: "the tokens of the step"}.get(
            self.micro_batches, f"the tokens of each of {self.micro_batches} micro-batches"
        )
        times = "" if self.factor == 1 else f", times {self.factor:g}"
        return f"the mean over {over}{times}"

    def weights(self, order: np.ndarray, counts: np.ndarray | None, samples: int) -> np.ndarray:
        """What each sample's loss is multiplied by, float64 [samples]; the mean over its steps where it is trained more
        than once, the factor where never.

        Args:
            order: sample ids, int64 [steps, batch], the samples of a micro-batch side by side.
            counts: tokens of each sample, int64 [samples]; None for a mean over samples.
            samples: how many the data set has.
        """
        if self.micro_batches == 0 or counts is None:
            return np.full(samples, self.factor)
        each = token_weights(counts[order], self.micro_batches)
        times = np.bincount(order.ravel(), minlength=samples)
        total = np.bincount(order.ravel(), weights=each.ravel(), minlength=samples)
        return self.factor * np.where(times > 0, total / np.maximum(times, 1), 1.0)


def token_weights(counts: np.ndarray, micro_batches: int) -> np.ndarray:
    """w_i of the samples of some steps, float64 [steps, batch].

    Args:
        counts: their tokens, [steps, batch].
        micro_batches: in how many parts, one after the other, a step is trained.

    Example:
        >>> token_weights(np.array([[3, 1]]), 1)
        array([[1.5, 0.5]])
    """
    parts = counts.reshape(len(counts), micro_batches, -1)
    totals = np.maximum(parts.sum(2, keepdims=True), 1)
    return (parts * parts.shape[2] / totals).reshape(counts.shape)


@dataclass(frozen=True)
class Seen:
    """A recorded step whose state before it was kept.

    Args:
        ids: its samples.
        probe: the gradient applied, on the probed coordinates, float64 [probed].
        norm: its norm.
        loss: the mean loss that was passed to `step`, NaN where none was.
    """

    ids: np.ndarray
    probe: np.ndarray
    norm: float
    loss: float


@dataclass(frozen=True)
class Compared:
    """The documented loss compared with a recorded step, under one way to weigh samples.

    Args:
        error: of the gradient's direction: what is left of it after the best factor, as a share of it.
        factor: that factor, recorded over documented.
        norm: of the documented gradient.
        loss: the documented mean.
    """

    error: float
    factor: float
    norm: float
    loss: float


def compared(
    model: nn.Module,
    layout: ParameterLayout,
    loss: Callable[[Any, Any], Tensor],
    batch: Any,
    seen: Seen,
    weights: Mapping[int, np.ndarray],
) -> dict[int, Compared]:
    """The recorded gradient of a step compared with that of the task, under several ways to weigh samples.

    Args:
        model: at the weights of the step.
        layout: which entry of [P] belongs to which weight.
        loss: (model, batch) -> losses [batch].
        batch: collated samples of the step.
        seen: what was recorded of the step.
        weights: micro-batches as in `Scaling` -> weights of the samples, [batch].

    Returns:
        Micro-batches -> the comparison.
    """
    parameters = layout.of_model(model)
    probe = GradientProbe(layout, parameters)
    losses = loss(model, batch)
    found: dict[int, Compared] = {}
    for micro_batches, each in weights.items():
        same = next((m for m in found if np.abs(weights[m] - each).max() < 1e-6), None)
        if same is not None:
            found[micro_batches] = found[same]
            continue
        value = (losses * torch.as_tensor(each, dtype=losses.dtype, device=losses.device)).mean()
        gradients = list(torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True))
        mine = probe.of(gradients).double().cpu().numpy()
        factor = float(mine @ seen.probe / max(mine @ mine, 1e-300))
        error = float(np.linalg.norm(seen.probe - factor * mine) / max(np.linalg.norm(seen.probe), 1e-300))
        norm = float(get_total_norm([g for g in gradients if g is not None]))
        found[micro_batches] = Compared(error, factor, norm, float(value.detach()))
    return found


def found_scaling(steps: Sequence[tuple[Seen, Mapping[int, Compared]]], max_grad_norm: float | None) -> Scaling | None:
    """The scaling that recorded steps show; None where the documented loss does not explain them.

    Args:
        steps: recorded steps, each under the same ways; the factor comes from the first that was not clipped.
        max_grad_norm: bound of the gradient norm in the loop, None for no clipping.
    """
    first, ways = steps[0]
    both = [m for m in ways if all(m in w for _, w in steps)]
    errors = {m: max(w[m].error for _, w in steps) for m in both}
    ranked = sorted(both, key=lambda m: (errors[m], m))
    best = next(m for m in sorted(both) if errors[m] <= SHARPER * errors[ranked[0]] + 1e-4)
    if not errors[best] <= ALIKE or not ways[best].factor > 0:
        return None
    value = ways[best].loss
    if np.isfinite(first.loss) and not abs(value - first.loss) <= LOSS * max(abs(first.loss), abs(value)):
        return None
    free = [
        w[best].factor for s, w in steps
        if (max_grad_norm is None or s.norm < CLIPPED * max_grad_norm) and w[best].error <= ALIKE
    ]  # fmt: skip
    if free:
        factor = rounded(free[0])
        hidden = max_grad_norm is None and factor != 1 and clips_at([s.norm for s, _ in steps]) is not None
        return None if hidden or max(free) > (1 + STEADY) * min(free) else Scaling(best, factor)
    assert max_grad_norm is not None
    least = max(CLIPPED * max_grad_norm / max(w[best].norm, 1e-300) for _, w in steps)
    return Scaling(best, 1.0 if least <= 1 else float(np.ceil(least)))


def clips_at(norms: Sequence[float]) -> float | None:
    """The norm that gradients seem to be clipped at: a short number, which measured norms are not; None where none
    is."""
    top = max(norms)
    short = float(f"{top:.2g}")
    return short if top > 0 and abs(top - short) <= 1e-4 * short else None


def rounded(factor: float) -> float:
    """A measured factor: the whole number, or the inverse of one, that it is up to rounding, else three digits of it.

    Example:
        >>> rounded(2.0003), rounded(0.2501), rounded(0.7071)
        (2.0, 0.25, 0.707)
    """
    for number in range(1, 65):
        for value in (float(number), 1.0 / number):
            if abs(factor - value) <= min(EXACT, 0.25 / number) * value:
                return value
    return float(f"{factor:.3g}")


def token_counts(batch: Any) -> np.ndarray | None:
    """Tokens that each sample of a batch learns from, int64 [batch]; None where it has no labels of that kind."""
    labels = batch.get("labels") if isinstance(batch, Mapping) or hasattr(batch, "get") else None
    if not isinstance(labels, Tensor) or labels.dim() != 2:
        return None
    return (labels[:, 1:] != IGNORED).sum(1).cpu().numpy()


def ways_to_weigh(counts: np.ndarray | None, size: int) -> dict[int, np.ndarray]:
    """Ways to weigh the samples of a step: micro-batches as in `Scaling` -> weights, [batch].

    Args:
        counts: tokens of each sample, [batch]; None for one way alone, the mean over samples.
        size: samples of the step.
    """
    found = {0: np.ones(size)}
    if counts is not None and counts.sum() > 0:
        found |= {m: token_weights(counts[None], m)[0] for m in range(1, min(MOST, size) + 1) if size % m == 0}
    return found


class ScaledRows(Dataset):
    """A data set whose samples carry what their loss is multiplied by: pairs (sample, weight).

    Args:
        weights: float [samples]; None for ones, as in held-out sets, which keep the loss's own scale.
        factor: that part of the weights which is the same for all.
    """

    def __init__(self, data: Any, weights: np.ndarray | None = None, factor: float = 1.0) -> None:
        self.data, self.factor = data, factor
        self.weights = torch.ones(len(data)) if weights is None else torch.as_tensor(weights, dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        return self.data[index], self.weights[index]


def scaled_parts(parts: Mapping[str, Any], scaling: Scaling, weights: np.ndarray) -> dict[str, Any]:
    """Parts of a task with its training losses weighed; held-out losses keep the scale of the loss.

    Args:
        parts: keyword arguments of the task, loss and data among them.
        scaling: how the loop weighed samples.
        weights: what the loss of each sample is multiplied by, [samples].
    """
    loss, collate, targets = parts["loss"], parts.get("collate") or default_collate, parts.get("targets")

    def scaled_loss(model: Any, batch: Any) -> Tensor:
        rows, weight = batch
        losses = loss(model, rows)
        return losses * weight.to(losses)

    def scaled_collate(samples: list[Any]) -> Any:
        rows, each = zip(*samples, strict=True)
        return collate(list(rows)), torch.stack(each)

    def scaled_targets(model: Any, batch: Any, generator: torch.Generator) -> Any:
        assert targets is not None
        rows, weight = batch
        return targets(model, rows, generator), weight

    metrics = {n: m if callable(m) else ScaledRows(m) for n, m in (parts.get("metrics") or {}).items()}
    return {
        **parts,
        "loss": scaled_loss,
        "data": ScaledRows(parts["data"], weights, scaling.factor),
        "metrics": metrics,
        "collate": scaled_collate,
        "targets": None if targets is None else scaled_targets,
    }
