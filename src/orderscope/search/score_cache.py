"""Scores stored in the run during a search, so that an interrupted search can resume.

A search with the same seed repeats itself. A resumed search therefore starts from the beginning, and takes the scores
of orders that were scored before from this cache instead of replaying them. The cache holds a digest of each order and
its numbers; it is dropped when the search ends.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from orderscope.errors import OrderscopeError
from orderscope.search.ledger import Estimates, Score
from orderscope.store import RunStore, add_if_possible
from orderscope.store.names import SEARCH

EVERY = 20.0  # seconds between two writes


class ScoreCache:
    """A score function with a cache that is stored in the run.

    Args:
        score: the function that scores orders.
        path: folder of the run; if it cannot be written to, nothing is stored.
        key: text that identifies the search: searches with equal text share their scores.
        every: seconds between two writes.

    Attributes:
        resumed: number of scores read from an interrupted search.
    """

    def __init__(self, score: Score, path: str | os.PathLike[str], key: str, every: float = EVERY) -> None:
        self.score, self.path, self.every = score, Path(path), every
        self.prefix = f"{SEARCH}{hashlib.sha256(key.encode()).hexdigest()[:12]}-"
        self.known: dict[bytes, tuple] = {}
        self._new: dict[bytes, tuple] = {}
        self._written = time.monotonic()
        self.resumed = 0
        with suppress(OrderscopeError, OSError), RunStore.open(self.path) as store:
            for name in store.names(self.prefix):
                self._read(store.read(name))
        self.resumed = len(self.known)

    def __call__(self, orders: np.ndarray) -> Estimates:
        """Estimates for orders [n, steps, batch], from the cache where they were scored before."""
        keys = [hashlib.sha256(np.ascontiguousarray(order).tobytes()).digest()[:16] for order in orders]
        new = [i for i, key in enumerate(keys) if key not in self.known]
        if new:
            estimates = self.score(orders[new])
            for k, i in enumerate(new):
                self.known[keys[i]] = self._new[keys[i]] = estimates.row(k)
        if time.monotonic() - self._written > self.every:
            self.write()
        rows = [self.known[key] for key in keys]
        columns = [np.array([row[k] for row in rows]) for k in range(6)]
        return Estimates(columns[0], columns[1], columns[2], np.stack([row[3] for row in rows]), columns[4], columns[5])

    def write(self) -> None:
        """Store the new scores in the run."""
        self._written = time.monotonic()
        if not self._new:
            return
        rows = list(self._new.values())
        arrays = {
            "key": np.stack([np.frombuffer(key, dtype=np.uint8) for key in self._new]),
            "numbers": np.array([[row[0], row[1], row[2], row[4], row[5]] for row in rows], dtype=np.float64),
            "metrics": np.stack([np.asarray(row[3], dtype=np.float64) for row in rows]),
        }

        def keep(store: RunStore) -> None:
            store.write(store.next_name(self.prefix), arrays)
            self._new = {}

        add_if_possible(self.path, keep)

    def forget(self) -> None:
        """Drop the stored scores, because the search has ended."""
        with suppress(OrderscopeError, OSError), RunStore.open(self.path) as store:
            if not store.names(self.prefix):
                return
        add_if_possible(self.path, lambda store: store.drop(store.names(self.prefix)))

    def _read(self, arrays: dict[str, np.ndarray]) -> None:
        for key, n, metrics in zip(arrays["key"], arrays["numbers"].tolist(), arrays["metrics"], strict=True):
            self.known[key.tobytes()] = (n[0], n[1], n[2], metrics, n[3], n[4])


def search_key(*facts: object) -> str:
    """The facts that identify a search, as one text.

    Example:
        >>> search_key("eval", 3)
        "'eval'|3"
    """
    return "|".join(repr(fact) for fact in facts)
