"""Language models as they are fine-tuned: TRL's SFTTrainer, PEFT's LoRA, a loop under accelerate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import orderscope as osc
from orderscope import losses
from orderscope.loops.legs import load_state
from orderscope.training import load_run

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = [pytest.mark.filterwarnings("ignore:::(?!orderscope)"), pytest.mark.filterwarnings("default::UserWarning")]

ROWS, LENGTH, VOCAB = 16, 8, 40


def build(lora: bool = False) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32,
            vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
        if lora:
            peft = pytest.importorskip("peft")
            return peft.get_peft_model(
                model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
            )
        return model


def samples() -> list[dict[str, Any]]:
    """Of unequal length (padded, and left out of the loss), so that samples weigh unequally in a mean over tokens."""
    g = torch.Generator().manual_seed(0)
    rows = []
    for i in range(ROWS):
        ids = torch.randint(3, VOCAB, (LENGTH,), generator=g)
        length = 3 + i % 6
        mask = (torch.arange(LENGTH) < length).long()
        rows.append({"input_ids": ids * mask, "attention_mask": mask, "labels": torch.where(mask > 0, ids, -100)})
    return rows


def trained(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])


def arguments(folder: Path, kind: Any = None, **options: Any) -> Any:
    defaults = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2, "seed": 3,
                "learning_rate": 1e-2, "use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_steps": 1000,
                "save_strategy": "no"}  # fmt: skip
    return (kind or transformers.TrainingArguments)(str(folder), **(defaults | options))


def check_reproduced(rec: Any, build_model: Any, path: Path) -> None:
    rows = samples()
    weights = losses.token_mean_weights(rec.order[:4], losses.token_counts(rows))
    task = rec.task(
        model=build_model, loss=losses.causal_lm, data=losses.Weighted(rows, weights), max_grad_norm=1.0, last=4
    )  # fmt: skip
    osc.record(task, path, probes=0, sketch=False)
    reached = load_run(osc.RunStore.open(path), "reference").theta()[-1]
    there = load_state(rec.recorded.states[4]).theta
    assert (reached - there).norm() <= 1e-4 * (reached - trained(build_model())).norm()


@pytest.mark.parametrize("lora", [False, True])
def test_a_language_model_in_the_trainer_with_a_mean_over_the_steps_tokens(lora: bool, tmp_path: Path) -> None:
    model = build(lora)
    trainer = transformers.Trainer(model, arguments(tmp_path / "hf"), train_dataset=samples())
    rec = osc.TrainerRecorder(trainer, tmp_path / "run", anchors=9)
    trainer.train()
    bare = build(lora)
    transformers.Trainer(bare, arguments(tmp_path / "bare"), train_dataset=samples()).train()
    assert torch.equal(trained(model), trained(bare))
    assert rec.order.shape == (8, 4)
    check_reproduced(rec, lambda: build(lora), tmp_path / "run")


def test_a_mean_over_samples_where_it_was_over_tokens_is_refused(tmp_path: Path) -> None:
    trainer = transformers.Trainer(build(), arguments(tmp_path / "hf"), train_dataset=samples())
    rec = osc.TrainerRecorder(trainer, tmp_path / "run")
    trainer.train()
    task = rec.task(model=build, loss=losses.causal_lm, data=samples(), max_grad_norm=1.0)
    with pytest.raises(osc.OrderscopeError, match="does not do what the loop did at step 0"):
        osc.record(task, tmp_path / "run", probes=0, sketch=False)


@pytest.mark.parametrize("lora", [False, True])
def test_supervised_fine_tuning_with_trl(lora: bool, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{i}": i for i in range(3, VOCAB)} | {"<pad>": 0, "<s>": 1, "</s>": 2}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )  # fmt: skip
    texts = [" ".join(f"w{3 + (i * 7 + k * 5) % 37}" for k in range(3 + i % 6)) for i in range(ROWS)]
    rows = datasets.Dataset.from_dict({"text": texts, "source": ["a"] * ROWS})

    def run(folder: str, record: bool) -> tuple[Any, Any]:
        args = arguments(tmp_path / folder, trl.SFTConfig, max_length=LENGTH, gradient_checkpointing=False)
        trainer = trl.SFTTrainer(build(lora), args=args, train_dataset=rows, processing_class=tokenizer)
        rec = osc.TrainerRecorder(trainer, tmp_path / "run") if record else None
        seen: list[list[int]] = []
        if record:
            texts_of = {tuple(row["input_ids"]): i for i, row in enumerate(trainer.train_dataset)}

            def look(module: nn.Module, positional: Any, inputs: Any) -> None:
                ids, mask = inputs["input_ids"], inputs["attention_mask"]
                seen.append([texts_of[tuple(row[keep > 0].tolist())] for row, keep in zip(ids, mask, strict=True)])

            trainer.model.register_forward_pre_hook(look, with_kwargs=True)
        trainer.train()
        if rec is not None:
            assert rec.order.tolist() == [[*a, *b] for a, b in zip(seen[::2], seen[1::2], strict=True)]
        return trainer, rec

    recorded, rec = run("sft", True)
    bare, _ = run("bare", False)
    assert torch.equal(trained(recorded.model), trained(bare.model))
    assert sorted(rec.order.ravel()) == sorted(2 * list(range(ROWS)))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_loop_under_accelerate(precision: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    rows = samples()

    def run(path: Path | None) -> tuple[Any, Any]:
        accelerate.state.AcceleratorState._reset_state(True)  # it is one for the whole process
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision=precision)
        model = build()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        generator = torch.Generator().manual_seed(1)
        loader = DataLoader(rows, 2, shuffle=True, generator=generator)
        loader = osc.with_ids(loader) if path else loader
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        rec = osc.Recorder(path, model, optimizer) if path else None
        truth = []
        for batch in loader:
            if rec is not None:
                ids, batch = batch
                truth += ids.tolist()
            with accelerator.accumulate(model):
                loss = losses.causal_lm(model, batch).mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
            if rec is not None:
                rec.step(ids, loss)
        if rec is not None:
            rec.close()
            assert rec.order.ravel().tolist() == truth
        return trained(accelerator.unwrap_model(model)), rec

    (bare, _), (weights, rec) = run(None), run(tmp_path / "run")
    assert torch.equal(bare, weights)
    assert rec.order.shape == (4, 4)
    task = rec.task(model=build, loss=losses.causal_lm, data=rows, max_grad_norm=0.5)
    osc.record(task, tmp_path / "run", probes=0, sketch=False)
    reached = load_run(osc.RunStore.open(tmp_path / "run"), "reference").theta()[-1]
    moved = (reached - trained(build())).norm()
    assert (reached - weights).norm() <= (0.1 if precision == "bf16" else 1e-4) * moved


def test_the_same_order_under_one_and_two_ranks_dealt_by_accelerate() -> None:
    pytest.importorskip("accelerate")
    from accelerate.data_loader import BatchSamplerShard

    order = np.random.default_rng(0).permutation(32).reshape(4, 8)
    for ranks in (1, 2, 4):
        sampler = osc.OrderSampler(order, rank=None, world_size=ranks, micro_batches=2)
        dealt = [list(BatchSamplerShard(sampler, ranks, r)) for r in range(ranks)]
        for step, row in enumerate(order):
            together = [i for rank in dealt for batch in rank[2 * step : 2 * step + 2] for i in batch]
            assert sorted(together) == sorted(row.tolist())
        assert all(len(rank) == 8 for rank in dealt)
