"""A classifier of passages, fine-tuned with Hugging Face's Trainer: accumulation, and dropout as BERT comes with it."""

import sys

import torch
import transformers


def passages(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    ids = torch.randint(1, 20, (count, 10), generator=generator) + 8 * labels[:, None]
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]


def build():
    transformers.set_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=10, num_labels=3, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
        )
    )  # fmt: skip


def make_trainer(out):
    arguments = transformers.TrainingArguments(
        f"{out}/trainer", per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=1,
        learning_rate=3e-3, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    model = build()
    return transformers.Trainer(model, arguments, train_dataset=passages(64, 0), eval_dataset=passages(48, 1))


def main(out):
    trainer = make_trainer(out)
    trainer.train()


if __name__ == "__main__":
    main(sys.argv[1])
