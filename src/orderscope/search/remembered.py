"""Scores kept in the run while a search goes on, so that one that was interrupted goes on where it was.

A search is the same again with the same seed. So it is simply done again, and orders that were scored before are not
replayed. What is kept is a digest of the order and its numbers; it is dropped when the search ends.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from orderscope.errors import OrderscopeError
from orderscope.search.ledger import Score, Told
from orderscope.store import RunStore, add_if_possible
from orderscope.store.names import SEARCH

EVERY = 20.0  # seconds between two writes


class Remembered:
    """A score that writes down what it told.

    Args:
        score: what is asked.
        path: the run; where it cannot be written to, nothing is kept.
        question: text that two searches of the same orders for the same thing share.
        every: seconds between two writes.
    """

    def __init__(self, score: Score, path: str | os.PathLike[str], question: str, every: float = EVERY) -> None:
        self.score, self.path, self.every = score, Path(path), every
        self.prefix = f"{SEARCH}{hashlib.sha256(question.encode()).hexdigest()[:12]}-"
        self.known: dict[bytes, tuple] = {}
        self._new: dict[bytes, tuple] = {}
        self._written = time.monotonic()
        self.resumed = 0
        with suppress(OrderscopeError, OSError), RunStore.open(self.path) as store:
            for name in store.names(self.prefix):
                self._read(store.read(name))
        self.resumed = len(self.known)

    def __call__(self, orders: np.ndarray) -> Told:
        """What is told of orders [n, steps, batch], those that were told before as they were."""
        keys = [hashlib.sha256(np.ascontiguousarray(order).tobytes()).digest()[:16] for order in orders]
        new = [i for i, key in enumerate(keys) if key not in self.known]
        if new:
            told = self.score(orders[new])
            for k, i in enumerate(new):
                self.known[keys[i]] = self._new[keys[i]] = told.row(k)
        if time.monotonic() - self._written > self.every:
            self.write()
        rows = [self.known[key] for key in keys]
        columns = [np.array([row[k] for row in rows]) for k in range(6)]
        return Told(columns[0], columns[1], columns[2], np.stack([row[3] for row in rows]), columns[4], columns[5])

    def write(self) -> None:
        """Keep what is new."""
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
        """Drop what was kept: the search has ended."""
        with suppress(OrderscopeError, OSError), RunStore.open(self.path) as store:
            if not store.names(self.prefix):
                return
        add_if_possible(self.path, lambda store: store.drop(store.names(self.prefix)))

    def _read(self, arrays: dict[str, np.ndarray]) -> None:
        for key, n, metrics in zip(arrays["key"], arrays["numbers"].tolist(), arrays["metrics"], strict=True):
            self.known[key.tobytes()] = (n[0], n[1], n[2], metrics, n[3], n[4])


def question_text(*facts: object) -> str:
    """What a search was asked, as text.

    Example:
        >>> question_text("eval", 3)
        "'eval'|3"
    """
    return "|".join(repr(fact) for fact in facts)
