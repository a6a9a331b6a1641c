"""A DataLoader that plays an order and knows how many of its steps were handed out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from orderscope.errors import OrderscopeError
from orderscope.orders.sampler import OrderSampler


class OrderLoader(DataLoader):
    """`DataLoader(data, batch_sampler=OrderSampler(order, ...), ...)` with an exact state in mid-epoch.

    A sampler is asked for ids ahead of training, by as many batches as the workers prefetch. This counts what was
    handed out: `state_dict()` after a step is the state after that step, for any number of workers. Inside an
    accumulation it is that before the step, whose micro-batches come again.

    Lightning stores and restores that state in its checkpoints by itself. On several ranks pass it
    `use_distributed_sampler=False`.

    Args:
        dataset: map-style data set; a sample's index is its id.
        order: sample ids, [steps, batch].
        rank, world_size, micro_batches: as for `OrderSampler`.
        options: of `torch.utils.data.DataLoader`, but for those that say which samples come when.

    Raises:
        OrderscopeError: as `OrderSampler`; or an option is given that the order decides.

    Example:
        >>> loader = OrderLoader(torch.arange(8), [[3, 1], [0, 2], [5, 4]])
        >>> next(iter(loader)), loader.state_dict()["next"]
        (tensor([3, 1]), 1)
    """

    def __init__(
        self,
        dataset: Any,
        order: Any,
        *,
        rank: int | None = 0,
        world_size: int = 1,
        micro_batches: int = 1,
        **options: Any,
    ) -> None:
        decided = {"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last"} & set(options)
        if decided:
            raise OrderscopeError(
                f"OrderLoader({sorted(decided)[0]}=)", "options that do not choose samples: the order does",
                "leave it out",
            )  # fmt: skip
        self.played = OrderSampler(order, rank=rank, world_size=world_size, micro_batches=micro_batches)
        if len(dataset) <= int(self.played.order.max()):
            raise OrderscopeError(
                f"a data set of {len(dataset)} samples for an order with sample {int(self.played.order.max())}",
                "the data set that the order is of", "pass that data set",
            )  # fmt: skip
        self._handed = self._first = 0
        super().__init__(dataset, batch_sampler=self.played, **options)

    def __iter__(self) -> Iterator[Any]:
        self._first, self._handed = self.played.start, 0
        for batch in super().__iter__():
            self._handed += 1  # before the loop's body, which trains on it
            yield batch
        self._handed = self._first = 0

    def __len__(self) -> int:
        """Batches of a whole pass, even when it resumes from a state: Lightning counts from the beginning."""
        return len(self.played.order) * self.played.batches_a_step

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, see `OrderSampler.state_dict`."""
        return self.played.state_dict(taken=self._first + self._handed // self.played.batches_a_step)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict` with the next iteration.

        Raises: OrderscopeError where the state is of another order.
        """
        self.played.load_state_dict(state)
        self._first, self._handed = self.played.start, 0
