"""From orders of sample ids to units of the gradient table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.batches import Batches
from orderscope.engine.window import Window, group_fractions
from orderscope.errors import OrderscopeError
from orderscope_kernels.shapes import Bool, Float, Int, Int64


@dataclass(frozen=True)
class Units:
    """What each order trains on at each step.

    Args:
        index: [orders, steps]: u < U is a recorded batch, U + x the regrouped batch x.
        new: samples of the regrouped batches, [regrouped, batch].
        fractions: share of each group, [U + regrouped, groups].
        has_grad: bool [U + regrouped, n_params], or None.
    """

    index: Int64[np.ndarray, "orders steps"]
    new: Int64[np.ndarray, "new batch"]
    fractions: Float[Tensor, "units groups"]
    has_grad: Bool[Tensor, "units params"] | None


def units_of(window: Window, batches: Batches, orders: Int[np.ndarray, "orders steps batch"]) -> Units:
    """The batches that some orders train on, by number: recorded ones, then regrouped ones.

    Args:
        window: the run, ready to be replayed.
        batches: finds recorded batches.
        orders: sample ids, [orders, steps, batch].

    Raises:
        OrderscopeError: samples are regrouped, but no single samples' gradients were kept.
    """
    index, new = batches.index(orders)
    if len(new) and not window.sample_anchors:
        raise OrderscopeError(
            f"{len(new)} batches whose samples were not trained on together",
            "a rearrangement of recorded batches, since no single samples' gradients were kept",
            "record with sample_anchors=4 (or more), or keep the batches together",
        )
    fractions, has_grad = window.fractions, window.has_grad
    if len(new):
        fractions = torch.cat([fractions, group_fractions(new, window.group_codes, fractions.shape[1])])
        has_grad = None if has_grad is None else torch.cat([has_grad, _any_sample(window, new)])
    return Units(index, new, fractions, has_grad)


def some_of(ids: Int64[np.ndarray, "*batches batch"], count: int | None) -> Int64[np.ndarray, "*batches some"]:
    """Samples that stand for all of a batch: as many, evenly spaced, or all.

    Args:
        ids: samples of batches, [..., batch].
        count: how many; None for all.
    """
    size = ids.shape[-1]
    return ids[..., np.linspace(0, size - 1, min(count or size, size)).round().astype(int)]


def regrouped_gradients(window: Window, new: Int[np.ndarray, "new batch"], anchor: int) -> Float[Tensor, "new coords"]:
    """Mean gradients of regrouped batches at an anchor with samples, [regrouped, m].

    Args:
        window: has single samples' gradients.
        new: samples of each, [regrouped, batch].
        anchor: one of `window.sample_anchors`.
    """
    samples, dtype = window.sample_rows[window.sample_anchors.index(anchor)], window.dynamics.start.theta.dtype
    out = torch.empty(len(new), window.coords, dtype=dtype)
    for x, ids in enumerate(new):
        out[x] = samples[torch.from_numpy(window.sample_place[ids])].to(dtype).mean(0)
    return out


def _any_sample(window: Window, batches: np.ndarray) -> Tensor:
    """A parameter gets a gradient where it did in the recorded batch of any of the samples."""
    assert window.has_grad is not None
    place = np.zeros(int(window.order.max()) + 1, dtype=np.int64)
    place[window.order] = np.arange(len(window.order))[:, None]
    return torch.stack([window.has_grad[torch.from_numpy(place[ids])].any(0) for ids in batches])
