"""`vmap` over the samples of a batch, for models written without it in mind.

Two things that ordinary models do stop `torch.func.vmap`. Fused attention kernels have no batching rule for their
backward pass: the plain ones are used instead. And Python code may look at a tensor, `if mask.all(): ...` in Hugging
Face's attention masks, `lengths.max().item()`. Where all samples give the same answer it is simply given; where they
differ, the samples are split by their answer and each part goes its own way. So a sample takes the branch it would take
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

_functorch: Any = torch._C._functorch  # type: ignore[attr-defined]  # how torch.func wraps tensors
LOOKS = {getattr(Tensor, name) for name in ("__bool__", "__int__", "__float__", "__index__", "item")}


def each_sample(function: Callable[..., Any], in_dims: tuple[int | None, ...]) -> Callable[..., Any]:
    """`function` of one sample as a function of many: results of all samples, stacked along a new first axis.

    Args:
        function: of one sample; returns tensors, or dicts, lists or tuples of them.
        in_dims: for each argument 0, if its first axis is the sample, or None.

    Raises:
        RuntimeError: what `torch.func.vmap` raises for what is left: random numbers, shapes that depend on data,
            in-place writes into tensors that are not per sample.
    """
    mapped = vmap(function, in_dims, randomness="error")

    def run(*args: Any) -> Any:
        try:
            with _Looking(level=(_functorch.maybe_current_level() or 0) + 1):
                return mapped(*args)
        except _Differ as differ:
            answers, part_of = differ.answers.unique(return_inverse=True)
        parts = [(part_of == k).nonzero().squeeze(1) for k in range(len(answers))]
        results = [
            run(*(_rows(a, ids) if dim == 0 else a for a, dim in zip(args, in_dims, strict=True))) for ids in parts
        ]
        back = torch.cat(parts).argsort()
        return tree_map(lambda *leaves: torch.cat(leaves)[back.to(leaves[0].device)], *results)

    looks = False

    def many(*args: Any) -> Any:
        nonlocal looks
        with sdpa_kernel(SDPBackend.MATH):
            if not looks:
                try:
                    return mapped(*args)
                except RuntimeError:
                    looks = True  # watching costs some microseconds an operation: only who needs it pays
            return run(*args)

    return many


def filled(gradients: Iterable[Tensor | None], parameters: Iterable[Tensor]) -> list[Tensor]:
    """Gradients with zeros where a parameter has none, as if the loss did not depend on it.

    Args:
        gradients: one a parameter, or None, as `torch.autograd.grad(allow_unused=True)` and `.grad` have them.
        parameters: for the shapes.
    """
    return [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]


def one_after_another(loss: Callable[[Any], Tensor], parameters: Sequence[Tensor], batch: Any) -> list[Tensor]:
    """Gradients of each sample of a batch by plain autograd, [samples, *shape] of each parameter: for models that
    `each_sample` cannot take. One forward and one backward pass a sample.

    Args:
        loss: of a batch of one.
        parameters: weights to differentiate by.
        batch: collated samples.
    """
    rows = []
    for i in range(len(tree_leaves(batch)[0])):
        value = loss(tree_map(lambda leaf: leaf[i : i + 1], batch))  # noqa: B023
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        rows.append(filled(found, parameters))
    return [torch.stack(parts) for parts in zip(*rows, strict=True)]


class _Differ(Exception):
    """Samples give different answers where Python looks at a tensor; `answers` has one per sample."""

    def __init__(self, answers: Tensor) -> None:
        super().__init__("control flow that differs between samples")
        self.answers = answers


class _Looking(TorchFunctionMode):
    """Answers Python's looks at tensors that hold one value per sample, batched by the `vmap` at `level` alone."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in LOOKS and (answers := _answers(args[0], self.level)) is not None:
            if len(answers) > 1 and not (answers == answers[0]).all():
                raise _Differ(answers)
            return func(answers[0])
        return func(*args, **(kwargs or {}))


def _answers(tensor: Tensor, level: int) -> Tensor | None:
    """One value per sample, or None where the tensor does not hold that."""
    levels = []
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            levels.append(_functorch.maybe_get_level(tensor))
        tensor = _functorch.get_unwrapped(tensor)
    return tensor.detach().reshape(-1) if levels == [level] else None


def _rows(tree: Any, ids: Tensor) -> Any:
    return tree_map(lambda leaf: leaf[ids.to(leaf.device)], tree)
