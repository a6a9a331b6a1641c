"""An order in the real Hugging Face Trainer, broken off and resumed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import orderscope as osc

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore:::(?!orderscope)")

ORDER = np.random.default_rng(0).permutation(24).reshape(6, 4)


def rows() -> list[dict[str, Any]]:
    """Sentences whose first token is their id."""
    tokens = torch.randint(24, 64, (24, 6), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = torch.arange(24)
    return [{"input_ids": row, "labels": int(row[1:].sum()) % 3} for row in tokens]


def trainer_of(folder: Path, seen: list[int], **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(
            transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                                    vocab_size=64, num_labels=3)
        )  # fmt: skip
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.extend(kwargs["input_ids"][:, 0].tolist()), with_kwargs=True
    )
    args = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=3e-3, use_cpu=True,
        seed=3, report_to=[], disable_tqdm=True, save_strategy="steps", save_steps=2, **options,
    )  # fmt: skip
    trainer = transformers.Trainer(model, args, train_dataset=rows())
    osc.play(trainer, ORDER)
    return trainer


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_from_a_checkpoint_it_plays_the_rest(workers: int, tmp_path: Path) -> None:
    seen: list[int] = []
    whole = trainer_of(tmp_path / "whole", seen, dataloader_num_workers=workers)
    whole.train()
    assert seen == ORDER.ravel().tolist()
    again: list[int] = []
    second = trainer_of(tmp_path / "again", again, dataloader_num_workers=workers)
    second.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert again == ORDER[2:].ravel().tolist()
    vector = torch.nn.utils.parameters_to_vector
    assert torch.equal(vector(whole.model.parameters()), vector(second.model.parameters()))
