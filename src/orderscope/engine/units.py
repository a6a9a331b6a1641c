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

SORTED = 0.25  # by how much of a batch samples have more of their own group beside them in an order that sorts them
ROUNDING = 1e-9  # of shares


@dataclass(frozen=True)
class Units:
    """What each order trains on at each step.

    Args:
        index: [orders, steps]: u < U is a recorded batch, U + x the regrouped batch x.
        new: samples of the regrouped batches, [regrouped, batch].
        fractions: share of each group, [U + regrouped, groups].
        has_grad: bool [U + regrouped, n_params], or None.
        sorting: which orders sort samples by group more than the reference order does, bool [orders].
    """

    index: Int64[np.ndarray, "orders steps"]
    new: Int64[np.ndarray, "new batch"]
    fractions: Float[Tensor, "units groups"]
    has_grad: Bool[Tensor, "units params"] | None
    sorting: Bool[np.ndarray, " orders"]


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
    return Units(index, new, fractions, has_grad, sorting_orders(window, orders))


def own_shares(
    orders: Int[np.ndarray, "n steps batch"], codes: Int[np.ndarray, " samples"], groups: int
) -> Float[np.ndarray, "n groups"]:
    """The share that a group has of the batches of its own samples, on average over these: with f_t its share of the
    batch of step t,

        s = sum_t f_t^2 / sum_t f_t,

    0 where it has no samples, [n, groups].

    Args:
        orders: sample ids, [n, steps, batch].
        codes: group of every sample id, [samples].
        groups: how many groups there are.
    """
    _, steps, batch = orders.shape
    first = groups * np.arange(steps)[:, None]
    shares = np.zeros((len(orders), groups))
    for own, order in zip(shares, orders, strict=True):  # one at a time: there may be a group for every sample
        count = np.bincount((first + codes[order]).ravel(), minlength=steps * groups).reshape(steps, groups)
        own[:] = np.square(count).sum(0) / (batch * np.maximum(count.sum(0), 1))
    return shares


def sorts_more(
    own: Float[np.ndarray, "n groups"], others: Float[np.ndarray, " groups"], by: float = SORTED
) -> Bool[np.ndarray, " n"]:
    """Whether orders sort samples by group more than another does: whether the samples of some group have their own
    group in more of their batch, by more than `by` of it, bool [n]. The gradients of such batches, and what follows
    from many of them, were not seen in that one.

    Args:
        own: `own_shares` of the orders, [n, groups].
        others: those of the other order, [groups].
        by: a share of a batch.
    """
    return np.any(own > others + (by + ROUNDING), axis=1)


def sorting_orders(window: Window, orders: Int[np.ndarray, "n steps batch"]) -> Bool[np.ndarray, " n"]:
    """Which orders sort samples by group more than the reference order does, see `sorts_more`, bool [n].

    Args:
        window: the run.
        orders: sample ids, [n, steps, batch].
    """
    shares = own_shares(np.concatenate([window.order[None], orders]), window.group_codes, window.fractions.shape[1])
    return sorts_more(shares[1:], shares[0])


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
