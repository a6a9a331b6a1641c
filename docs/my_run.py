"""A small fine-tune: next-character prediction on three kinds of text that come with Python."""

import sysconfig
import unicodedata
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import orderscope as osc

CONTEXT, BATCH, STEPS, RATE = 8, 16, 24, 3e-3


def corpora() -> dict[str, torch.Tensor]:
    """Kind -> the ASCII codes of its characters."""
    library = Path(sysconfig.get_path("stdlib"))
    texts = {
        "code": "".join((library / name).read_text(encoding="utf-8") for name in ("ast.py", "inspect.py", "pdb.py")),
        "names": "\n".join(unicodedata.name(chr(c), "") for c in range(0xA0, 0x2000)),
        "prose": "".join(topics[key] for key in sorted(topics)),
    }
    return {kind: torch.tensor(list(text.encode("ascii", "replace"))) for kind, text in texts.items()}


def passages(text: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Rows of CONTEXT characters and the one that follows, [count, CONTEXT + 1]."""
    starts = torch.randint(len(text) - CONTEXT, (count,), generator=generator)
    return text.unfold(0, CONTEXT + 1, 1)[starts]


def network() -> nn.Module:
    return nn.Sequential(nn.Embedding(128, 8), nn.Flatten(), nn.Linear(8 * CONTEXT, 32), nn.Tanh(), nn.Linear(32, 128))


def loss(model: nn.Module, batch: tuple[torch.Tensor]) -> torch.Tensor:
    (rows,) = batch
    return F.cross_entropy(model(rows[:, :-1]), rows[:, -1], reduction="none")


def pretrained(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Weights after 300 steps on all three kinds, mixed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network()
        adam = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(300):
            adam.zero_grad()
            loss(model, (rows[torch.randint(len(rows), (64,))],)).mean().backward()
            adam.step()
    return model.state_dict()


def task() -> osc.Task:
    generator = torch.Generator().manual_seed(0)
    texts = corpora()
    kinds = sorted(texts)
    weights = pretrained(torch.cat([passages(texts[kind], 2000, generator) for kind in kinds]))
    held_out = {kind: passages(texts[kind], 200, generator) for kind in kinds}
    turns = [kinds[i % 3] for i in torch.randperm(STEPS, generator=generator).tolist()]
    train = torch.cat([passages(texts[kind], BATCH, generator) for kind in turns])

    def model() -> nn.Module:
        fresh = network()
        fresh.load_state_dict(weights)
        return fresh

    return osc.Task(
        model=model,
        loss=loss,
        data=TensorDataset(train),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=RATE),
        scheduler=lambda adam: torch.optim.lr_scheduler.LambdaLR(adam, lambda t: min(1, (t + 1) / 6) * (1 - t / STEPS)),
        metrics={"eval": TensorDataset(torch.cat(list(held_out.values()))), "code": TensorDataset(held_out["code"])},
        order=torch.arange(STEPS * BATCH).view(STEPS, BATCH),
        groups=[kind for kind in turns for _ in range(BATCH)],
    )
