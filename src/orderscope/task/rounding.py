"""How far two values that ought to be the same may differ by arithmetic alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")


class _Formats(TorchDispatchMode):
    """Notes the coarsest floating format that anything is computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                self.eps = max(self.eps, torch.finfo(leaf.dtype).eps)
        return found


def coarsest(compute: Callable[[], Result]) -> tuple[Result, float]:
    """What `compute` returns, and the machine epsilon of the coarsest format that it computes in."""
    with _Formats() as formats:
        found = compute()
    return found, formats.eps


def tolerated(weights: torch.dtype, inside: float) -> float:
    """Relative difference that rounding explains, for a check against differences of order one.

    The square root of the weights' epsilon: a batch of another size is summed in another order, by some epsilons, and
    a deep model makes a thousand of them. Autocast rounds once more, by a few of its own, which are larger than that.

    Args:
        weights: type of the trained weights.
        inside: epsilon of the coarsest format in use, see `coarsest`.

    Example:
        >>> tolerated(torch.float32, torch.finfo(torch.float32).eps)
        0.00034526698300124393
    """
    return max(torch.finfo(weights).eps ** 0.5, 16 * inside)


def tolerated_gradient(weights: torch.dtype, inside: float) -> float:
    """Relative difference of gradients that rounding explains, in units of the mean size of those that are averaged,
    which may cancel: derivatives lose one digit more than losses.

    Args:
        weights: type of the trained weights.
        inside: epsilon of the coarsest format in use, see `coarsest`.
    """
    return max(10 * torch.finfo(weights).eps ** 0.5, 16 * inside)
