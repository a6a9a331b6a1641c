"""Supervised fine-tuning with TRL, the texts packed."""

import sys

import datasets
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from trl import SFTConfig, SFTTrainer


def texts(count, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        length = 6 + int(torch.randint(14, (1,), generator=generator))
        start = int(torch.randint(26, (1,), generator=generator))
        rows.append("".join(chr(97 + (start + k * (1 + i % 3)) % 26) for k in range(length)))
    return datasets.Dataset.from_dict({"text": rows})


def tokenizer():
    core = Tokenizer(models.WordLevel({chr(i): i for i in range(1, 128)} | {"<pad>": 0}, unk_token="\x7f"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="\x04")


def build():
    transformers.set_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=128, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            intermediate_size=32, pad_token_id=0,
        )
    )  # fmt: skip


def make_trainer(out):
    arguments = SFTConfig(
        f"{out}/trainer", packing=True, max_length=48, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        num_train_epochs=1, learning_rate=1e-2, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no",
        gradient_checkpointing=False, bf16=False,
    )  # fmt: skip
    return SFTTrainer(
        build(), args=arguments, train_dataset=texts(90, 0), eval_dataset=texts(48, 1), processing_class=tokenizer()
    )


def main(out):
    trainer = make_trainer(out)
    trainer.train()


if __name__ == "__main__":
    main(sys.argv[1])
