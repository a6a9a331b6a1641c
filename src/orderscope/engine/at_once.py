"""The number of orders that are replayed at once."""

from __future__ import annotations

VECTORS = 6  # approximate float32 vectors per replayed order: its state, moments, gradient and temporaries
BLOCK_BYTES = 1 << 28  # most bytes of all orders that are replayed at once


def at_once(orders: int, size: int) -> list[slice]:
    """Slices of orders that are replayed at once within `BLOCK_BYTES` of memory.

    Args:
        orders: number of orders.
        size: number of carried coordinates.

    Example:
        >>> at_once(5, 1 << 22)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    block = max(1, BLOCK_BYTES // (size * 4 * VECTORS))
    return [slice(first, min(first + block, orders)) for first in range(0, orders, block)]
