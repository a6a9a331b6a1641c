"""What happens around the optimizer's step is seen before anything is answered."""

import numpy as np
import pytest
import torch

import orderscope as osc
from law_tasks import untabled
from orderscope.engine.driven import check_loop, check_reached
from orderscope.sketching import SketchPlan
from orderscope.training import load_run
from tasks_tiny import adamw, char, classifier, linear, sgd

QUIET = {"probes": 1, "anchors": 3, "jobs": 1}


def with_hook(register, action, make=adamw):
    def build(params):
        optimizer = make(params)
        getattr(optimizer, register)(lambda *_: action(optimizer))
        return optimizer

    return build


def clips_by_value(optimizer):
    for p in optimizer.param_groups[0]["params"]:
        if p.grad is not None:
            p.grad.clamp_(-0.02, 0.02)


def adds_noise(optimizer):
    for p in optimizer.param_groups[0]["params"]:
        if p.grad is not None:
            p.grad.add_(0.01 * torch.randn_like(p))


def unit_rows(optimizer):
    for p in optimizer.param_groups[0]["params"]:
        if p.dim() == 2:
            p.data.div_(p.data.norm(dim=1, keepdim=True))


def clamps(optimizer):
    with torch.no_grad():
        for p in optimizer.param_groups[0]["params"]:
            p.clamp_(-0.4, 0.4)


def forgets_moments(optimizer):
    for state in optimizer.state.values():
        for key in ("exp_avg", "momentum_buffer"):
            if state.get(key) is not None:
                state[key].mul_(0.9)


AROUND = [
    ("register_step_pre_hook", clips_by_value),
    ("register_step_pre_hook", adds_noise),
    ("register_step_post_hook", unit_rows),
    ("register_step_post_hook", clamps),
    ("register_step_post_hook", forgets_moments),
]


@pytest.mark.parametrize(("register", "action"), AROUND)
@pytest.mark.parametrize("make", [adamw, lambda p: sgd(p, momentum=0.9)])
def test_step_hooks_that_change_something_are_refused(register, action, make, tmp_path):
    task = osc.Task(**classifier() | {"optimizer": with_hook(register, action, make)})
    with pytest.raises(osc.OrderscopeError, match=r"after step 0 it leads elsewhere .* after step 2.*hooks") as caught:
        osc.record(task, tmp_path / "run", **QUIET)
    assert "\n" not in str(caught.value)


def test_hooks_that_only_look_are_welcome(tmp_path):
    seen = []
    task = osc.Task(**classifier() | {"optimizer": with_hook("register_step_post_hook", lambda o: seen.append(1))})
    osc.record(task, tmp_path / "run", **QUIET)
    assert seen


def test_a_patched_optimizer_is_refused(tmp_path, monkeypatch):
    plain = torch.optim.AdamW.step

    def patched(self, *args, **kwargs):
        found = plain(self, *args, **kwargs)
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(0.999)
        return found

    monkeypatch.setattr(torch.optim.AdamW, "step", patched)
    with pytest.raises(osc.OrderscopeError, match="more happens than the steps of AdamW"):
        osc.record(osc.Task(**classifier()), tmp_path / "run", **QUIET)


def test_a_hook_that_acts_in_other_orders_only_is_found_on_the_probes(tmp_path):
    reference = classifier()["order"]

    def build(params):
        optimizer = adamw(params)
        optimizer.register_step_post_hook(lambda *_: (params[0].data.mul_(0.9), None)[1] if acts else None)
        return optimizer

    acts = []
    task = osc.Task(**classifier() | {"optimizer": build})
    osc.record(task, tmp_path / "run", **QUIET | {"probes": 0})
    acts.append(1)
    with pytest.raises(osc.OrderscopeError, match="run 'probe-0' in which more happens"):
        osc.record(task, tmp_path / "run", **QUIET)
    assert reference.shape == task.order.shape


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_parameters_are_refused_with_the_task(kind):
    build = classifier()["model"]

    def hooked():
        model = build()
        if kind == "register_hook":
            model.first.weight.register_hook(lambda g: g.clamp(-0.01, 0.01))
        else:
            model.first.weight.register_post_accumulate_grad_hook(lambda p: (p.grad[:3].zero_(), None)[1])
        return model

    with pytest.raises(osc.OrderscopeError, match=r"mean is not the batch gradient.*'first.weight'.*hooks"):
        osc.Task(**classifier() | {"model": hooked})


