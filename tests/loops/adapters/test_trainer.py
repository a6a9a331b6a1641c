"""The recorder in the real Hugging Face Trainer, on a tiny model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import orderscope as osc
from orderscope.training import load_run

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = [pytest.mark.filterwarnings("ignore:::(?!orderscope)"), pytest.mark.filterwarnings("default::UserWarning")]

ROWS, LENGTH = 24, 6


def samples(count: int = ROWS) -> list[dict[str, Any]]:
    """Sentences whose first token is their id, so that a model sees which sample it is given."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randint(ROWS, 64, (count, LENGTH), generator=g)
    rows[:, 0] = torch.arange(count)
    return [
        {
            "input_ids": row,
            "attention_mask": torch.ones_like(row),
            "labels": int(row[1:].sum()) % 3,
            "unused": f"row {i}",
        }
        for i, row in enumerate(rows)
    ]


def build(kind: str = "bert") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
                 "vocab_size": 64}  # fmt: skip
        if kind == "bert":
            config = transformers.BertConfig(
                **small, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
            )
            return transformers.BertForSequenceClassification(config)
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**small, num_key_value_heads=2, pad_token_id=0))


class Seen:
    """Ids the model was really trained on: its own inputs in training mode, cut at the optimizer's steps."""

    def __init__(self, model: nn.Module) -> None:
        self.steps: list[list[int]] = []
        self.now: list[int] = []
        self.hook = model.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        assert set(kwargs) <= {"input_ids", "attention_mask", "labels", "num_items_in_batch", "use_cache"}
        if model.training:
            self.now += kwargs["input_ids"][:, 0].tolist()

    def callback(self) -> Any:
        seen = self

        class Callback(transformers.TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                seen.steps.append(seen.now)
                seen.now = []

            def on_train_end(self, args, state, control, **kwargs):
                seen.hook.remove()

        return Callback()


def trainer_of(folder: Path, rows: Any, model: nn.Module | None = None, **options: Any) -> tuple[Any, Seen]:
    model = build() if model is None else model
    seen = Seen(model)
    defaults = {
        "per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 3e-3, "use_cpu": True, "seed": 3,
        "report_to": [], "disable_tqdm": True, "logging_steps": 1000, "save_strategy": "no",
    }  # fmt: skip
    args = transformers.TrainingArguments(str(folder), **(defaults | options))
    return transformers.Trainer(model, args, train_dataset=rows, callbacks=[seen.callback()]), seen


def vector(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "bf16": {"bf16": True},
    "workers": {"dataloader_num_workers": 2},
    "grouped by length": {"train_sampling_strategy": "group_by_length"},
    "sgd": {"optim": "sgd"},
    "columns kept": {"remove_unused_columns": False},
}


@pytest.mark.parametrize("name", CASES)
def test_ids_are_those_the_model_saw_and_no_bit_changes(name: str, tmp_path: Path) -> None:
    rows = samples()
    if name == "columns kept":
        rows = [{k: v for k, v in row.items() if k != "unused"} for row in rows]
    bare, _ = trainer_of(tmp_path / "bare", rows, **CASES[name])
    bare.train()
    trainer, seen = trainer_of(tmp_path / "hf", rows, **CASES[name])
    rec = osc.TrainerRecorder(trainer, tmp_path / "run", anchors=3)
    trainer.train()
    assert rec.order.tolist() == seen.steps
    assert sorted(rec.order.ravel()) == sorted(2 * list(range(ROWS)))
    assert torch.equal(vector(bare.model), vector(trainer.model))
    assert rec.recorder.problems == []


def classified(model: Any, batch: Any) -> torch.Tensor:
    scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(scores, batch["labels"], reduction="none")


@pytest.mark.parametrize("name", ["plain", "accumulated", "bf16", "sgd"])
def test_the_task_is_made_of_the_same_objects(name: str, tmp_path: Path) -> None:
    rows = samples()
    trainer, _ = trainer_of(tmp_path / "hf", rows, **CASES[name])
    rec = osc.TrainerRecorder(trainer, tmp_path / "run")
    trainer.train()
    plain = [{k: v for k, v in row.items() if k != "unused"} for row in rows]
    model = build if name == "bf16" else trainer.model  # accelerate wraps the forward pass of a model under autocast
    # This model takes num_items_in_batch and does not use it, so the Trainer adds the means of its micro-batches up.
    times = CASES[name].get("gradient_accumulation_steps", 1)
    task = rec.task(
        model=model, loss=lambda m, b: times * classified(m, b), data=plain, max_grad_norm=1.0, metrics={"train": plain}
    )
    osc.record(task, tmp_path / "run", probes=0, sketch=False)
    final = load_run(osc.RunStore.open(tmp_path / "run"), "reference").theta()[-1]
    moved = (final - vector(build())).norm()
    assert (final - vector(trainer.model)).norm() <= (0.1 if name == "bf16" else 1e-4) * moved


def test_a_short_last_batch_and_a_data_set_with_columns(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = {
        key: [torch.as_tensor(row[key]).tolist() for row in samples(22)]
        for key in ("input_ids", "attention_mask", "labels")
    }
    rows = datasets.Dataset.from_dict(table | {"unused": [str(i) for i in range(22)]})
    trainer, seen = trainer_of(tmp_path / "hf", rows)
    rec = osc.TrainerRecorder(trainer, tmp_path / "run")
    with pytest.warns(UserWarning, match=r"steps of 2 to 4 samples, the first other one at step 5"):
        trainer.train()
    assert [ids.tolist() for ids in rec.batches] == seen.steps
    assert [len(ids) for ids in rec.batches] == [4, 4, 4, 4, 4, 2] * 2
    with pytest.raises(osc.OrderscopeError, match=r"step 5 with 2 samples"):
        _ = rec.order


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_resumed_from_a_checkpoint(optim: str, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 4, "optim": optim, "per_device_train_batch_size": 2,
               "gradient_accumulation_steps": 2}  # fmt: skip
    whole, seen = trainer_of(tmp_path / "whole", samples(), **options)
    whole.train()

    class Dies(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 6:
                raise KeyboardInterrupt

    first, _ = trainer_of(tmp_path / "hf", samples(), **options)
    rec = osc.TrainerRecorder(first, tmp_path / "run")
    first.add_callback(Dies())
    with pytest.raises(KeyboardInterrupt):
        first.train()
    rec.recorder.close()
    second, _ = trainer_of(tmp_path / "hf", samples(), **options)
    rec = osc.TrainerRecorder(second, tmp_path / "run")
    second.train(resume_from_checkpoint=True)
    assert rec.order.tolist() == seen.steps
    assert rec.recorded.loop.retaken == [(4, 6, True)]
    assert torch.equal(vector(whole.model), vector(second.model))


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_order_is_played(accumulated: int, workers: int, tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(ROWS).reshape(6, 4)
    trainer, seen = trainer_of(
        tmp_path / "hf", samples(), per_device_train_batch_size=4 // accumulated,
        gradient_accumulation_steps=accumulated, dataloader_num_workers=workers,
    )  # fmt: skip
    osc.play(trainer, order)
    rec = osc.TrainerRecorder(trainer, tmp_path / "run")
    trainer.train()
    assert seen.steps == order.tolist() == rec.order.tolist()
    with pytest.raises(osc.OrderscopeError, match=r"steps of 3 samples for 1 ranks with 2 micro-batches"):
        osc.play(trainer_of(tmp_path / "hf", samples(), gradient_accumulation_steps=2)[0], order[:, :3])
