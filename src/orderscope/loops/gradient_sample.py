"""A gradient on a few fixed coordinates: enough to see whether another gradient is the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from orderscope.task.layout import ParameterLayout

TENSORS, EACH = 4, 64  # parameters that are probed, and coordinates of each
# Gradients of up to so many coordinates are copied into one vector first: one call instead of some for every tensor.
SMALL = 1 << 20


class GradientProbe:
    """Up to `EACH` coordinates of up to `TENSORS` parameters, spread evenly over the layout.

    Args:
        places: pairs (index of the parameter, its coordinates), as they are written down.
    """

    def __init__(self, layout: ParameterLayout, parameters: Sequence[Tensor]) -> None:
        chosen = np.unique(np.linspace(0, len(layout) - 1, min(TENSORS, len(layout))).round().astype(int))
        self.places = [(int(i), _spread(layout.sizes[i])) for i in chosen]
        self._parts = [(i, torch.tensor(at)) for i, at in self.places]
        self._dtype = layout.dtype
        self._small = layout.size <= SMALL
        self._flat = torch.tensor([layout.offsets[i] + k for i, at in self.places for k in at])

    def measured(self, gradients: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """Norm of a gradient, at least one part of which is there, a scalar on its device; and what `of` gives."""
        held = [g for g in gradients if g is not None]
        if self._small and held[0].device.type == "cpu" and len(held) == len(gradients):
            flat = _flatten_dense_tensors(held)
            return torch.linalg.vector_norm(flat), flat.index_select(0, self._flat)
        norms = torch._foreach_norm(held)  # pyright: ignore[reportPrivateImportUsage]
        return torch.linalg.vector_norm(torch.stack(norms)), self.of(gradients)

    def of(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """[probed], zero where a parameter has no gradient."""
        parts = []
        device = next((g.device for g in gradients if g is not None), torch.device("cpu"))
        for k, (i, at) in enumerate(self._parts):
            gradient = gradients[i]
            if gradient is None:
                parts.append(torch.zeros(len(at), dtype=self._dtype, device=device))
                continue
            if at.device != gradient.device:
                self._parts[k] = i, at = i, at.to(gradient.device)
            parts.append(gradient.detach().reshape(-1).index_select(0, at).to(device))
        return torch.cat(parts)


def _spread(size: int) -> list[int]:
    """Coordinates spread by the golden ratio, so that they do not fall on one column of a matrix."""
    if size <= EACH:
        return list(range(size))
    turns = np.arange(1, EACH + 1) * ((5**0.5 - 1) / 2) % 1.0
    return sorted({int(t * size) for t in turns})
