"""The oracle has the bits of a plain loop, whatever the optimizer."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

import orderscope as osc
from tasks_tiny import adamw, char, classifier, cosine, linear, sgd

OPTIMIZERS = {
    "sgd": sgd,
    "momentum": partial(sgd, momentum=0.9),
    "nesterov": partial(sgd, momentum=0.9, nesterov=True, weight_decay=0.1),
    "dampening": partial(sgd, momentum=0.9, dampening=0.5),
    "maximize": partial(sgd, maximize=True, lr=1e-3),
    "adam": partial(torch.optim.Adam, lr=5e-3, weight_decay=0.1),
    "adamw": adamw,
    "amsgrad": partial(adamw, amsgrad=True),
    "groups": lambda params: torch.optim.AdamW(
        [
            {"params": [p for p in params if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in params if p.dim() < 2]},
        ]
    ),
    "rmsprop": torch.optim.RMSprop,
}
MODELS = {
    "linear": linear,
    "mlp": classifier,
    "odd": partial(classifier, frozen=True, tied=True, counting=True),
    "char": char,
}
SCHEDULERS = {
    "none": None,
    "cosine": cosine(10),
    "onecycle": partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.01, total_steps=12),
}


def plain_loop(kw, order):
    model = kw["model"]()
    optimizer = kw["optimizer"](list(model.parameters()))
    if kw.get("optimizer_state"):
        own = [dict(g) for g in optimizer.param_groups]
        optimizer.load_state_dict(copy.deepcopy(kw["optimizer_state"]))
        for g, mine in zip(optimizer.param_groups, own, strict=True):
            g.update({k: v for k, v in mine.items() if k != "params"})
    scheduler = kw["scheduler"](optimizer) if kw.get("scheduler") else None
    for ids in order:
        optimizer.zero_grad()
        kw["loss"](model, default_collate([kw["data"][int(i)] for i in ids])).mean().backward()
        if kw.get("max_grad_norm"):
            nn.utils.clip_grad_norm_(model.parameters(), kw["max_grad_norm"])
        optimizer.step()
        if scheduler:
            scheduler.step()
    with torch.no_grad():
        held = kw["metrics"]["eval"]
        value = float(kw["loss"](model, default_collate([held[i] for i in range(len(held))])).mean())
    return value, model


def same_bits(kw, order):
    task = osc.Task(**kw)
    truth = osc.retrain(task, order, keep_parameters=True)
    value, model = plain_loop(kw, order)
    assert truth.metrics["eval"].tolist() == [value]
    assert torch.equal(truth.parameters[0], task.layout.flatten(task.layout.of_model(model)))


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_and_model(optimizer, model, clip):
    kw = MODELS[model]() | {"optimizer": OPTIMIZERS[optimizer], "max_grad_norm": clip, "optimizer_state": None}
    same_bits(kw, kw["order"][::-1])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_every_schedule(scheduler, optimizer):
    kw = classifier() | {"optimizer": OPTIMIZERS[optimizer], "scheduler": SCHEDULERS[scheduler]}
    same_bits(kw, kw["order"])


def test_window_from_mid_run():
    kw = char()
    assert kw["optimizer_state"] is not None
    same_bits(kw, kw["order"])


def test_many_orders_at_once_and_one_by_one():
    kw = classifier(counting=True)
    task = osc.Task(**kw)
    orders = np.stack([task.order, task.order[::-1], task.order[np.random.default_rng(0).permutation(task.steps)]])
    seen = []
    truth = osc.retrain(task, orders, keep_parameters=True, progress=lambda done, n: seen.append((done, n)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert truth.metrics.keys() == {"eval", "accuracy"}
    assert truth.losses["eval"].shape == (3, 24)
    np.testing.assert_allclose(truth.losses["eval"].mean(1), truth.metrics["eval"], rtol=1e-6)
    for k, order in enumerate(orders):
        one = osc.retrain(task, order, keep_parameters=True)
        assert one.metrics["eval"][0] == truth.metrics["eval"][k]
        assert torch.equal(one.parameters[0], truth.parameters[k])
    assert osc.retrain(task, orders).parameters is None


def test_random_numbers_and_threads_stay_the_callers():
    task = osc.Task(**classifier())
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    osc.retrain(task, task.order)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_other_samples_only_if_meant():
    task = osc.Task(**linear())
    order = np.zeros_like(task.order)
    with pytest.raises(osc.OrderscopeError, match="other samples"):
        osc.retrain(task, order)
    assert np.isfinite(osc.retrain(task, order, allow_other_samples=True).metrics["eval"]).all()


def test_an_order_that_diverges_says_so_in_its_value():
    task = osc.Task(**linear() | {"optimizer": partial(sgd, lr=1e20)})
    assert not np.isfinite(osc.retrain(task, task.order).metrics["eval"]).any()
