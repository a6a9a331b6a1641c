"""Sample ids that travel with the batch: whatever shuffles, shards, skips or prefetches it, they stay true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from orderscope.errors import OrderscopeError
from orderscope.loops.notices import UnevenStepsWarning, tell


def with_ids(loader: DataLoader) -> DataLoader:
    """The same loader, its batches as `(ids, batch)`: ids is an int64 tensor of indices into the data set.

    Sampler, workers and all options stay; no random number is drawn that was not drawn before.

        for ids, batch in osc.with_ids(loader): ...

    Raises: OrderscopeError for an iterable-style data set: its samples have no index.
    """
    size = _length(loader.sampler)
    if loader.batch_size is not None and not loader.drop_last and size and size % loader.batch_size:
        tell(
            UnevenStepsWarning,
            f"the last batch of an epoch has {size % loader.batch_size} samples, the others {loader.batch_size}: only "
            "windows without it can be predicted; create the loader with drop_last=True",
        )
    return rebuilt(loader, Paired)


def _length(sampler: Any) -> int | None:
    """Samples of an epoch, None where a sampler does not say."""
    try:
        return len(sampler)
    except (TypeError, NotImplementedError):
        return None


def rebuilt(loader: DataLoader, collate: Callable[[Any], Any]) -> DataLoader:
    """A loader over (id, sample) pairs that otherwise does what another does.

    Args:
        loader: the one to rebuild.
        collate: makes of its collate function one of a list of pairs.

    Raises:
        OrderscopeError: its data set is iterable-style, without indices.
    """
    if isinstance(loader.dataset, IterableDataset):
        raise OrderscopeError(
            f"an iterable-style data set, {type(loader.dataset).__name__}",
            "a map-style data set, whose samples have an index",
            "give it __getitem__ and __len__, or yield ids yourself and call rec.step(ids)",
        )
    options: dict[str, Any] = {
        name: getattr(loader, name)
        for name in ("num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator",
                     "prefetch_factor", "persistent_workers", "pin_memory_device", "in_order")
        if hasattr(loader, name)
    }  # fmt: skip
    if loader.batch_size is None and loader.batch_sampler is not None:
        options["batch_sampler"] = loader.batch_sampler
    else:
        options |= {"sampler": loader.sampler, "batch_size": loader.batch_size, "drop_last": loader.drop_last}
    return DataLoader(_WithIds(loader.dataset), collate_fn=collate(loader.collate_fn), **options)


class _WithIds(Dataset):
    """Samples with their index."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> tuple[int, Any]:
        return int(index), self.data[index]

    def __getitems__(self, indices: list[Any]) -> list[tuple[int, Any]]:
        fetch = getattr(self.data, "__getitems__", None)
        samples = fetch(indices) if fetch else [self.data[i] for i in indices]
        return [(int(i), sample) for i, sample in zip(indices, samples, strict=True)]


class Paired:
    """Collates to `(ids, batch)`."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, pairs: list[tuple[int, Any]]) -> tuple[Tensor, Any]:
        return torch.tensor([i for i, _ in pairs]), self.collate([sample for _, sample in pairs])


class Inside(Paired):
    """Collates to the batch, a mapping, with the ids under `KEY`."""

    KEY = "orderscope_ids"

    def __call__(self, pairs: list[tuple[int, Any]]) -> Any:
        ids, batch = super().__call__(pairs)
        if not hasattr(batch, "keys"):
            raise OrderscopeError(
                f"a collated batch of type {type(batch).__name__}",
                "a dict of tensors",
                "return a dict from the collator",
            )
        batch[self.KEY] = ids
        return batch
