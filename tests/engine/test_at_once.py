"""How orders are cut into parts that are replayed together."""

from __future__ import annotations

import doctest

import pytest

from orderscope.engine import at_once
from orderscope.engine.at_once import BLOCK_BYTES, VECTORS


def test_examples() -> None:
    assert doctest.testmod(at_once).failed == 0


@pytest.mark.parametrize(("orders", "size"), [(1, 10), (1000, 35_000), (7, BLOCK_BYTES)])
def test_every_order_once_within_the_memory(orders: int, size: int) -> None:
    slices = at_once.at_once(orders, size)
    assert [k for part in slices for k in range(orders)[part]] == list(range(orders))
    for part in slices:
        count = part.stop - part.start
        assert count == 1 or count * size * 4 * VECTORS <= BLOCK_BYTES
