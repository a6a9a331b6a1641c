"""Each part of the fingerprint moves with its own part of the task and with no other."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch

import orderscope as osc
from orderscope.task.fingerprint import compare, digest
from tasks_tiny import Rows, adamw, classifier, cosine, cross_entropy, permuted, sgd


def halved(model, batch):
    return cross_entropy(model, batch) / 2


def weighted(model, batch, weight):
    return cross_entropy(model, batch) * weight


def loss_with(weight):
    return lambda model, batch: cross_entropy(model, batch) * weight


def parts_changed(before, after):
    a, b = osc.Task(**before).fingerprint(), osc.Task(**after).fingerprint()
    assert a.keys() == b.keys()
    return {part for part in a if a[part] != b[part]}


def other_start():
    model = classifier()["model"]()
    with torch.no_grad():
        model.scale.add_(1)
    return model


def other_data():
    x, y = classifier()["data"].columns
    return Rows(torch.cat([x[:-1], x[-1:] + 1e-6]), y)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, set()),
        ({"model": other_start}, {"model"}),
        ({"data": other_data()}, {"data"}),
        ({"optimizer": partial(adamw, eps=1e-6)}, {"optimizer", "schedule"}),
        ({"optimizer": sgd}, {"optimizer", "schedule"}),
        ({"scheduler": cosine(11)}, {"schedule"}),
        ({"scheduler": None}, {"schedule"}),
        ({"loss": halved}, {"loss"}),
        ({"metrics": {"eval": other_data()}}, {"metrics"}),
        ({"metrics": {}}, {"metrics"}),
        ({"order": permuted(10, 4, seed=5)}, {"order"}),
        ({"groups": None}, {"groups"}),
        ({"max_grad_norm": 1.0}, {"max_grad_norm"}),
    ],
)
def test_names_the_part_that_changed(changes, parts):
    assert parts_changed(classifier(), classifier() | changes) == parts


def test_moments_belong_to_the_optimizer():
    kw = classifier()
    model = kw["model"]()
    optimizer = kw["optimizer"](model.parameters())
    kw["loss"](model, kw["data"][:4]).mean().backward()
    optimizer.step()
    assert parts_changed(kw, kw | {"optimizer_state": optimizer.state_dict()}) == {"optimizer"}


def test_constants_of_a_loss_count():
    kw = classifier()
    assert parts_changed(kw | {"loss": loss_with(1.0)}, kw | {"loss": loss_with(1.0)}) == set()
    assert parts_changed(kw | {"loss": loss_with(1.0)}, kw | {"loss": loss_with(2.0)}) == {"loss"}
    one, two = (kw | {"loss": partial(weighted, weight=w)} for w in (1.0, 2.0))
    assert parts_changed(one, two) == {"loss"}


def test_the_same_in_another_process():
    code = "import tasks_tiny, orderscope as osc; print(osc.Task(**tasks_tiny.classifier(tied=True)).fingerprint())"
    out = subprocess.run([sys.executable, "-c", code], env=_environment(), capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(osc.Task(**classifier(tied=True)).fingerprint())


def _environment():
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}


def test_compare_names_the_parts():
    mine = {"model": "a", "data": "b", "loss": "c"}
    compare(mine, dict(mine))
    with pytest.raises(osc.OrderscopeError, match="found a task with another data, loss; expected the task this run"):
        compare(mine, {"model": "a", "data": "x", "loss": "y"})


def test_digest_tells_values_apart():
    values = [
        None, 0, 0.0, False, "", b"", "0", [0], [[0]], [], {}, {"a": 0}, {"a": [0]}, 1.0, -0.0, float("nan"),
        torch.zeros(2), torch.zeros(2, dtype=torch.float64), torch.zeros(1, 2), torch.zeros(2, dtype=torch.bfloat16),
        torch.zeros(2).numpy(), torch.tensor(0.0),
    ]  # fmt: skip
    assert len({digest(v) for v in values}) == len(values)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest((1, 2)) == digest([1, 2])
