import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import orderscope as osc
from orderscope.task.functional import StandIn, frozen_and_buffers, functional_loss
from orderscope.task.task import CHUNK, ONE_BATCH
from tasks_tiny import Rows, char, classifier, linear


@pytest.mark.parametrize("make", [linear, classifier, char])
def test_tiny_tasks_are_sound(make):
    task = osc.Task(**make())
    assert task.order.dtype == np.int64
    assert (task.steps, task.batch_size) == task.order.shape
    assert task.samples == len(task.group_codes) == task.order.size
    assert task.group_names == ("a", "b", "c")


def test_a_task_needs_no_extras():
    kw = linear()
    task = osc.Task(**{k: kw[k] for k in ("model", "loss", "data", "optimizer", "order")})
    assert task.group_names == ("all",)
    assert not task.group_codes.any()
    assert task.evaluate(task.build_model()) == {}


def test_the_order_cannot_be_changed_behind_its_back():
    kw = linear()
    order = kw["order"]
    task = osc.Task(**kw)
    order[0, 0] = 99
    assert task.order[0, 0] != 99
    with pytest.raises(ValueError, match="read-only"):
        task.order[0, 0] = 99


def test_layout_counts_tied_once_and_leaves_frozen_out():
    task = osc.Task(**classifier(frozen=True))
    names = [n for n, p in task.build_model().named_parameters() if p.requires_grad]
    assert list(task.layout.names) == names
    assert not any(n.startswith("middle") for n in names)
    tied = osc.Task(**classifier(tied=True)).layout
    assert "middle.weight" in tied.names
    assert not any(n.startswith("again") for n in tied.names)


def test_layout_flattens_and_back():
    task = osc.Task(**classifier())
    model, layout = task.build_model(), task.layout
    flat = layout.flatten(layout.of_model(model))
    assert flat.shape == (layout.size,)
    for name, p in model.named_parameters():
        assert torch.equal(layout.unflatten(flat)[name], p)
    rows = torch.stack([flat, flat + 1])
    assert torch.equal(layout.flatten(layout.unflatten(rows)), rows)
    assert layout.unflatten(rows)["scale"].shape == (2,)
    assert layout.offsets[-1] == sum(layout.sizes) == layout.size


def test_layout_knows_the_parameter_groups():
    def optimizer(params):
        return torch.optim.SGD(
            [{"params": [p for p in params if p.dim() < 2], "lr": 0.1}, {"params": params[:1]}], lr=0.2
        )

    task = osc.Task(**linear() | {"optimizer": optimizer})
    assert dict(zip(task.layout.names, task.layout.group, strict=True)) == {"weight": 1, "bias": 0}


def test_window_takes_moments_and_keeps_its_own_rate():
    kw = char()
    task = osc.Task(**kw)
    model = task.build_model()
    optimizer = task.build_optimizer(model)
    first = next(iter(model.parameters()))
    assert optimizer.state[first]["step"] == 5
    assert optimizer.param_groups[0]["lr"] == 5e-3
    optimizer.state[first]["exp_avg"].zero_()
    assert kw["optimizer_state"]["state"][0]["exp_avg"].any()  # a copy, not the caller's
    other = osc.Task(**kw | {"optimizer": lambda params: torch.optim.AdamW(params, lr=0.3)})
    assert other.build_optimizer(other.build_model()).param_groups[0]["lr"] == 0.3


def test_held_out_sets_of_any_size():
    kw = linear()
    task = osc.Task(**kw)
    model = task.build_model()
    x, y = torch.randn(ONE_BATCH + CHUNK // 2, 3), torch.randn(ONE_BATCH + CHUNK // 2)
    big = osc.Task(**kw | {"metrics": {"eval": Rows(x, y)}})
    with torch.no_grad():
        losses = task.loss(model, (x, y))
    evaluation = big.evaluation(model)
    torch.testing.assert_close(evaluation.losses["eval"], losses)
    assert evaluation.metrics["eval"] == pytest.approx(float(losses.double().mean()), rel=1e-6)
    assert task.evaluate(model)["eval"] == float(task.loss(model, kw["metrics"]["eval"].columns).detach().mean())


def test_collate_is_used_everywhere():
    def collate(samples):
        return {"x": torch.stack([x for x, _ in samples]), "y": torch.stack([y for _, y in samples])}

    def loss(model, batch):
        return (model(batch["x"]).squeeze(-1) - batch["y"]) ** 2

    kw = linear()
    plain, mine = osc.Task(**kw), osc.Task(**kw | {"collate": collate, "loss": loss})
    assert set(mine.batch([0, 1])) == {"x", "y"}
    assert mine.evaluate(mine.build_model()) == plain.evaluate(plain.build_model())


class Reader(nn.Module):
    """A model that is used by method and by weight, not only by call."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p) + 0.1 * i)

    def encode(self, x):
        return torch.tanh(self.body(x))


def read_loss(model, batch):
    x, y = batch
    return (model.encode(x) @ model.head.weight[0] - y) ** 2


def test_functional_loss_reaches_methods_and_weights():
    task = osc.Task(**linear() | {"model": Reader, "loss": read_loss})
    model, batch = task.build_model(), task.batch([0, 1])
    f = functional_loss(task, model)
    params = {n: torch.zeros_like(p) for n, p in model.named_parameters() if n in task.layout.names}
    rest = frozen_and_buffers(model, task.layout)
    assert torch.equal(f(params, rest, batch), batch[1] ** 2)
    assert not torch.equal(task.loss(model, batch), batch[1] ** 2)


def test_stand_in_sees_the_outputs():
    task = osc.Task(**classifier(tied=True, counting=True))
    model, batch = task.build_model(), task.batch([0, 1, 2])
    params = dict(zip(task.layout.names, task.layout.of_model(model), strict=True))
    rest = frozen_and_buffers(model, task.layout)
    seen = []

    def wrap(inner):
        def call(x):
            seen.append(inner(x))
            return seen[-1]

        return StandIn(inner, call)

    losses = functional_loss(task, model)(params, rest, batch, wrap=wrap)
    assert torch.equal(losses, F.cross_entropy(seen[0], batch[1], reduction="none"))
    assert int(model.calls) == int(rest["calls"]) == 0
    assert StandIn(model, lambda: None).counting is True


def test_groups_may_be_any_labels():
    kw = linear() | {"groups": [i % 2 for i in range(32)]}
    assert osc.Task(**kw).group_names == ("0", "1")


def test_checks_leave_threads_alone():
    threads = torch.get_num_threads()
    osc.Task(**char()).fingerprint()
    assert torch.get_num_threads() == threads
