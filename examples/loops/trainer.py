#!/usr/bin/env python3
"""Hugging Face's Trainer: one line before `train`, and a proposed order played back in the same script.

python examples/loops/trainer.py out
"""

from __future__ import annotations

import sys

import numpy as np
import transformers
from domains import DOMAINS, LENGTH, passages
from plain import asked

import orderscope as osc
from orderscope import losses


def build() -> transformers.PreTrainedModel:
    transformers.set_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=LENGTH, num_labels=len(DOMAINS), hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def trainer(out: str, data: list) -> transformers.Trainer:
    arguments = transformers.TrainingArguments(
        out, per_device_train_batch_size=8, num_train_epochs=1, learning_rate=2e-3, use_cpu=True, report_to=[],
        disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    return transformers.Trainer(build(), arguments, train_dataset=data)


def main(out: str, samples: int = 256) -> dict[str, float]:
    data = passages(samples)
    first = trainer(f"{out}/trainer", data)
    rec = osc.TrainerRecorder(first, f"{out}/run")
    first.train()

    task = rec.task(
        model=build, loss=losses.classification, data=data, metrics={"eval": passages(96, seed=1)}, max_grad_norm=1.0
    )  # fmt: skip
    osc.record(task, f"{out}/run")
    found = asked(f"{out}/run", task)

    again = trainer(f"{out}/reversed", data)
    osc.play(again, np.array(rec.order[::-1]))
    again.train()
    again.model.eval()
    return found | {"played": task.evaluate(again.model)["eval"]}


if __name__ == "__main__":
    main(*sys.argv[1:2])
