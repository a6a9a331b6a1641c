"""Orders read by the libraries themselves, where they are installed; both pin other versions of what we need.

pip install megatron-core mosaicml-streaming, in an environment of their own.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from orderscope.orders.megatron import MegatronIndex, megatron_index, sample_index
from orderscope.orders.mosaic import mosaic_index

pytestmark = pytest.mark.filterwarnings("ignore:::(?!orderscope)")


def test_megatron_has_the_same_sample_index() -> None:
    helpers = pytest.importorskip("megatron.core.datasets.helpers", exc_type=ImportError)
    rng = np.random.default_rng(0)
    for trial in range(200):
        sizes = rng.integers(1, 12, size=rng.integers(3, 12)).astype(np.int32)
        documents, length, extra = rng.permutation(len(sizes)).astype(np.int32), int(rng.integers(1, 3)), trial % 2
        its = helpers.build_sample_idx(sizes, documents, length, 1, int(sizes.sum()), True, bool(extra))
        ours = sample_index(sizes[documents], length, bool(extra))
        assert ours.dtype == its.dtype
        np.testing.assert_array_equal(ours, its)


def test_megatron_plays_an_order(tmp_path: Path) -> None:
    pytest.importorskip("megatron.core.datasets.gpt_dataset", exc_type=ImportError)
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
    from megatron.core.datasets.utils import Split

    sizes = np.random.default_rng(0).integers(3, 40, size=50)
    builder = IndexedDatasetBuilder(str(tmp_path / "data.bin"), dtype=np.int32)
    for tokens in np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1]):
        builder.add_document(torch.tensor(tokens, dtype=torch.int32), [len(tokens)])
    builder.finalize(str(tmp_path / "data.idx"))
    config = GPTDatasetConfig(
        random_seed=1, sequence_length=8, split="100,0,0", path_to_cache=str(tmp_path / "cache"),
        tokenizer=SimpleNamespace(eod=0, pad=-1, unique_identifiers={}, vocab_size=10000),
        reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False, mid_level_dataset_surplus=0.005,
    )  # fmt: skip
    low = IndexedDataset(str(tmp_path / "data"))

    def dataset() -> GPTDataset:
        return GPTDataset(low, str(tmp_path / "data"), np.arange(50, dtype=np.int32), None, Split.train, config)

    first = dataset()
    (path,) = (tmp_path / "cache").glob("*-document_index.npy")
    prefix = str(path).removesuffix("-document_index.npy")
    before = MegatronIndex.read(prefix)
    read = {int(sample): first[i]["tokens"].numpy().copy() for i, sample in enumerate(before.shuffle_index)}
    order = before.order(4)[::-1]
    index = megatron_index(order, low.sequence_lengths, 8, document_index=before.document_index)
    np.testing.assert_array_equal(index.sample_index, before.sample_index)
    assert [a.dtype for a in vars(index).values()] == [a.dtype for a in vars(before).values()]
    index.write(prefix)
    second = dataset()
    for i, sample in enumerate(order.ravel()):
        np.testing.assert_array_equal(second[i]["tokens"].numpy(), read[int(sample)])


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_plays_an_order_and_goes_on(workers: int, tmp_path: Path) -> None:
    streaming = pytest.importorskip("streaming", exc_type=ImportError)
    from streaming.base.batching import batching_methods

    with streaming.MDSWriter(out=str(tmp_path / "mds"), columns={"id": "int"}, size_limit=200) as writer:
        for i in range(48):
            writer.write({"id": i})
    order = np.random.default_rng(0).permutation(48).reshape(6, 8)

    def played(dataset, world, epoch, sample_in_epoch):
        return mosaic_index(
            order, nodes=world.num_nodes, ranks_per_node=world.ranks_per_node, workers=world.workers_per_rank,
            micro_batches=2, taken=sample_in_epoch // order.shape[1],
        )  # fmt: skip

    batching_methods["orderscope"] = played

    def loader():
        data = streaming.StreamingDataset(local=str(tmp_path / "mds"), batch_size=4)
        data.batching_method = "orderscope"
        return streaming.StreamingDataLoader(data, batch_size=4, num_workers=workers)

    assert np.array([batch["id"].tolist() for batch in loader()]).reshape(6, 8).tolist() == order.tolist()
    first = loader()
    running = iter(first)
    for _ in range(4):  # two steps of two micro-batches
        next(running)
    state = first.state_dict()
    del running
    second = loader()
    second.load_state_dict(state)
    rest = np.array([batch["id"].tolist() for batch in second]).reshape(-1, 8)
    assert rest.tolist() == order[2:].tolist()
