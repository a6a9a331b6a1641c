"""Models that torch.func cannot take, and rows of different lengths."""

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.checkpoint import checkpoint

import orderscope as osc
from orderscope.sketching import draw_coordinates, stored_split
from orderscope.sketching.gradients import join, point, sample_gradients
from orderscope.sketching.outputs import find_split
from orderscope.sketching.pseudo_gradients import alike, pseudo_gradients
from orderscope.training.loop import start
from orderscope.training.state import capture
from tasks_tiny import adamw, blocks, char, classifier, permuted

STEPS, BATCH, VOCAB = 6, 4, 12


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(VOCAB, 6), nn.Linear(6, VOCAB)
        self.body = kind(6, 6, batch_first=True)

    def forward(self, ids):
        return self.head(self.body(self.embed(ids))[0])


class Packed(Recurrent):
    def forward(self, ids):
        lengths = (ids != 0).sum(1)
        packed = pack_padded_sequence(self.embed(ids), lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.body(packed)[0], batch_first=True, total_length=ids.shape[1])[0])


def next_token(model, ids):
    tokens = F.cross_entropy(model(ids[:, :-1]).transpose(1, 2), ids[:, 1:], ignore_index=0, reduction="none")
    return tokens.sum(1) / (ids[:, 1:] != 0).sum(1)


def sequences(count, seed, longest=9):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, longest + 1, (count,), generator=g).tolist()
    return [torch.randint(1, VOCAB, (n,), generator=g) for n in lengths]


def padded(rows):
    return pad_sequence(rows, batch_first=True)


def recurrent(model, held_longest=9):
    return {
        "model": model,
        "loss": next_token,
        "data": sequences(STEPS * BATCH, 0),
        "collate": padded,
        "optimizer": adamw,
        "metrics": {"eval": sequences(10, 1, held_longest)},
        "order": permuted(STEPS, BATCH, seed=1),
        "groups": blocks(STEPS, BATCH),
    }


def tagger():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(VOCAB, 6), nn.Linear(6, VOCAB))


def asked(kw, path, **options):
    task = osc.Task(**kw)
    sim = osc.Simulator(osc.record(task, path, **{"probes": 3, "anchors": 3, "jobs": 1} | options).path, task)
    orders = task.order[np.stack([np.random.default_rng(s).permutation(task.steps) for s in range(4)])]
    return task, sim, sim.predict(orders).metrics["eval"], osc.retrain(task, orders).metrics["eval"]


@pytest.mark.parametrize(
    "model", [lambda: Recurrent(nn.GRU), lambda: Recurrent(nn.RNN), lambda: Recurrent(nn.LSTM), lambda: Packed(nn.GRU)]
)
def test_recurrent_models_are_recorded_and_asked(model, tmp_path):
    task, sim, predicted, true = asked(recurrent(model), tmp_path / "run")
    assert not task.mapped
    assert stored_split(sim.store).kind == "softmax"
    assert sim.predict(task.order).metrics["eval"] == sim.reference["eval"]
    assert np.abs(predicted - true).mean() < 0.3 * np.abs(true - sim.reference["eval"]).mean()


def checkpointed(kw):
    loss = kw["loss"]
    return kw | {"loss": lambda m, batch: loss(lambda x: checkpoint(m, x, use_reentrant=False), batch)}


@pytest.mark.parametrize("make", [classifier, char])
@pytest.mark.parametrize("carried", [None, 20])
def test_both_ways_give_the_same_rows(make, carried):
    """The same numbers are drawn, so that the rows agree to rounding."""
    task = osc.Task(**make())
    assert task.mapped
    session = start(task)
    at = point(task, session.model, capture(session))
    slow = type(at)(at.model, at.layout, at.loss, at.task_loss, mapped=False)
    coordinates, ids = draw_coordinates(at.layout.size, carried or at.layout.size, 0), np.arange(9)
    split = find_split(at, task.batch(ids[:3]))
    for way in (
        lambda at: torch.cat(
            [
                join(parts, torch.zeros(len(ids[k : k + 4]), coordinates.carried))
                for k, parts in zip(
                    (0, 4, 8), sample_gradients(at, task.batch, ids, coordinates, micro_batch=4), strict=True
                )
            ]
        ),
        lambda at: pseudo_gradients(at, split, task.batch, ids, coordinates, draws=3, seed=1, micro_batch=8),
    ):
        torch.testing.assert_close(way(slow), way(at), rtol=1e-4, atol=1e-6)


def test_a_checkpointed_model_answers_like_the_plain_one(tmp_path):
    _, _, expected, _ = asked(classifier(), tmp_path / "plain")
    task, sim, found, _ = asked(checkpointed(classifier()), tmp_path / "run")
    assert not task.mapped
    # Without calls through the model itself the loss cannot be split: the samples' own gradients stand in.
    assert stored_split(sim.store).kind == "empirical"
    np.testing.assert_allclose(found, expected, rtol=0.02)


