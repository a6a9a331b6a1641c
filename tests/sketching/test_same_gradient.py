"""A batch's gradient at an anchor is the mean of its samples', or recording stops with a reason."""

import contextlib
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import orderscope as osc
from tasks_tiny import Rows, char, classifier, linear, next_char_loss, squared_error

STEPS, BATCH = 10, 4


def recorded(kw, path, **options):
    task = osc.Task(**kw)
    return osc.record(task, path, **{"probes": 0, "jobs": 1, "anchors": 3} | options)


def test_a_loss_that_divides_by_the_tokens_of_its_batch_from_some_step_on(tmp_path):
    """The first batches are of one length: nothing shows there."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 16, (36, 9), generator=g)
    rows[[21, 22, 30], 5:] = 0

    def loss(model, ids):
        tokens = F.cross_entropy(model(ids[:, :-1]).transpose(1, 2), ids[:, 1:], ignore_index=0, reduction="none")
        return tokens.sum(1) * len(ids) / (ids[:, 1:] != 0).sum()

    kw = char() | {"data": Rows(rows), "loss": loss, "order": np.arange(36).reshape(9, 4), "metrics": {}}
    osc.Task(**kw)
    with pytest.raises(osc.OrderscopeError, match=r"sample 2[0-3] in its batch at step 5 .*its own tokens") as caught:
        recorded(kw, tmp_path / "run")
    assert "\n" not in str(caught.value)

    def own(model, ids):
        tokens = F.cross_entropy(model(ids[:, :-1]).transpose(1, 2), ids[:, 1:], ignore_index=0, reduction="none")
        return tokens.sum(1) / (ids[:, 1:] != 0).sum(1)

    recorded(kw | {"loss": own}, tmp_path / "own")


def accepted(kw):
    """The task, looked at while chance happens to do nothing."""
    for seed in range(50):
        random.seed(seed)
        with contextlib.suppress(osc.OrderscopeError):
            return osc.Task(**kw)
    raise AssertionError("chance shows every time")


class Dropped(nn.Module):
    """A layer that Python's random leaves out once in a while, as layer drop does."""

    def __init__(self, layer, share):
        super().__init__()
        self.layer, self.share = layer, share

    def forward(self, x):
        return x if random.random() < self.share else self.layer(x)


def test_layers_left_out_by_chance(tmp_path):
    kw = classifier(steps=30)
    build = kw["model"]

    def dropping():
        model = build()
        model.middle = Dropped(model.middle, 0.05)
        return model

    task = accepted(kw | {"model": dropping})
    with pytest.raises(osc.OrderscopeError, match=r"at step \d+ .*random choices"):
        osc.record(task, tmp_path / "run", probes=0, jobs=1)


def test_augmentation_once_in_a_while(tmp_path):
    class Augmented(Rows):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return x * (1 + (random.random() < 0.03)), y

    kw = linear(steps=20)
    task = accepted(kw | {"data": Augmented(*kw["data"].columns)})
    with pytest.raises(osc.OrderscopeError, match="random choices out of data"):
        osc.record(task, tmp_path / "run", probes=0, jobs=1)


@pytest.mark.parametrize("sample_anchors", [0, 3])
def test_a_hook_that_changes_gradients_later_on(tmp_path, sample_anchors):
    """Losses say nothing of it, and on the first step it does nothing."""
    kw = classifier()
    build = kw["model"]

    def masked():
        model, calls = build(), []

        def mask(p):
            calls.append(1)
            if len(calls) > 3:
                p.grad[:3] = 0

        model.first.weight.register_post_accumulate_grad_hook(mask)
        return model

    task = osc.Task(**kw | {"model": masked})
    with pytest.raises(osc.OrderscopeError, match=r"batch of step 6 .*after step 6 .*that training recorded there"):
        osc.record(task, tmp_path / "run", probes=0, anchors=3, sample_anchors=sample_anchors, jobs=1)


@pytest.mark.parametrize("make", [linear, classifier, char])
def test_sound_tasks_pass_with_and_without_single_samples(make, tmp_path):
    for sample_anchors in (0, 2):
        recorded(make(), tmp_path / str(sample_anchors), sample_anchors=sample_anchors)


@pytest.mark.parametrize("seed", range(5))
def test_float64_targets_are_welcome(seed):
    """Python floats in a data set are collated to float64; the weights are float32 and round as such."""
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(seed))
    data = [(row, float(row.sum()) / 3) for row in x]
    osc.Task(**linear() | {"data": data, "metrics": {"eval": data}})
    wide = squared_error(nn.Linear(3, 1), torch.utils.data.default_collate(data))
    assert wide.dtype == torch.float64


def test_losses_under_autocast_round_as_bfloat16(tmp_path):
    kw = char()

    def loss(model, ids):
        with torch.autocast("cpu", torch.bfloat16):
            return next_char_loss(model, ids).float()

    recorded(kw | {"loss": loss}, tmp_path / "run")
