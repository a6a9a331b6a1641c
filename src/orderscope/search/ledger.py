"""The record of scored orders: scores each order once, within a budget and a deadline."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orderscope.errors import OrderscopeError
from orderscope.search.strategy import Scores

WHOLE = 32  # orders of whole batches that are scored in one call


@dataclass(frozen=True)
class Estimates:
    """Estimates for n orders. The objective is minimised.

    Args:
        value, error: objective on the searched rows and half-width of its 90 % interval, [n].
        spread: standard error over those rows of its difference to the reference, [n].
        metrics: the metrics in the objective, on the searched rows, [n, metrics].
        confirming, confirming_error: value and error on the confirming rows, which strategies do not see, [n].
    """

    value: np.ndarray
    error: np.ndarray
    spread: np.ndarray
    metrics: np.ndarray
    confirming: np.ndarray
    confirming_error: np.ndarray

    def row(self, i: int) -> tuple[float, float, float, np.ndarray, float, float]:
        """All fields of order i, in the sequence of the fields."""
        return (float(self.value[i]), float(self.error[i]), float(self.spread[i]), self.metrics[i],
                float(self.confirming[i]), float(self.confirming_error[i]))  # fmt: skip


Score = Callable[[np.ndarray], Estimates]


class Spent(Exception):
    """The budget or the time is used up."""


@dataclass(frozen=True)
class Entry:
    """One scored order.

    Args:
        order: sample ids, [steps, batch].
        value: its score as in `Estimates`; lower is better.
        error: half-width of the interval around it, as in `Estimates`.
        bound: the value that orders are ranked by, as in `Scores`.
        by: name of the strategy that found it first.
        metrics: estimated metrics of the order, [metrics].
        spread: standard error of the score over the searched rows.
        confirming: its score on the confirming rows.
        confirming_error: half-width of the interval around that.
    """

    order: np.ndarray
    value: float
    error: float
    bound: float
    by: str
    metrics: np.ndarray
    spread: float = 0.0
    confirming: float = math.nan
    confirming_error: float = math.nan


@dataclass
class Ledger:
    """Scores orders and remembers them.

    Args:
        reference: the recorded order.
        score: orders [n, steps, batch] -> their estimates.
        budget: how many orders may be scored.
        deadline: `time.perf_counter()` after which nothing more is scored.
        chunk: most regrouped orders scored in one call; each brings its own batches, so few fit in memory.
        any_samples: whether orders may repeat samples of the reference and leave others out.

    Attributes:
        scored: number of orders scored so far.
        finite: number of those whose score is finite.
    """

    reference: np.ndarray
    score: Score
    budget: int
    deadline: float = math.inf
    chunk: int = 8
    any_samples: bool = False
    scored: int = 0
    finite: int = 0

    def __post_init__(self) -> None:
        self._known: dict[bytes, Entry] = {}
        self._multiset = np.sort(self.reference, axis=None)
        self._recorded: dict[bytes, list[int]] = {}
        for step, batch in enumerate(np.sort(self.reference, axis=1)):
            self._recorded.setdefault(batch.tobytes(), []).append(step)

    @property
    def left(self) -> int:
        """Orders that may still be scored."""
        return 0 if self.late else self.budget - self.scored

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return time.perf_counter() > self.deadline

    def __call__(self, orders: np.ndarray, by: Sequence[str], *, most: int | None = None) -> Scores:
        """Scores of orders; each new one is charged to the budget.

        The score is infinite for orders beyond the budget, the deadline, or `most` new ones.

        Args:
            orders: sample ids, [n, steps, batch].
            by: name of the strategy that found each, [n].
            most: largest number of new orders to score; by default what is left of the budget.

        Raises:
            Spent: nothing could be scored.
        """
        known, keys = self._known, [_key(order) for order in orders]
        new = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
        room = self.left if most is None else min(self.left, most)
        picked = sorted(new.values())[: max(0, room)]
        if new and not picked:
            raise Spent
        for part in self._parts(picked, orders, self.chunk):
            estimates = self.score(orders[part])
            self.scored += len(part)
            self.finite += int(np.isfinite(estimates.value).sum())
            for k, i in enumerate(part):
                value, error, spread, metrics, confirming, confirming_error = estimates.row(k)
                self._add(
                    Entry(orders[i], value, error, math.inf, by[i], metrics, spread, confirming, confirming_error)
                )
            if self.late:
                break
        entries = [known.get(key) for key in keys]
        return Scores(
            np.array([np.inf if e is None else e.value for e in entries]),
            np.array([0.0 if e is None else e.error for e in entries]),
            np.array([0.0 if e is None else e.spread for e in entries]),
        )

    def know(
        self,
        order: np.ndarray,
        value: float,
        by: str,
        metrics: np.ndarray | None = None,
        spread: float = 0.0,
        confirming: float = math.nan,
    ) -> None:
        """Enter an order whose true value is known; it costs no budget.

        Args:
            order: sample ids, [steps, batch].
            value: its true value; lower is better.
            by: name of the strategy that found it.
            metrics: its true metrics, [metrics]; the value alone if not given.
            spread: standard error over the searched rows of the difference to the reference.
            confirming: its true value on the confirming rows; NaN if there are none.
        """
        row = np.array([value]) if metrics is None else metrics
        self._add(Entry(order, value, 0.0, math.inf, by, row, spread, confirming, 0.0))

    def _add(self, entry: Entry) -> None:
        """Store an entry; an order that diverges gets an infinite value."""
        value = entry.value if np.isfinite(entry.value) else np.inf
        bound = float(Scores(np.array(value), np.array(entry.error), entry.spread).bound)
        self._known[_key(entry.order)] = replace(entry, value=value, bound=bound)

    def ranked(self) -> list[Entry]:
        """All entries with a finite bound, the best first."""
        return sorted((e for e in self._known.values() if np.isfinite(e.bound)), key=lambda e: e.bound)

    def entry(self, order: np.ndarray) -> Entry | None:
        """The entry of an order [steps, batch]; None if it was not scored."""
        return self._known.get(_key(order))

    def steps_of(self, order: np.ndarray) -> np.ndarray | None:
        """The recorded step of each batch, [steps]; None where samples were regrouped."""
        left = {key: list(steps) for key, steps in self._recorded.items()}
        matches = [left.get(batch.tobytes()) for batch in np.sort(order, axis=1)]
        return np.array([steps.pop(0) for steps in matches if steps]) if all(matches) else None

    def checked(self, orders: np.ndarray, by: str) -> np.ndarray:
        """Check the orders that a strategy yielded, and return them as int64 [n, steps, batch].

        Args:
            orders: as the strategy yielded them, [n, steps, batch] or [steps, batch].
            by: name of the strategy.

        Raises:
            OrderscopeError: one of them is no rearrangement of the reference.
        """
        orders = np.asarray(orders)
        orders = orders[None] if orders.ndim == 2 else orders
        fits = orders.ndim == 3 and orders.shape[1:] == self.reference.shape and orders.dtype.kind in "iu"
        if self.any_samples and fits:
            fits = bool(np.isin(orders, self._multiset).all())
        elif fits:
            fits = bool((np.sort(orders.reshape(len(orders), -1), axis=1) == self._multiset).all())
        if not fits:
            raise OrderscopeError(
                f"an array of shape {list(orders.shape)} from strategy {by!r} that does not rearrange the reference",
                "orders [n, steps, batch] with every sample as often as in the reference",
                "correct the strategy, or leave it out with strategies=",
            )
        return orders.astype(np.int64)

    def _parts(self, picked: list[int], orders: np.ndarray, chunk: int) -> list[list[int]]:
        """Split orders into the chunks that are scored in one call: up to `WHOLE` of whole batches, `chunk`
        regrouped."""
        whole = [i for i in picked if self.steps_of(orders[i]) is not None]
        rest = sorted(set(picked) - set(whole))
        many = [whole[i : i + WHOLE] for i in range(0, len(whole), WHOLE)]
        return many + [rest[i : i + chunk] for i in range(0, len(rest), chunk)]


def _key(order: np.ndarray) -> bytes:
    """A key that ignores the sequence of samples within a batch."""
    return np.sort(order, axis=1).tobytes()