def test_a_loss_whose_shapes_depend_on_the_data(tmp_path):
    def loss(model, batch):
        x, y = batch
        losses = F.cross_entropy(model(x) / 0.7, y, reduction="none")
        return losses[losses > -1]

    task, sim, predicted, true = asked(classifier() | {"loss": loss}, tmp_path / "run")
    assert not task.mapped
    assert stored_split(sim.store).kind == "dense"
    assert np.abs(predicted - true).mean() < 0.3 * np.abs(true - sim.reference["eval"]).mean()


class Adapted(nn.Module):
    """A frozen model with an adapter that can be switched off, which also switches off its gradients, as PEFT does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(VOCAB, 6).requires_grad_(False), nn.Linear(6, VOCAB).requires_grad_(False)
        self.adapter, self.on = nn.Linear(6, 6, bias=False), True

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(x + self.adapter(x) if self.on else x)

    @contextlib.contextmanager
    def switched_off(self):
        self.on = False
        self.adapter.requires_grad_(False)
        try:
            yield
        finally:
            self.on = True
            self.adapter.requires_grad_(True)


def preference(model, batch):
    """DPO: the model against itself without its adapter."""

    def log_odds():
        scores = [model(batch[key]).log_softmax(-1) for key in ("chosen", "rejected")]
        found = [
            z.gather(2, batch[k][..., None]).sum((1, 2)) for z, k in zip(scores, ("chosen", "rejected"), strict=True)
        ]
        return found[0] - found[1]

    mine = log_odds()
    with torch.no_grad(), model.switched_off():
        theirs = log_odds()
    return -F.logsigmoid(0.5 * (mine - theirs))


def test_a_preference_loss_with_the_adapter_switched_off_as_reference(tmp_path):
    g = torch.Generator().manual_seed(0)
    data = [{key: torch.randint(0, VOCAB, (6,), generator=g) for key in ("chosen", "rejected")} for _ in range(32)]
    kw = recurrent(Adapted) | {"loss": preference, "data": data[:24], "metrics": {"eval": data[24:]}, "collate": None}
    kw["optimizer"] = lambda params: adamw([p for p in params if p.requires_grad])
    task, sim, predicted, true = asked(kw, tmp_path / "run")
    assert not task.mapped
    assert stored_split(sim.store).why == "the loss calls the model 4 times"
    assert np.abs(predicted - true).mean() < 0.5 * np.abs(true - sim.reference["eval"]).mean()


@pytest.mark.parametrize("held_longest", [9, 15])
@pytest.mark.parametrize("coords", [1 << 17, 40])
def test_rows_of_different_lengths_with_an_output_per_token(held_longest, coords, tmp_path):
    task, sim, predicted, true = asked(recurrent(tagger, held_longest), tmp_path / "run", coords=coords)
    assert task.mapped
    assert stored_split(sim.store).kind == "softmax"
    if coords > 40:
        assert np.abs(predicted - true).mean() < 0.3 * np.abs(true - sim.reference["eval"]).mean()


def test_labels_per_pixel_of_images_of_different_sizes(tmp_path):
    g = torch.Generator().manual_seed(0)

    def images(count):
        sizes = torch.randint(3, 7, (count, 2), generator=g).tolist()
        return [(torch.randn(1, h, w, generator=g), torch.randint(0, 3, (h, w), generator=g)) for h, w in sizes]

    def collate(rows):
        high, wide = (max(x.shape[k] for x, _ in rows) for k in (1, 2))
        grown = [(0, wide - x.shape[2], 0, high - x.shape[1]) for x, _ in rows]
        return (torch.stack([F.pad(x, pad) for (x, _), pad in zip(rows, grown, strict=True)]),
                torch.stack([F.pad(y, pad, value=-100) for (_, y), pad in zip(rows, grown, strict=True)]))  # fmt: skip

    def build():
        torch.manual_seed(0)
        return nn.Conv2d(1, 3, 3, padding=1)

    def loss(model, batch):
        x, y = batch
        pixels = F.cross_entropy(model(x), y, ignore_index=-100, reduction="none")
        return pixels.flatten(1).sum(1) / (y != -100).flatten(1).sum(1)

    kw = recurrent(build) | {"loss": loss, "data": images(STEPS * BATCH), "collate": collate,
                             "metrics": {"eval": images(8)}}  # fmt: skip
    _, sim, _, _ = asked(kw, tmp_path / "run")
    assert stored_split(sim.store).kind == "softmax"


def test_draws_for_rows_of_different_lengths_do_not_depend_on_the_micro_batch():
    task = osc.Task(**recurrent(tagger))
    session = start(task)
    at = point(task, session.model, capture(session))
    coordinates, ids = draw_coordinates(at.layout.size, at.layout.size, 0), np.arange(20)
    split = find_split(at, task.batch(ids[:4]))
    rows = [
        pseudo_gradients(at, split, task.batch, ids, coordinates, draws=2, seed=0, micro_batch=n) for n in (2, 7, 100)
    ]
    torch.testing.assert_close(rows[0], rows[2])
    torch.testing.assert_close(rows[1], rows[2])


def test_batches_are_put_together_by_shape():
    samples = [padded([row]) for row in sequences(5, 3)]
    found = dict(zip(range(5), samples, strict=True))
    for places, batch in alike(samples):
        for place, row in zip(places.tolist(), batch, strict=True):
            assert torch.equal(row, found.pop(place)[0])
    assert not found
