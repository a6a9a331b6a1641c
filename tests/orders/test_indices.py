"""Orders as other libraries' index files: what they read with them is the order."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orderscope.errors import OrderscopeError
from orderscope.orders import OrderSampler, digest, megatron, mosaic, order_hash, sampler
from orderscope.orders.megatron import MegatronIndex, megatron_index, sample_index
from orderscope.orders.mosaic import mosaic_index, mosaic_order


@pytest.mark.parametrize("module", [digest, megatron, mosaic, sampler])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted > 0


def test_a_hash_says_whether_two_orders_are_the_same():
    order = np.arange(24).reshape(6, 4)
    alike = [order.tolist(), order.astype(np.int32), np.asfortranarray(order)]
    assert {order_hash(each) for each in alike} == {order_hash(order)}
    other = [order[::-1], order.reshape(4, 6), order[:, ::-1]]
    assert len({order_hash(order), *map(order_hash, other)}) == 4
    with pytest.raises(OrderscopeError, match="dtype float64"):
        order_hash(order / 2)


def read_by_megatron(index: MegatronIndex, documents: list[np.ndarray], length: int, extra: int, at: int) -> np.ndarray:
    """The tokens of item `at`, read as GPTDataset reads them: from one document, or over the ends of some."""
    sample = int(index.shuffle_index[at])
    (first, start), (last, stop) = index.sample_index[sample], index.sample_index[sample + 1]
    if first == last:
        return documents[index.document_index[first]][start : stop + extra]
    parts = [documents[index.document_index[first]][start:]]
    parts += [documents[index.document_index[k]] for k in range(first + 1, last)]
    parts.append(documents[index.document_index[last]][: stop + extra])
    return np.concatenate(parts)


def one_by_one(sizes: list[int], length: int, extra: int) -> list[tuple[int, int]]:
    """The sample index as a loop that reads token after token."""
    places = [(d, o) for d, size in enumerate(sizes) for o in range(size)]
    found = [(0, 0)]
    while len(found) * length + extra <= len(places):
        document, offset = places[len(found) * length - 1 + extra]
        found.append((document, offset + 1 - extra))
    return found


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 5), st.booleans())
def test_the_sample_index_is_that_of_a_loop_over_tokens(sizes, length, extra):
    found = sample_index(np.array(sizes), length, extra)
    assert found.dtype == np.int32
    assert [tuple(row) for row in found.tolist()] == one_by_one(sizes, length, int(extra))


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.booleans())
@settings(max_examples=40)
def test_megatron_reads_the_order(tmp_path_factory, seed, length, extra):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 12, size=rng.integers(6, 12))
    documents = np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1])  # every token is its own name
    shuffled = rng.permutation(len(sizes))
    stream = np.concatenate([documents[d] for d in shuffled])
    samples = (len(stream) - int(extra)) // length
    batch = int(rng.integers(1, max(2, samples // 2)))
    order = rng.permutation(samples)[: samples // batch * batch].reshape(-1, batch)
    index = megatron_index(order, sizes, length, document_index=shuffled, add_extra_token=extra)
    prefix = tmp_path_factory.mktemp("cache") / "abc-GPTDataset-train"
    paths = index.write(prefix)
    assert [path.name for path in paths] == [
        "abc-GPTDataset-train-document_index.npy",
        "abc-GPTDataset-train-sample_index.npy",
        "abc-GPTDataset-train-shuffle_index.npy",
    ]
    again = MegatronIndex.read(prefix)
    assert (again.document_index.dtype, again.sample_index.dtype) == (np.int32, np.int32)
    assert again.shuffle_index.dtype == np.uint32
    np.testing.assert_array_equal(again.order(batch), order)
    for at, sample in enumerate(order.reshape(-1)):
        read = read_by_megatron(again, documents, length, int(extra), at)
        np.testing.assert_array_equal(read, stream[sample * length : (sample + 1) * length + int(extra)])


def test_megatron_errors(tmp_path: Path):
    order = [[0, 1], [2, 3]]
    assert len(megatron_index(order, [5, 4], 2).sample_index) == 5
    with pytest.raises(OrderscopeError, match="sample ids out of range: 3"):
        megatron_index(order, [4, 4], 2)
    with pytest.raises(OrderscopeError, match="document 2 of 2 lengths"):
        megatron_index(order, [5, 4], 2, document_index=[0, 2])
    with pytest.raises(OrderscopeError, match=r"lengths of shape \[0\]"):
        megatron_index(order, [], 2)
    with pytest.raises(OrderscopeError, match="sequence_length=0"):
        megatron_index(order, [5, 4], 0)
    index = megatron_index(order, [5, 4], 2)
    with pytest.raises(OrderscopeError, match="batch=5"):
        index.order(5)
    with pytest.raises(OrderscopeError, match="no directory"):
        index.write(tmp_path / "no" / "x")
    with pytest.raises(OrderscopeError, match=r"no file .*x-document_index\.npy"):
        MegatronIndex.read(tmp_path / "x")


def read_by_streaming(index: np.ndarray, rank: int) -> list[list[int]]:
    """Batches that a rank's DataLoader hands out: of its workers in turn, each ends where it meets -1."""
    mine = index[divmod(rank, index.shape[1])]
    found = []
    for k in range(mine.shape[1]):
        for worker in mine:
            ids = [int(i) for i in worker[k] if i != -1]
            if ids:
                found.append(ids)
    return found


@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 4), st.integers(1, 2), st.integers(1, 6), st.integers(0, 6))
def test_streaming_reads_the_order(nodes, ranks_per_node, workers, micro_batches, steps, taken):
    ranks = nodes * ranks_per_node
    order = np.random.default_rng(0).permutation(steps * 24).reshape(steps, 24)
    taken = min(taken, steps)
    index = mosaic_index(order, nodes=nodes, ranks_per_node=ranks_per_node, workers=workers,
                         micro_batches=micro_batches, taken=taken)  # fmt: skip
    assert index.shape[:3] == (nodes, ranks_per_node, workers)
    for rank in range(ranks):
        played = OrderSampler(order, rank=rank, world_size=ranks, micro_batches=micro_batches)
        assert read_by_streaming(index, rank) == list(played)[taken * micro_batches :]
    np.testing.assert_array_equal(mosaic_order(index, micro_batches=micro_batches), order[taken:])


def test_streaming_errors():
    order = np.arange(12).reshape(3, 4)
    with pytest.raises(OrderscopeError, match="steps of 4 samples for 3 ranks"):
        mosaic_index(order, ranks_per_node=3)
    with pytest.raises(OrderscopeError, match="workers=0"):
        mosaic_index(order, workers=0)
    with pytest.raises(OrderscopeError, match="taken=4"):
        mosaic_index(order, taken=4)
    with pytest.raises(OrderscopeError, match=r"index of shape \[3, 4\]"):
        mosaic_order(order)
    uneven = mosaic_index(order, ranks_per_node=2)
    uneven[0, 0, 0, -1] = -1
    with pytest.raises(OrderscopeError, match=r"ranks with \[2, 3\] whole batches"):
        mosaic_order(uneven)
