"""An order as MosaicML's StreamingDataset deals samples out to nodes, ranks and workers."""

from __future__ import annotations

from typing import Any

import numpy as np

from orderscope.errors import OrderscopeError, check_whole
from orderscope.orders.checks import check_reference

NONE = -1  # a place without a sample: its worker has no more batches


def mosaic_index(
    order: Any, *, nodes: int = 1, ranks_per_node: int = 1, workers: int = 1, micro_batches: int = 1, taken: int = 0
) -> np.ndarray:
    """Sample ids by node, rank, worker and batch: what a batching method of `streaming` returns for an epoch.

    A rank reads the batches of its workers in turn, worker 0 first, as a DataLoader does. Over the ranks the batches of
    a step are that step of the order, split as `OrderSampler` splits it.

    Args:
        order: sample ids, [steps, batch].
        nodes: machines of the training.
        ranks_per_node: processes of each.
        workers: of the loader of each rank, 1 where it has none.
        micro_batches: gradient accumulation steps; the data set's `batch_size` is that of one micro-batch on one rank.
        taken: steps that were trained already: the index of a resumed run.

    Returns:
        int64 [nodes, ranks_per_node, workers, batches, samples], -1 where a worker has no more batches.

    Raises:
        OrderscopeError: steps do not divide evenly into ranks and micro-batches, or `taken` is no step of the order.

    Example:
        >>> mosaic_index([[3, 1], [0, 2], [4, 5]], workers=2).tolist()
        [[[[[3, 1], [4, 5]], [[0, 2], [-1, -1]]]]]
    """
    rows = check_reference(order, np.iinfo(np.int64).max)
    check_whole(1, nodes=nodes, ranks_per_node=ranks_per_node, workers=workers, micro_batches=micro_batches)
    ranks = nodes * ranks_per_node
    if rows.shape[1] % (ranks * micro_batches):
        raise OrderscopeError(
            f"steps of {rows.shape[1]} samples for {ranks} ranks with {micro_batches} micro-batches",
            "a multiple of their product",
            "change micro_batches= or the number of ranks",
        )
    if not 0 <= taken <= len(rows):
        raise OrderscopeError(f"taken={taken}", f"a step from 0 to {len(rows)}", "change taken=")
    rows = rows[taken:]
    size = rows.shape[1] // (ranks * micro_batches)
    batches = rows.reshape(len(rows), ranks, micro_batches, size).transpose(1, 0, 2, 3)
    batches = batches.reshape(ranks, len(rows) * micro_batches, size)
    short = -batches.shape[1] % workers
    batches = np.pad(batches, ((0, 0), (0, short), (0, 0)), constant_values=NONE)
    dealt = batches.reshape(ranks, batches.shape[1] // workers, workers, size).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(dealt.reshape(nodes, ranks_per_node, *dealt.shape[1:]))


def mosaic_order(index: Any, *, micro_batches: int = 1) -> np.ndarray:
    """The order that an index plays, int64 [steps, batch]: the inverse of `mosaic_index`.

    Args:
        index: [nodes, ranks_per_node, workers, batches, samples].
        micro_batches: gradient accumulation steps.

    Raises:
        OrderscopeError: it is no such array, or its ranks do not have as many batches each, a multiple of
            `micro_batches`.
    """
    array = np.asarray(index)
    check_whole(1, micro_batches=micro_batches)
    if array.ndim != 5 or array.dtype.kind not in "iu":
        raise OrderscopeError(
            f"an index of shape {list(array.shape)} and dtype {array.dtype}",
            "integers [nodes, ranks_per_node, workers, batches, samples]",
            "pass what mosaic_index made",
        )
    ranks = array.shape[0] * array.shape[1]
    workers, batches, size = array.shape[2:]
    dealt = array.reshape(ranks, workers, batches, size).transpose(0, 2, 1, 3).reshape(ranks, workers * batches, size)
    there = (dealt != NONE).all(axis=2)
    count = int(there[0].sum())
    if not (there[:, :count].all() and not (dealt[:, count:] != NONE).any()) or count % micro_batches:
        raise OrderscopeError(
            f"ranks with {sorted({int(n) for n in there.sum(1)})} whole batches for {micro_batches} micro-batches",
            "as many whole batches for every rank, a multiple of the micro-batches", "pass what mosaic_index made",
        )  # fmt: skip
    steps = dealt[:, :count].reshape(ranks, count // micro_batches, micro_batches * size).transpose(1, 0, 2)
    return np.ascontiguousarray(steps.reshape(count // micro_batches, ranks * micro_batches * size), dtype=np.int64)
