"""Steps that an optimizer took, until they are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orderscope.errors import OrderscopeError
from orderscope.loops.legs import Rows

Ids = Tensor | np.ndarray  # tensors that lie on an accelerator stay there until they are written


@dataclass
class Applied:
    """A step that the optimizer took, waiting for its sample ids; tensors stay on their device until they are written.

    Args:
        hyper: hyper-parameters, name -> one number a parameter group.
        norm: of the gradient, a scalar.
        probe: the gradient on a few fixed coordinates, [probed].
        ids: sample ids of each micro-batch.
        losses: loss as passed to `step` and number of samples, of each micro-batch.
    """

    hyper: dict[str, list[float]]
    norm: Tensor
    probe: Tensor
    ids: list[Ids]
    losses: list[tuple[Any, int]]


def as_ids(ids: Any) -> Ids:
    """A copy of sample ids in one row."""
    if isinstance(ids, Tensor) and ids.device.type != "cpu":
        found, whole = ids.detach().reshape(-1).clone(), not (ids.is_floating_point() or ids.is_complex())
        whole = whole and ids.dtype != torch.bool
    else:
        try:
            found = np.array(ids.detach().numpy() if isinstance(ids, Tensor) else ids).reshape(-1)
        except (TypeError, ValueError, RuntimeError):
            found = None
        whole = found is not None and found.dtype.kind in "iu"
    if found is None or not whole:
        what = type(ids).__name__ + (f" {ids!r}" if found is None else f" of {found.dtype}")
        raise OrderscopeError(
            f"sample ids as {what[:80]}", "integer sample ids", "call rec.step with indices into the data set"
        )
    return found


def joined(ids: list[Ids]) -> np.ndarray:
    """The ids of a step's micro-batches as one row, int64 [batch]."""
    parts = [np.asarray(part.cpu() if isinstance(part, Tensor) else part, np.int64) for part in ids]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def to_rows(steps: list[Applied]) -> Rows:
    losses = [
        sum(float(loss) * n for loss, n in step.losses) / sum(n for _, n in step.losses)
        if step.losses and all(loss is not None and n for loss, n in step.losses)
        else np.nan
        for step in steps
    ]
    return Rows(
        batches=[joined(step.ids) for step in steps],
        loss=np.array(losses, dtype=np.float64),
        norm=torch.stack([step.norm for step in steps]).double().cpu().numpy(),
        probe=torch.stack([step.probe for step in steps]).double().cpu().numpy(),
        hyper={name: np.array([step.hyper[name] for step in steps], dtype=np.float64) for name in steps[0].hyper},
    )
