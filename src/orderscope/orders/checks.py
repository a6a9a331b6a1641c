"""Is this array an order of that run?"""

from __future__ import annotations

from typing import Any

import numpy as np

from orderscope.errors import OrderscopeError

SHOWN = 5  # ids that an error names


def as_int64(order: Any, what: str = "order") -> np.ndarray:
    """A list, numpy array or torch tensor of integers as int64.

    Args:
        order: of whatever shape.
        what: what the array is called in an error.

    Raises:
        OrderscopeError: it is ragged or not of integers.
    """
    if hasattr(order, "detach"):
        order = order.detach().cpu().numpy()
    try:
        array = np.asarray(order)
    except ValueError:
        raise OrderscopeError(
            f"an {what} whose steps have different lengths",
            "an integer array [steps, batch]",
            "give every step the same number of sample ids",
        ) from None
    if array.dtype.kind not in "iu":
        raise OrderscopeError(
            f"an {what} of dtype {array.dtype}", "integer sample ids", "convert it, for instance order.astype('int64')"
        )
    return array.astype(np.int64)


def check_reference(order: Any, samples: int) -> np.ndarray:
    """The recorded order as int64 [steps, batch].

    Args:
        order: list, numpy array or torch tensor of sample ids.
        samples: rows of the data set; ids are below it.

    Raises:
        OrderscopeError: another shape, no integers, or an id out of range.
    """
    array = as_int64(order)
    if array.ndim != 2 or array.size == 0:
        raise OrderscopeError(
            f"an order of shape {list(array.shape)}",
            "[steps, batch] with at least one step and one sample",
            "reshape it so that row t holds the sample ids of step t",
        )
    _in_range(array, samples)
    return array


def check_orders(
    orders: Any, reference: np.ndarray, *, samples: int | None = None, allow_other_samples: bool = False
) -> np.ndarray:
    """One order [steps, batch] or many [n, steps, batch] -> int64 [n, steps, batch].

    Args:
        orders: list, numpy array or torch tensor of sample ids.
        reference: the recorded order, [steps, batch].
        samples: rows of the data set; the reference's largest id + 1 if not given.
        allow_other_samples: accept ids in range that the reference does not use, or uses another number of times.

    Raises:
        OrderscopeError: naming the first order that is wrong and which ids are missing, extra or out of range.
    """
    array = as_int64(orders)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[1:] != reference.shape or len(array) == 0:
        steps, batch = reference.shape
        raise OrderscopeError(
            f"an order of shape {list(np.shape(orders))}",
            f"[steps, batch] = [{steps}, {batch}], or [n, {steps}, {batch}]",
            "arrange the same samples over the same number of steps as the recorded order",
        )
    _in_range(array, int(reference.max()) + 1 if samples is None else samples)
    if not allow_other_samples:
        used = np.sort(reference, axis=None)
        same = (np.sort(array.reshape(len(array), -1), axis=1) == used).all(axis=1)
        if not same.all():
            index = int(same.argmin())
            _name_other_samples(array[index], reference, index if len(array) > 1 else None)
    return array


def check_order(
    order: Any, reference: np.ndarray, *, samples: int | None = None, allow_other_samples: bool = False
) -> np.ndarray:
    """As `check_orders`, for exactly one order -> int64 [steps, batch]."""
    array = check_orders(order, reference, samples=samples, allow_other_samples=allow_other_samples)
    if len(array) != 1:
        raise OrderscopeError(f"{len(array)} orders", "one order [steps, batch]", "pass them one at a time")
    return array[0]


def _in_range(array: np.ndarray, samples: int) -> None:
    wrong = np.unique(array[(array < 0) | (array >= samples)])
    if len(wrong):
        raise OrderscopeError(
            f"sample ids out of range: {_some(wrong)}",
            f"ids from 0 to {samples - 1}, the rows of the data set",
            "use indices of the task's data as sample ids",
        )


def _name_other_samples(order: np.ndarray, reference: np.ndarray, index: int | None) -> None:
    size = int(max(order.max(), reference.max())) + 1
    surplus = np.bincount(order.ravel(), minlength=size) - np.bincount(reference.ravel(), minlength=size)
    missing, extra = np.flatnonzero(surplus < 0), np.flatnonzero(surplus > 0)
    used = np.isin(extra, reference)
    parts = [
        f"{word} {_some(ids)}"
        for word, ids in (("missing", missing), ("too often", extra[used]), ("not in the recorded order", extra[~used]))
        if len(ids)
    ]
    which = "an order" if index is None else f"order {index}"
    raise OrderscopeError(
        f"{which} of other samples: " + "; ".join(parts),
        "every sample as often as in the recorded order",
        "rearrange the recorded ids, or pass allow_other_samples=True where other samples are meant",
    )


def _some(ids: np.ndarray) -> str:
    text = ", ".join(str(int(i)) for i in ids[:SHOWN])
    return f"{text} and {len(ids) - SHOWN} more" if len(ids) > SHOWN else text
