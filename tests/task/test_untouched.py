"""One evaluation, one untouched model: whatever a metric function does, nothing else sees it."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import orderscope as osc
from orderscope.training import load_run
from tasks_tiny import classifier

HELD = classifier()["metrics"]["eval"]


def dropping():
    """The classifier with dropout in front of its last layer, switched off: in train mode every answer changes."""
    kw = classifier()
    build = kw["model"]

    def switched_off():
        model = build()
        model.last = nn.Sequential(nn.Dropout(0.5), model.last)
        return model.eval()

    return kw | {"model": switched_off}


def trains(model):
    model.train()
    return 0.0


def writes(model):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    model.first.weight.data = torch.zeros(6, 2)
    return 0.0


def half(model):
    model.half()
    return 0.0


def freezes(model):
    model.requires_grad_(False)
    return 0.0


def accumulates(model):
    with torch.enable_grad():
        model(HELD.columns[0]).sum().backward()
    return 0.0


def prunes(model):
    prune.l1_unstructured(model.first, "weight", amount=0.5)
    return 0.0


def prunes_for_good(model):
    prunes(model)
    prune.remove(model.first, "weight")
    return 0.0


def parametrizes(model):
    parametrizations.weight_norm(model.first)
    parametrize.register_parametrization(model.middle, "weight", nn.Tanh())
    return 0.0


def hooks(model):
    model.first.register_forward_hook(lambda *_: torch.zeros(()))
    model.scale.register_hook(lambda g: 0 * g)
    return 0.0


def replaces(model):
    model.first, model.extra = nn.Identity(), nn.Linear(2, 2)
    model.register_buffer("more", torch.zeros(1))
    return 0.0


def turns_gradients_on(model):
    torch.set_grad_enabled(True)
    return 0.0


def changes_the_default(model):
    torch.set_default_dtype(torch.float64)
    return 0.0


def draws(model):
    return float(torch.rand(()) + np.random.rand() + random.random())


LEAVERS = [trains, writes, half, freezes, accumulates, prunes, prunes_for_good, parametrizes, hooks, replaces,
           turns_gradients_on, changes_the_default, draws]  # fmt: skip


@pytest.mark.parametrize("leaves", LEAVERS)
def test_what_a_function_does_to_the_model_reaches_nothing(leaves):
    kw = dropping()
    plain = osc.Task(**kw | {"metrics": {"eval": HELD}})
    for names in (["f", "eval"], ["eval", "f"]):
        every = {"f": leaves, "eval": HELD}
        task = osc.Task(**kw | {"metrics": {name: every[name] for name in names}})
        model = task.build_model()
        before, generators = copy.deepcopy(model), torch.get_rng_state()
        first, second = task.evaluate(model), task.evaluate(model)
        assert torch.equal(torch.get_rng_state(), generators)
        assert torch.is_grad_enabled()
        assert first == second
        assert first["eval"] == plain.evaluate(plain.build_model())["eval"]
        assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
        assert type(model.first) is nn.Linear
        for (name, mine), (other, theirs) in zip(model.named_parameters(), before.named_parameters(), strict=True):
            assert name == other
            assert torch.equal(mine, theirs)
            assert mine.requires_grad == theirs.requires_grad
            assert mine.grad is None
        truth = osc.retrain(task, task.order[None]).metrics["eval"]
        assert truth == osc.retrain(plain, plain.order[None]).metrics["eval"]


@pytest.mark.parametrize("leaves", [trains, writes, prunes])
def test_a_recorded_run_and_its_answers_are_those_without_the_function(leaves, tmp_path):
    kw, found = dropping(), {}
    for name, metrics in {"without": {"eval": HELD}, "with": {"f": leaves, "eval": HELD}}.items():
        task = osc.Task(**kw | {"metrics": metrics})
        sim = osc.Simulator(osc.record(task, tmp_path / name, probes=2, jobs=1).path, task)
        answers = [sim.predict(task.order[::-1]).metrics["eval"] for _ in range(2)]
        assert np.array_equal(*answers)
        found[name] = load_run(sim.store, "reference").theta()[-1], answers[0]
    assert torch.equal(found["with"][0], found["without"][0])
    assert np.array_equal(found["with"][1], found["without"][1])


def test_the_same_question_twice_at_completed_weights_too(tmp_path):
    task = osc.Task(**dropping() | {"metrics": {"f": trains, "eval": HELD}})
    sim = osc.Simulator(osc.record(task, tmp_path / "run", probes=2, coords=30, jobs=1).path, task)
    answers = [sim.predict(task.order[::-1]).metrics["eval"] for _ in range(2)]
    assert np.array_equal(*answers)


def test_a_loss_that_moves_buffers_starts_every_evaluation_from_the_same():
    kw = classifier(counting=True)

    def loss(model, batch):
        return kw["loss"](model, batch) + 0 * model.calls

    task = osc.Task(**kw | {"loss": loss, "metrics": {"eval": HELD, "calls": lambda m: m.calls}})
    model = task.build_model()
    assert task.evaluate(model)["calls"] == 0
    assert task.evaluate(model, ["eval", "calls"])["calls"] == 0
    assert int(model.calls) == 0


def test_gradients_may_be_taken_inside_a_metric():
    def gradient_norm(model):
        loss = model(HELD.columns[0]).square().mean()
        return torch.autograd.grad(loss, model.first.weight)[0].norm()

    def backward(model):
        model(HELD.columns[0]).square().mean().backward()
        return model.first.weight.grad.norm()

    task = osc.Task(**classifier() | {"metrics": {"a": gradient_norm, "b": backward}})
    model = task.build_model()
    values = task.evaluate(model)
    assert values["a"] == values["b"] > 0
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("value", [1, True, 0.5, np.float32(2), np.ones(1), torch.ones(()), torch.ones(1, 1)])
def test_one_number_of_any_kind(value):
    task = osc.Task(**classifier() | {"metrics": {"f": lambda _: value}})
    assert task.evaluate(task.build_model())["f"] == float(np.asarray(value).reshape(()))


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"acc": 0.5}, r"returns dict with 'acc'.*metrics=\{"),
        (torch.ones(3), r"returns Tensor of shape \[3\]"),
        (np.ones((2, 2)), r"returns ndarray of shape \[2, 2\]"),
        ([0.5, [1.0]], "returns list"),
        ((1.0, 2.0), "returns tuple"),
        (None, "returns NoneType"),
        ("0.5", "returns str"),
        (1j, "returns complex"),
    ],
)
def test_anything_else_is_refused_in_one_line(value, what):
    task = osc.Task(**classifier() | {"metrics": {"f": lambda _: value}})
    with pytest.raises(osc.OrderscopeError, match=what) as caught:
        task.evaluate(task.build_model())
    assert "\n" not in str(caught.value)


def test_a_metric_that_fails_is_named_with_its_line():
    def broken(model):
        return model.nothing_of_that_name

    task = osc.Task(**classifier() | {"metrics": {"f": broken}})
    with pytest.raises(osc.OrderscopeError, match=r"metric 'f' that fails with AttributeError.*line \d+") as caught:
        task.evaluate(task.build_model())
    assert "\n" not in str(caught.value)


def test_a_model_that_keeps_what_it_computed_is_copied_all_the_same():
    kw = classifier()
    build = kw["model"]

    def keeping():
        model = build()
        model.first.register_forward_hook(lambda module, inputs, output: setattr(module, "seen", [output]))
        return model

    def accuracy(model):
        return (model(HELD.columns[0]).argmax(1) == HELD.columns[1]).double().mean()

    task = osc.Task(**kw | {"model": keeping, "metrics": {"acc": accuracy}})
    plain = osc.Task(**kw | {"metrics": {"acc": accuracy}})
    mine, theirs = (osc.retrain(t, t.order).metrics["acc"] for t in (task, plain))
    assert np.array_equal(mine, theirs)


def test_a_model_that_cannot_be_copied_is_refused_in_one_line():
    kw = classifier()
    build = kw["model"]

    def holding():
        model = build()
        model.numbers = (i for i in range(3))
        return model

    task = osc.Task(**kw | {"model": holding})
    with pytest.raises(osc.OrderscopeError, match=r"cannot be copied .*make the metric a data set"):
        task.evaluate(task.build_model())
    assert set(task.evaluate(task.build_model(), ["eval"])) == {"eval"}
