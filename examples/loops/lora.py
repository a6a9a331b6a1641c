#!/usr/bin/env python3
"""A language model with LoRA (PEFT) in a loop under accelerate: only the adapter's weights are recorded.

python examples/loops/lora.py out
"""

from __future__ import annotations

import sys

import peft
import torch
import transformers
from accelerate import Accelerator
from domains import passages
from plain import asked
from torch.utils.data import DataLoader

import orderscope as osc
from orderscope import losses


def build() -> peft.PeftModel:
    transformers.set_seed(0)
    base = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
            intermediate_size=64,
        )
    )  # fmt: skip
    adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)
    return peft.get_peft_model(base, adapter)


def main(out: str, samples: int = 256) -> dict[str, float]:
    data, held_out = ([{"input_ids": r["input_ids"], "labels": r["input_ids"]} for r in passages(n, seed)]
                      for n, seed in ((samples, 0), (96, 1)))  # fmt: skip
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = build()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    loader = osc.with_ids(DataLoader(data, 4, shuffle=True, drop_last=True))
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    with osc.Recorder(out, model, optimizer) as rec:
        for ids, batch in loader:
            with accelerator.accumulate(model):
                loss = losses.causal_lm(model, batch).mean()
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            rec.step(ids, loss)

    task = rec.task(model=build, loss=losses.causal_lm, data=data, metrics={"eval": held_out})
    osc.record(task, out)
    return asked(out, task)


if __name__ == "__main__":
    main(*sys.argv[1:2])
