"""An order as the index files that Megatron's GPTDataset caches: documents, samples, and the order of the samples.

The documents, one after the other as the document index names them, are one stream of tokens. Sample k is its tokens
from k L to (k + 1) L, both included: L inputs and, shifted by one, L targets. The shuffle index says which sample is
read when; it is the order.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orderscope.errors import OrderscopeError, check_whole
from orderscope.files import check_output, written
from orderscope.orders.checks import check_reference
from orderscope.orders.npy import load_array

PARTS = ("document_index", "sample_index", "shuffle_index")


@dataclass(frozen=True)
class MegatronIndex:
    """What lies in the three files.

    Args:
        document_index: ids of the documents in the order of their tokens, int32 [documents].
        sample_index: where each sample begins, as a place in `document_index` and an offset in tokens, the last row
            where the last sample ends, int32 or int64 [samples + 1, 2].
        shuffle_index: the sample that is read at each place, uint32 or int64 [steps * batch].
    """

    document_index: np.ndarray
    sample_index: np.ndarray
    shuffle_index: np.ndarray

    def write(self, prefix: str | os.PathLike[str]) -> list[Path]:
        """Write the files `PREFIX-document_index.npy`, `PREFIX-sample_index.npy`, `PREFIX-shuffle_index.npy`, and
        return their paths. Files of these names are replaced.

        Args:
            prefix: as of the files that Megatron has in its cache, `FOLDER/HASH-GPTDataset-train`.

        Raises:
            OrderscopeError: the folder is missing or cannot be written to.
        """
        paths = [_path(prefix, part) for part in PARTS]
        check_output(paths[0])
        for part, path in zip(PARTS, paths, strict=True):
            with written(path) as file:
                np.save(file, getattr(self, part))
        return paths

    @classmethod
    def read(cls, prefix: str | os.PathLike[str]) -> MegatronIndex:
        """The files of a prefix. Raises: OrderscopeError where one is missing or no numpy array."""
        return cls(*(load_array(str(_path(prefix, part)), f"a {part.replace('_', ' ')}") for part in PARTS))

    def order(self, batch: int) -> np.ndarray:
        """The order that the shuffle index plays, int64 [steps, batch]; a short last step is left out.

        Args:
            batch: samples of one optimizer step, Megatron's global batch size.

        Raises:
            OrderscopeError: for a batch below 1, or above the number of samples.
        """
        check_whole(1, batch=batch)
        if batch > len(self.shuffle_index):
            raise OrderscopeError(
                f"batch={batch!r}", f"at most {len(self.shuffle_index)}, the number of samples", "change batch="
            )
        steps, batch = len(self.shuffle_index) // int(batch), int(batch)
        return self.shuffle_index[: steps * batch].astype(np.int64).reshape(steps, batch)


def megatron_index(
    order: Any,
    lengths: Any,
    sequence_length: int,
    *,
    document_index: Any = None,
    add_extra_token: bool = True,
) -> MegatronIndex:
    """Index files that have Megatron read the samples of an order, in that order.

    Args:
        order: sample ids, [steps, batch]; id k is the k-th sequence of the token stream, row k of the sample index.
        lengths: tokens of each document, [documents]: `IndexedDataset.sequence_lengths`.
        sequence_length: L, tokens of a sample without the extra one.
        document_index: ids of the documents in the order of their tokens; that of the recorded run, see
            `MegatronIndex.read`. 0, 1, 2 ... if not given.
        add_extra_token: Megatron's `add_extra_token_to_sequence`.

    Raises:
        OrderscopeError: for an id without a sequence, a document without a length, or a length below 1.
    """
    sizes = np.asarray(lengths)
    documents = np.arange(len(sizes)) if document_index is None else np.asarray(document_index)
    for name, array in (("lengths", sizes), ("document_index", documents)):
        if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size or array.min() < 0:
            raise OrderscopeError(
                f"{name} of shape {list(array.shape)} and dtype {array.dtype}",
                "one whole number from 0 for each document", f"change {name}",
            )  # fmt: skip
    if documents.max() >= len(sizes):
        raise OrderscopeError(
            f"document {documents.max()} of {len(sizes)} lengths", "a length for every document", "pass all lengths"
        )
    check_whole(1, sequence_length=sequence_length)
    samples = sample_index(sizes[documents], int(sequence_length), add_extra_token)
    rows = check_reference(order, len(samples) - 1)
    few = len(samples) - 1 < np.iinfo(np.uint32).max - 1
    return MegatronIndex(
        documents.astype(np.int32), samples, rows.reshape(-1).astype(np.uint32 if few else np.int64)
    )  # fmt: skip


def sample_index(sizes: np.ndarray, sequence_length: int, add_extra_token: bool = True) -> np.ndarray:
    """Where samples of `sequence_length` tokens begin in documents of these sizes, one after the other.

    Args:
        sizes: tokens of each document, [documents].
        sequence_length: L, tokens of a sample.
        add_extra_token: whether a sample reads one token beyond its own, the target of its last.

    Returns:
        Place of the document and offset in it, [samples + 1, 2], int32 where that holds them; the first row is 0, 0.

    Example:
        >>> sample_index(np.array([3, 4]), 2).tolist()
        [[0, 0], [0, 2], [1, 1], [1, 3]]
    """
    extra = int(add_extra_token)
    ends = np.cumsum(sizes, dtype=np.int64)
    count = max(0, (int(ends[-1]) - extra) // sequence_length)
    last = np.arange(1, count + 1, dtype=np.int64) * sequence_length - 1 + extra  # the last token that a sample reads
    place = np.searchsorted(ends, last, side="right")
    offset = last - (ends - sizes)[place] + 1 - extra
    found = np.concatenate([np.zeros((1, 2), dtype=np.int64), np.stack([place, offset], axis=1)])
    return found.astype(np.int32) if max(len(found), int(found.max())) <= np.iinfo(np.int32).max else found


def _path(prefix: str | os.PathLike[str], part: str) -> Path:
    return Path(f"{os.fspath(prefix)}-{part}.npy")
