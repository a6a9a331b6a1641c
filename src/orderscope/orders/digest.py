"""A name for an order that says whether two are the same."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from orderscope.orders.checks import as_int64


def order_hash(order: Any) -> str:
    """SHA-256 of an order's shape and ids, 64 hexadecimal digits; the same for any integer type and memory layout.

    Args:
        order: sample ids, [steps, batch].

    Raises: OrderscopeError where it is ragged or not of integers.

    Example:
        >>> order_hash([[0, 1], [2, 3]])[:12]
        '8ec830b63149'
    """
    ids = np.ascontiguousarray(as_int64(order))
    return hashlib.sha256(repr(ids.shape).encode() + ids.tobytes()).hexdigest()
