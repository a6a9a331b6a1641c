"""How a loop averages is found from its gradients, and the training does it too while metrics keep their scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import orderscope as osc
from orderscope.loops import Scaling, notices
from orderscope.loops.scaling import clips_at, rounded, token_weights
from orderscope.training import load_run

STEPS, BATCH, LENGTH, VOCAB = 6, 4, 6, 12


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embed, self.head = nn.Embedding(VOCAB, 8), nn.Linear(8, VOCAB)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids).tanh())


def rows() -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    found = []
    for i in range(STEPS * BATCH):
        ids = torch.randint(VOCAB, (LENGTH,), generator=g)
        found.append({"input_ids": ids, "labels": torch.where(torch.arange(LENGTH) < 2 + i % 5, ids, -100)})
    return found


def tokens(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    scores = model(batch["input_ids"])[:, :-1].transpose(1, 2)
    return F.cross_entropy(scores, batch["labels"][:, 1:], reduction="none", ignore_index=-100)


def per_sample(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return tokens(model, batch).sum(1) / (batch["labels"][:, 1:] != -100).sum(1)


def token_mean(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return tokens(model, batch).sum() / (batch["labels"][:, 1:] != -100).sum()


def sum_of_micro_batches(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    halves = [{k: v[half] for k, v in batch.items()} for half in (slice(0, 2), slice(2, 4))]
    return sum(per_sample(model, half).mean() for half in halves)  # type: ignore[return-value]


def mean_of_token_means(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    halves = [{k: v[half] for k, v in batch.items()} for half in (slice(0, 2), slice(2, 4))]
    return sum(token_mean(model, half) for half in halves) / 2  # type: ignore[return-value]


CASES: dict[str, tuple[Callable[..., torch.Tensor], Scaling]] = {
    "samples": (lambda m, b: per_sample(m, b).mean(), Scaling()),
    "micro-batches added up": (sum_of_micro_batches, Scaling(0, 2.0)),
    "tokens of the step": (token_mean, Scaling(1)),
    "tokens of each micro-batch": (mean_of_token_means, Scaling(2)),
    "tokens of each, added up": (lambda m, b: 2 * mean_of_token_means(m, b), Scaling(2, 2.0)),
    "a tenth": (lambda m, b: per_sample(m, b).mean() / 10, Scaling(0, 0.1)),
}


@pytest.mark.parametrize("clip", [None, 0.35])
@pytest.mark.parametrize("name", CASES)
def test_the_averaging_is_found_and_the_task_is_the_loop(name: str, clip: float | None, tmp_path: Path) -> None:
    loss, scaling = CASES[name]
    data, model = rows(), Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)  # of another scale another run comes out
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(2)).view(STEPS, BATCH)
    with osc.Recorder(tmp_path / "run", model, optimizer, steps=STEPS, anchors=STEPS + 1) as rec:
        for ids in order:
            optimizer.zero_grad()
            loss(model, torch.utils.data.default_collate([data[i] for i in ids])).backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            rec.step(ids)
    arguments = {"model": Model, "loss": per_sample, "data": data, "metrics": {"eval": data}, "max_grad_norm": clip,
                 "groups": ["all"] * len(data)}  # fmt: skip
    if clip and scaling.factor > 1:
        scaling = replace(scaling, factor=1.0)  # every step is clipped either way: it is the same run
    if scaling.plain:
        task = rec.task(**arguments)
    else:
        with pytest.warns(notices.ScaledWarning, match="that is applied in the training, metrics keep") as told:
            task = rec.task(**arguments)
        assert scaling.words in str(told[0].message)
        said = rec.task(**arguments, scaling=scaling)  # in silence
        assert said.fingerprint() == task.fingerprint()
    osc.record(task, tmp_path / "run", probes=0, sketch=False)
    run = load_run(osc.RunStore.open(tmp_path / "run"), "reference")
    final = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert (run.theta()[-1] - final).norm() <= 1e-5 * final.norm()
    with torch.no_grad():
        true = float(per_sample(model, torch.utils.data.default_collate(data)).mean())
    assert task.evaluate(model)["eval"] == pytest.approx(true, abs=1e-6)  # the documented scale


def test_with_probes_and_sketch_it_answers_in_the_documented_scale(tmp_path: Path) -> None:
    data, model = rows(), Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    with osc.Recorder(tmp_path / "run", model, optimizer) as rec:
        for ids in torch.arange(len(data)).view(STEPS, BATCH):
            optimizer.zero_grad()
            sum_of_micro_batches(model, torch.utils.data.default_collate([data[i] for i in ids])).backward()
            optimizer.step()
            rec.step(ids)
    with pytest.warns(notices.ScaledWarning, match="times 2"):
        task = rec.task(loss=per_sample, data=data, metrics={"eval": data}, groups=["all"] * len(data))
    osc.record(task, tmp_path / "run", anchors=3, probes=2, jobs=1)
    simulator = osc.Simulator(tmp_path / "run", task)
    assert simulator.plan is not None
    predicted = simulator.predict(rec.order).metrics["eval"]
    np.testing.assert_allclose(predicted, osc.retrain(task, rec.order).metrics["eval"], rtol=1e-5)


def test_a_loss_that_the_loop_told_otherwise_is_not_scaled_away(tmp_path: Path) -> None:
    """A loss that is twice what the loop says it is, is another loss, not another average."""
    data, model = rows(), Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with osc.Recorder(tmp_path / "run", model, optimizer) as rec:
        for ids in torch.arange(len(data)).view(STEPS, BATCH):
            optimizer.zero_grad()
            loss = per_sample(model, torch.utils.data.default_collate([data[i] for i in ids])).mean()
            loss.backward()
            optimizer.step()
            rec.step(ids, loss)
    task = rec.task(model=Model, loss=lambda m, b: 2 * per_sample(m, b), data=data)
    with pytest.raises(osc.OrderscopeError, match="does not do what the loop did at step 0"):
        osc.record(task, tmp_path / "run", probes=0, sketch=False)


def test_weights_of_tokens_have_mean_one_over_equal_micro_batches_of_their_tokens() -> None:
    counts = np.array([[3, 1, 2, 2]])
    np.testing.assert_allclose(token_weights(counts, 1), counts * 4 / 8)
    np.testing.assert_allclose(token_weights(counts, 2), [[1.5, 0.5, 1, 1]])
    np.testing.assert_allclose(token_weights(np.zeros((1, 4), int), 2), np.zeros((1, 4)))  # nothing to learn


@pytest.mark.parametrize(
    ("factor", "value"), [(1.99, 2.0), (0.2502, 0.25), (1.013, 1.0), (16.05, 16.0), (0.71234, 0.712), (0.5, 0.5)]
)
def test_factors_are_those_that_people_divide_by(factor: float, value: float) -> None:
    assert rounded(factor) == value


def test_norms_of_clipped_gradients_are_short_numbers() -> None:
    assert clips_at([0.3, 0.9999999]) == 1.0
    assert clips_at([0.3, 0.8437]) is None
    assert clips_at([0.0]) is None
