#!/usr/bin/env python3
"""TRL's SFTTrainer: recorded like any Trainer. Its ids are rows of `trainer.train_dataset`, tokenized as it was.

python examples/loops/sft.py out
"""

from __future__ import annotations

import sys

import datasets
import torch
import transformers
from domains import passages
from lora import build
from plain import asked
from tokenizers import Tokenizer, models, pre_tokenizers
from trl import SFTConfig, SFTTrainer

import orderscope as osc
from orderscope import losses


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token for each character of ASCII."""
    core = Tokenizer(models.WordLevel({chr(i): i for i in range(1, 128)} | {"<pad>": 0}, unk_token="\x7f"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="\x04")


def main(out: str, samples: int = 256) -> dict[str, float]:
    texts = ["".join(map(chr, row["input_ids"].clamp_min(32).tolist())) for row in passages(samples)]
    arguments = SFTConfig(
        f"{out}/trainer", per_device_train_batch_size=8, num_train_epochs=1, learning_rate=1e-2, use_cpu=True,
        report_to=[], disable_tqdm=True, save_strategy="no", gradient_checkpointing=False, bf16=False,
    )  # fmt: skip
    trainer = SFTTrainer(
        build(), args=arguments, train_dataset=datasets.Dataset.from_dict({"text": texts}),
        processing_class=tokenizer(),
    )  # fmt: skip
    rec = osc.TrainerRecorder(trainer, f"{out}/run")
    trainer.train()

    rows = [{"input_ids": torch.tensor(r["input_ids"]), "labels": torch.tensor(r["input_ids"])}
            for r in trainer.train_dataset]  # fmt: skip
    weights = losses.token_mean_weights(rec.order, losses.token_counts(rows))
    held_out = losses.Weighted(rows[:32], torch.ones(32) / len(rows[0]["labels"]))
    task = rec.task(
        model=build, loss=losses.causal_lm, data=losses.Weighted(rows, weights), metrics={"eval": held_out},
        max_grad_norm=1.0,
    )  # fmt: skip
    osc.record(task, f"{out}/run")
    return asked(f"{out}/run", task)


if __name__ == "__main__":
    main(*sys.argv[1:2])
