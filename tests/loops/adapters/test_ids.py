"""Loaders whose batches carry the ids of their samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, default_collate

import orderscope as osc

DATA = torch.arange(22) * 10


class AtOnce(Dataset):
    """Fetches a whole batch in one call."""

    def __len__(self) -> int:
        return len(DATA)

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        return list(DATA[indices])


LOADERS: dict[str, Any] = {
    "in order": lambda: DataLoader(DATA, 4),
    "shuffled": lambda: DataLoader(DATA, 4, shuffle=True),
    "shuffled, own generator": lambda: DataLoader(DATA, 4, True, generator=torch.Generator().manual_seed(2)),
    "dropping": lambda: DataLoader(DATA, 4, shuffle=True, drop_last=True),
    "workers": lambda: DataLoader(DATA, 4, shuffle=True, num_workers=2),
    "batch sampler": lambda: DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 5, False)),
    "order": lambda: DataLoader(DATA, batch_sampler=osc.OrderSampler([[3, 1], [0, 2]], micro_batches=2)),
    "collate": lambda: DataLoader(DATA, 4, collate_fn=lambda rows: default_collate(rows) + 0),
    "fetched at once": lambda: DataLoader(AtOnce(), 4, shuffle=True),
}


@pytest.mark.parametrize("name", LOADERS)
def test_the_same_batches_with_their_ids_and_the_same_random_numbers(name: str) -> None:
    torch.manual_seed(5)
    plain = [*LOADERS[name](), *LOADERS[name]()]
    after = torch.rand(1)
    torch.manual_seed(5)
    loaders = [osc.with_ids(LOADERS[name]()) for _ in range(2)]
    pairs = [pair for loader in loaders for pair in loader]
    assert torch.equal(after, torch.rand(1))
    assert len(plain) == len(pairs) == sum(len(loader) for loader in loaders)
    for batch, (ids, same) in zip(plain, pairs, strict=True):
        assert torch.equal(batch, same)
        assert torch.equal(10 * ids, batch)


def test_an_iterable_data_set_is_refused() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(DATA)

    with pytest.raises(osc.OrderscopeError, match=r"iterable-style data set, Stream.*yield ids yourself"):
        osc.with_ids(DataLoader(Stream(), 4))
