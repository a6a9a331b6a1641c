"""Play an order to a DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from orderscope.errors import OrderscopeError, check_whole
from orderscope.orders.checks import check_reference
from orderscope.orders.digest import order_hash


class OrderSampler:
    """A batch sampler that plays an order: `DataLoader(data, batch_sampler=OrderSampler(order))`.

    One pass is the whole order, over all its epochs; there is nothing to set between epochs. Every rank gets a
    contiguous part of each step's ids, so that over the ranks, in rank order, the step is what was recorded, for any
    number of ranks, workers and micro-batches. Parts differ by one sample at most where the batch does not divide
    evenly: such steps are the recorded ones only if the gradients of all parts are weighted by the samples in them.

    Args:
        order: sample ids, [steps, batch].
        rank: this process, from 0; None yields the parts of all ranks in turn, for libraries that deal the batches of
            one sampler out to the ranks themselves (accelerate, Trainer).
        world_size: number of processes.
        micro_batches: gradient accumulation steps; a rank's part of each step comes in as many batches.

    Raises:
        OrderscopeError: for an order that is not [steps, batch] integers, or a rank or micro-batch without samples.

    Example:
        >>> list(OrderSampler([[3, 1], [0, 2]]))
        [[3, 1], [0, 2]]
        >>> list(OrderSampler([[3, 1], [0, 2]], rank=1, world_size=2))
        [[1], [2]]
        >>> list(OrderSampler([[3, 1], [0, 2]], micro_batches=2))
        [[3], [1], [0], [2]]
    """

    drop_last = False

    def __init__(self, order: Any, *, rank: int | None = 0, world_size: int = 1, micro_batches: int = 1) -> None:
        self.order = check_reference(order, np.iinfo(np.int64).max)
        batch = self.order.shape[1]
        check_whole(1, world_size=world_size, micro_batches=micro_batches)
        if rank is not None and not 0 <= rank < world_size:
            raise OrderscopeError(f"rank {rank} of {world_size}", f"a rank from 0 to {world_size - 1}", "correct rank=")
        if world_size * micro_batches > batch:
            each = f" in {micro_batches} micro-batches" if micro_batches > 1 else ""
            raise OrderscopeError(
                f"{world_size} ranks{each} for steps of {batch} samples",
                "at least one sample per rank" + (" and micro-batch" if each else ""),
                "use fewer ranks" + (" or micro-batches" if each else ""),
            )
        self.rank, self.world_size, self.micro_batches = rank, world_size, micro_batches
        ranks = [np.array_split(part, micro_batches, axis=1) for part in np.array_split(self.order, world_size, axis=1)]
        mine = range(world_size) if rank is None else [rank]
        self._parts = [ranks[r][k] for k in range(micro_batches) for r in mine]
        self.batch_size = max(part.shape[1] for part in self._parts)
        self._start = self._next = 0

    @property
    def start(self) -> int:
        """Step of the order that the next pass begins with."""
        return self._start

    @property
    def batches_a_step(self) -> int:
        """Batches that make one step of the order."""
        return len(self._parts)

    def __len__(self) -> int:
        """Batches of the pass that is under way or comes next."""
        return (len(self.order) - self._start) * len(self._parts)

    def __iter__(self) -> Iterator[list[int]]:
        self._next = self._start
        while self._next < len(self.order):
            step = self._next
            for k, part in enumerate(self._parts):
                self._next = step + (k == len(self._parts) - 1)  # a step is taken with its last micro-batch
                yield part[step].tolist()
        self._start = self._next = 0

    def state_dict(self, *, taken: int | None = None) -> dict[str, Any]:
        """Where it stands: the same order can go on from there, on any number of ranks.

        Args:
            taken: steps of the order that were trained. A DataLoader with workers asks for ids ahead of training, so
                with workers say how many steps were taken; without, the sampler knows.
        """
        return {"next": self._next if taken is None else int(taken), "order": order_hash(self.order)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`; the pass after that starts from the beginning.

        Raises: OrderscopeError where the state is of another order.
        """
        if state["order"] != order_hash(self.order) or not 0 <= state["next"] <= len(self.order):
            raise OrderscopeError(
                "the state of a sampler of another order",
                "a state of this order",
                "build the sampler with the same order",
            )
        self._start = self._next = int(state["next"])
