"""How many orders are replayed at once."""

from __future__ import annotations

VECTORS = 6  # of float32 that an order takes while it is replayed, about: its state, moments, gradient and its parts
BLOCK_BYTES = 1 << 28  # that they may take together


def at_once(orders: int, size: int) -> list[slice]:
    """Slices of orders that are replayed at once, so that what they take fits `BLOCK_BYTES`.

    Args:
        orders: how many there are.
        size: weights that each carries.

    Example:
        >>> at_once(5, 1 << 22)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    block = max(1, BLOCK_BYTES // (size * 4 * VECTORS))
    return [slice(first, min(first + block, orders)) for first in range(0, orders, block)]
