"""What a Trainer knows of its task, and what is said before it trains."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import orderscope as osc
from orderscope import losses
from orderscope.loops import notices
from orderscope.loops.adapters.trainer_parts import rows_of, trainer_parts
from orderscope.training import load_run

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = [pytest.mark.filterwarnings("ignore:::(?!orderscope)")]
VOCAB, ROWS = 20, 16


def build(dropout: float = 0.0) -> Any:
    transformers.set_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=VOCAB, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=12, num_labels=3, hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )  # fmt: skip


def samples(count: int = ROWS) -> list[dict[str, Any]]:
    """Of unequal length, for a collator that pads."""
    g = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(1, VOCAB, (3 + i % 5,), generator=g).tolist(), "labels": i % 3}
            for i in range(count)]  # fmt: skip


def padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Each batch as long as its longest row."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.tensor([r["labels"] for r in rows])}


def make(path: Path, model: Any = None, data: Any = None, **options: Any) -> Any:
    known = {"data_collator": padded, "eval_dataset": None} | {
        k: options.pop(k) for k in ("data_collator", "eval_dataset") if k in options
    }
    defaults = {"per_device_train_batch_size": 4, "num_train_epochs": 1, "use_cpu": True, "report_to": [],
                "disable_tqdm": True, "save_strategy": "no", "learning_rate": 1e-2}  # fmt: skip
    arguments = transformers.TrainingArguments(str(path), **(defaults | options))
    return transformers.Trainer(
        model or build(), arguments, train_dataset=samples() if data is None else data, **known
    )  # fmt: skip


def test_rows_that_a_collator_pads_are_of_one_length_and_the_task_is_the_run(tmp_path: Path) -> None:
    trainer = make(tmp_path / "hf", eval_dataset={"a": samples(6), "b": samples(4)})
    rec = osc.TrainerRecorder(trainer, tmp_path / "run")
    trainer.train()
    task = rec.task()
    assert {len(row["input_ids"]) for row in task.data} == {7}
    assert {name: len(rows) for name, rows in task.metrics.items()} == {"a": 6, "b": 4}
    assert task.max_grad_norm == 1.0
    assert task.loss is losses.classification
    osc.record(task, tmp_path / "run", probes=0, sketch=False)
    final = load_run(osc.RunStore.open(tmp_path / "run"), "reference").theta()[-1]
    trained = torch.nn.utils.parameters_to_vector(trainer.model.parameters()).detach()
    assert (final - trained).norm() <= 1e-4 * trained.norm()


def test_what_is_given_is_not_taken_from_the_trainer(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    assert set(trainer_parts(trainer, {})) == {"max_grad_norm", "data", "loss"}
    assert set(trainer_parts(trainer, {"data": samples()})) == {"max_grad_norm"}
    assert set(trainer_parts(trainer, {"loss": losses.inside})) == {"max_grad_norm", "data"}
    smooth = make(tmp_path, label_smoothing_factor=0.1)
    loss = trainer_parts(smooth, {})["loss"]
    assert isinstance(loss, partial)
    assert loss.keywords == {"label_smoothing": 0.1}


def test_data_that_cannot_be_repeated_have_to_be_given(tmp_path: Path) -> None:
    def masked(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = padded(rows)
        return batch | {"input_ids": batch["input_ids"] * (torch.rand(batch["input_ids"].shape) > 0.3)}

    def nested(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return padded(rows) | {"longest": 7}

    for collator, text in ((masked, "draws random numbers"), (nested, "'longest' has no row per sample")):
        trainer = make(tmp_path, data_collator=collator, remove_unused_columns=False)
        state = torch.get_rng_state()
        with pytest.raises(osc.OrderscopeError, match=f"{text}.*pass data=, collate= and metrics= yourself"):
            rows_of(trainer, trainer.train_dataset)
        assert torch.equal(torch.get_rng_state(), state)
    trainer = make(tmp_path, data=[{**row, "labels": 0.5} for row in samples()])
    with pytest.raises(osc.OrderscopeError, match=r"rows without class or token labels.*pass loss="):
        trainer_parts(trainer, {})


@pytest.mark.parametrize("optim", ["adafactor", "rmsprop"])
def test_an_optimizer_that_cannot_be_carried_is_refused_when_the_recorder_is_attached(
    optim: str, tmp_path: Path
) -> None:
    trainer = make(tmp_path, optim=optim)
    with pytest.raises(osc.OrderscopeError, match=rf"optim='{optim}'.*SGD, Adam, AdamW.*pass optim=.adamw_torch."):
        osc.TrainerRecorder(trainer, tmp_path / "run")
    trainer = make(tmp_path)
    trainer.optimizer = SimpleNamespace(optimizer=torch.optim.RMSprop(trainer.model.parameters()))
    with pytest.raises(osc.OrderscopeError, match="RMSprop"):
        osc.TrainerRecorder(trainer, tmp_path / "run")


def test_dropout_is_said_when_the_recorder_is_attached_and_not_again(tmp_path: Path) -> None:
    trainer = make(tmp_path / "hf", model=build(0.1).eval())  # the Trainer puts it into training mode
    with pytest.warns(notices.ChanceWarning, match=r"hidden_dropout_prob=0\.0, attention_probs_dropout_prob=0\.0"):
        rec = osc.TrainerRecorder(trainer, tmp_path / "run")
    trainer.train()  # warnings of ours are errors
    assert notices.ChanceWarning in rec.recorder.said
    with pytest.raises(osc.OrderscopeError, match="active dropout"):
        osc.TrainerRecorder(make(tmp_path, model=build(0.1)), tmp_path / "other", strict=True)


SHORT: dict[str, tuple[int, dict[str, Any], str]] = {
    "a rest of a batch": (18, {}, r"2 samples, the others 4: .*pass dataloader_drop_last=True"),
    "a rest of the accumulation": (20, {"gradient_accumulation_steps": 2}, "4 samples, the others 8: .*max_steps=2"),
    "dropped": (18, {"dataloader_drop_last": True}, ""),
    "ended before": (18, {"max_steps": 4}, ""),
    "none": (16, {}, ""),
}


@pytest.mark.parametrize("name", SHORT)
def test_a_short_last_step_is_said_when_the_recorder_is_attached(name: str, tmp_path: Path) -> None:
    count, options, text = SHORT[name]
    trainer = make(tmp_path, data=samples(count), **options)
    if text:
        with pytest.warns(notices.UnevenStepsWarning, match=text):
            osc.TrainerRecorder(trainer, tmp_path / "run")
    else:
        osc.TrainerRecorder(trainer, tmp_path / "run")


def test_it_only_watches(tmp_path: Path) -> None:
    trainer = make(tmp_path / "hf", model=build(0.1))
    rec = osc.TrainerRecorder(trainer, tmp_path / "run", states=False)
    trainer.train()
    assert rec.recorder.said == set()  # dropout does not matter to a watcher
    assert rec.order.shape == (4, 4)
    assert not (tmp_path / "run" / "states").exists()


def test_under_mixed_precision_the_model_may_be_left_out(tmp_path: Path) -> None:
    trainer = make(tmp_path / "hf", bf16=True)
    rec = osc.TrainerRecorder(trainer, tmp_path / "run")
    trainer.train()
    osc.record(rec.task(), tmp_path / "run", probes=0, sketch=False)  # refuses another run