def test_frozen_weights_that_training_moves_are_refused(tmp_path):
    """A target network that follows the trained one, say."""
    build = classifier(frozen=True)["model"]
    models = []

    def followed():
        models.append(build())
        return models[-1]

    def following(params):
        optimizer, model = adamw([p for p in params if p.requires_grad]), models[-1]
        optimizer.register_step_post_hook(lambda *_: (model.middle.weight.data.add_(1e-3), None)[1])
        return optimizer

    task = osc.Task(**classifier(frozen=True) | {"model": followed, "optimizer": following})
    with pytest.raises(osc.OrderscopeError, match=r"parameter 'middle.weight', which the optimizer does not hold"):
        osc.record(task, tmp_path / "run", **QUIET)


def test_metrics_of_more_than_the_weights_are_refused(tmp_path):
    task = osc.Task(**classifier(counting=True) | {"metrics": {"steps": lambda model: float(model.calls)}})
    with pytest.raises(osc.OrderscopeError, match=r"metric 'steps' = \d+ of the trained model and 0 of a new one"):
        osc.record(task, tmp_path / "run", **QUIET)


OPTIMIZERS = [
    adamw,
    lambda p: torch.optim.Adam(p, lr=3e-3, amsgrad=True, weight_decay=0.1),
    lambda p: torch.optim.AdamW(p, lr=3e-3, maximize=True),
    lambda p: torch.optim.AdamW(p, lr=3e-3, foreach=False),
    lambda p: torch.optim.AdamW(p, lr=3e-3, fused=True),
    lambda p: torch.optim.AdamW([{"params": p[:2], "lr": 0.0}, {"params": p[2:], "lr": 0.01}]),
    lambda p: torch.optim.NAdam(p, lr=3e-3),
    sgd,
    lambda p: sgd(p, momentum=0.9, nesterov=True, weight_decay=0.01),
    lambda p: sgd(p, momentum=0.9, dampening=0.5),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("coords", [1 << 17, 30])
def test_plain_training_is_reached(optimizer, coords, tmp_path):
    kw = classifier(frozen=True, tied=True) | {"optimizer": lambda p: optimizer([q for q in p if q.requires_grad])}
    osc.record(osc.Task(**kw), tmp_path / "run", coords=coords, **QUIET)


@pytest.mark.parametrize("make", [linear, char])
def test_clipped_and_warm_training_is_reached(make, tmp_path):
    osc.record(osc.Task(**make()), tmp_path / "run", **QUIET)


def loop(path, optimizer, kw):
    """A user's own loop under a recorder."""
    torch.manual_seed(0)
    model = kw["model"]()
    built = optimizer(list(model.parameters()))
    with osc.Recorder(path, model, built, steps=len(kw["order"]), anchors=3) as rec:
        for ids in kw["order"]:
            built.zero_grad()
            x, y = kw["data"][ids]
            loss = kw["loss"](model, (x, y)).mean()
            loss.backward()
            built.step()
            rec.step(ids, loss)
    return rec.task(model=kw["model"], loss=kw["loss"], data=kw["data"], metrics=kw["metrics"])


def small_pull(optimizer):
    """A constraint that moves weights by less than a task's rounding may."""
    for p in optimizer.param_groups[0]["params"]:
        p.data.mul_(0.9995)


@pytest.mark.parametrize(("register", "action"), [*AROUND, ("register_step_post_hook", small_pull)])
def test_what_a_recorded_loop_did_around_its_steps_is_refused(register, action, tmp_path):
    kw = classifier()
    task = loop(tmp_path / "run", with_hook(register, action), kw)
    with pytest.raises(osc.OrderscopeError):
        osc.record(task, tmp_path / "run", **QUIET)


def test_a_small_constraint_in_a_loop_is_told_as_one(tmp_path):
    task = loop(tmp_path / "run", with_hook("register_step_post_hook", small_pull), classifier())
    with pytest.raises(osc.OrderscopeError, match="a recorded loop in which more happens than the steps of AdamW"):
        osc.record(task, tmp_path / "run", **QUIET)


def test_a_plain_loop_is_reached(tmp_path):
    task = loop(tmp_path / "run", adamw, classifier())
    with untabled():
        store = osc.record(task, tmp_path / "run", **QUIET)
    check_loop(store)
    for name in ("reference", "probe-0"):
        check_reached(store, SketchPlan.read(store).coordinates, name)
    assert np.isfinite(load_run(store, "reference").metrics[-1]["eval"])
