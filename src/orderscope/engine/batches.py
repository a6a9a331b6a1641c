"""Lookup of recorded batches, regardless of the sequence of their samples."""

from __future__ import annotations

import numpy as np

from orderscope_kernels.shapes import Int, Int64


class Batches:
    """Finds the unit of a batch: the first step of the reference order with the same samples."""

    def __init__(self, order: Int[np.ndarray, "steps batch"]) -> None:
        self.order = order
        self._unit = {tuple(row): u for u, row in reversed(list(enumerate(np.sort(order, axis=1).tolist())))}

    def index(
        self, orders: Int[np.ndarray, "orders steps batch"]
    ) -> tuple[Int64[np.ndarray, "orders steps"], Int64[np.ndarray, "new batch"]]:
        """Units [orders, steps] and the batches that were not recorded, [regrouped, batch]."""
        found: dict[tuple[int, ...], int] = {}
        flat = np.sort(orders.reshape(-1, orders.shape[-1]), axis=1).tolist()
        units = np.empty(len(flat), dtype=np.int64)
        for i, row in enumerate(flat):
            key = tuple(row)
            unit = self._unit.get(key)
            units[i] = found.setdefault(key, len(self.order) + len(found)) if unit is None else unit
        new = np.array(list(found), dtype=np.int64).reshape(-1, orders.shape[-1])
        return units.reshape(orders.shape[:2]), new
