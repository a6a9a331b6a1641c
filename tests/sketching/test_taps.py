import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import orderscope as osc
from law_tasks import double
from orderscope.sketching import draw_coordinates
from orderscope.sketching.gradients import join, point, proved_taps, sample_gradients
from orderscope.sketching.outputs import find_split
from orderscope.sketching.pseudo_gradients import pseudo_gradients
from orderscope.sketching.taps import NO_TAPS
from orderscope.training.loop import start
from orderscope.training.state import capture
from orderscope_kernels.projection import embedding_entries
from tasks_tiny import Rows, generator

TOKENS, WORDS, WIDTH, CARRIED = 5, 40, 12, 30


class Language(nn.Module):
    """Embedding, two passes through one layer, a bias, a norm, and a head that may be tied to the embedding."""

    def __init__(self, tied: bool = False, functional: bool = False) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.functional = functional
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        x = x + self.mix(input=torch.tanh(self.mix(x)))
        if self.functional:
            x = x + F.linear(x, self.mix.weight)
        return self.head(self.norm(x))


def prepared(**options):
    def build():
        torch.manual_seed(0)
        return Language(**options)

    ids = torch.randint(0, WORDS, (12, TOKENS + 1), generator=generator(1))
    task = osc.Task(**double({
        "model": build, "loss": lambda m, b: F.cross_entropy(m(b[:, :-1]).transpose(1, 2), b[:, 1:],
                                                             reduction="none").mean(1),
        "data": Rows(ids), "optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "metrics": {},
        "order": np.arange(12).reshape(3, 4),
    }))  # fmt: skip
    at = point(task, task.build_model(), capture(start(task)))
    return task, at, draw_coordinates(at.layout.size, CARRIED, 0)


def gathered(task, at, coordinates, taps):
    rows = torch.empty(12, CARRIED, dtype=torch.float64)
    chunks = sample_gradients(at, task.batch, np.arange(12), coordinates, micro_batch=5, taps=taps)
    for first, parts in zip(range(0, 12, 5), chunks, strict=True):
        join(parts, rows[first : first + 5])
    return rows


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_read_off_are_those_formed(tied):
    """Float64: another order of summation."""
    task, at, coordinates = prepared(tied=tied)
    taps = proved_taps(at, task.batch([0]), coordinates)
    assert set(taps.places) == {"embed.weight", "mix.weight"} | (set() if tied else {"head.weight"})
    formed = gathered(task, at, coordinates, NO_TAPS)
    assert float(formed.abs().min(0).values.count_nonzero()) > CARRIED / 4
    torch.testing.assert_close(gathered(task, at, coordinates, taps), formed, rtol=1e-9, atol=1e-12)


def test_pseudo_gradients_read_off_are_those_formed():
    task, at, coordinates = prepared()
    split = find_split(at, task.batch(range(3)))
    found = [
        pseudo_gradients(at, split, task.batch, range(12), coordinates, draws=3, seed=0, micro_batch=16, taps=taps)
        for taps in (proved_taps(at, task.batch([0]), coordinates), NO_TAPS)
    ]
    assert split.kind == "softmax"
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_a_weight_that_is_used_beside_its_layer_is_formed():
    task, at, coordinates = prepared(functional=True)
    assert proved_taps(at, task.batch([0]), coordinates) is NO_TAPS


def test_where_many_entries_are_carried_all_are_formed():
    task, at, _ = prepared()
    whole = draw_coordinates(at.layout.size, at.layout.size, 0)
    assert proved_taps(at, task.batch([0]), whole) is NO_TAPS


def test_no_layer_keeps_a_hook():
    task, at, coordinates = prepared()
    gathered(task, at, coordinates, proved_taps(at, task.batch([0]), coordinates))
    assert not any(module._forward_hooks for module in at.model.modules())


def test_less_is_formed():
    task, at, coordinates = prepared()
    taps = proved_taps(at, task.batch([0]), coordinates)
    rest = WIDTH + 2 * WIDTH  # the bias and the norm
    assert taps.formed(at.layout) == rest + 2 * TOKENS * (3 * WIDTH + WORDS)


@pytest.mark.parametrize("count", [0, 1, 63])
def test_entries_of_an_embedding_are_those_of_the_whole(count):
    g = generator(2)
    ids, slope = torch.randint(0, 9, (4, 7), generator=g), torch.randn(4, 7, 11, generator=g, dtype=torch.float64)
    whole = torch.zeros(4, 9, 11, dtype=torch.float64)
    for sample in range(4):
        whole[sample].index_add_(0, ids[sample], slope[sample])
    entries = torch.randperm(99, generator=g)[:count].sort().values
    torch.testing.assert_close(embedding_entries(ids, slope, entries), whole.flatten(1)[:, entries])
