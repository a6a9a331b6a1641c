"""Every task that cannot be simulated is refused with what to do about it."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import orderscope as osc
from tasks_tiny import Rows, char, classifier, cross_entropy, linear, sgd, squared_error


def refused(kw, message, **changes):
    with pytest.raises(osc.OrderscopeError, match=message) as caught:
        osc.Task(**kw | changes)
    assert "\n" not in str(caught.value)


def with_layer(layer):
    """The linear task with a layer in front, weights copied from one instance."""
    torch.manual_seed(0)
    weights = nn.Sequential(layer(), nn.Linear(3, 1)).state_dict()

    def build():
        model = nn.Sequential(layer(), nn.Linear(3, 1))
        model.load_state_dict(weights)
        return model

    return linear() | {"model": build}


@pytest.mark.parametrize("part", ["model", "optimizer", "scheduler", "collate", "targets"])
def test_what_is_made_already_is_not_a_way_to_make_it(part: str) -> None:
    """The likeliest slip of all: the model, not a function that builds it."""
    kw = classifier()
    model = kw["model"]()
    optimizer = torch.optim.AdamW(model.parameters())
    made = {"model": model, "optimizer": optimizer, "scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer)}
    with pytest.raises(osc.OrderscopeError, match=rf"{part}= that is of type .*; expected a function \("):
        osc.Task(**kw | {part: made.get(part, 3)})


def test_order_and_groups():
    refused(linear(), "out of range: 32", order=[[0, 32]])
    refused(linear(), r"shape \[2\]", order=[0, 1])
    refused(linear(), "3 group labels; expected one per sample of the data set, 32", groups=list("abc"))


def test_data_and_metrics():
    refused(linear(), "data of type generator", data=(i for i in range(3)))
    refused(linear(), "metric 'eval' of type float", metrics={"eval": 1.0})
    refused(linear(), "metric 'eval' of type list without rows", metrics={"eval": []})


def test_model_must_start_the_same():
    refused(
        linear(),
        "parameter 'weight' that differs between two calls of model().*torch.manual_seed",
        model=lambda: nn.Linear(3, 1),
    )
    one = nn.Linear(3, 1)
    refused(linear(), "the same object twice", model=lambda: one)
    refused(linear(), "model.. that returns Tensor", model=lambda: torch.zeros(1))
    counter = itertools.count()

    def counted():
        model = linear()["model"]()
        model.register_buffer("born", torch.tensor(next(counter)))
        return model

    refused(linear(), "buffer 'born' that differs", model=counted)
    refused(linear(), "parameter 'weight' of a lazy layer, .*once on some inputs", model=lambda: nn.LazyLinear(1))

    def run_once():
        torch.manual_seed(0)
        model = nn.LazyLinear(1)
        model(torch.zeros(1, 3))
        return model

    osc.Task(**linear() | {"model": run_once})
    weight = torch.zeros(1, 3)

    def aliased():
        model = linear()["model"]()
        model.weight = nn.Parameter(weight)
        return model

    refused(linear(), "parameter 'weight' that shares its memory", model=aliased)


def test_optimizer():
    refused(linear(), "that returns list", optimizer=lambda params: list(params))
    refused(
        linear(), "1 tensor.s. in the optimizer", optimizer=lambda params: sgd([*params, nn.Parameter(torch.zeros(2))])
    )

    def frozen():
        return linear()["model"]().requires_grad_(False)

    refused(linear(), "no trainable parameter", model=frozen)

    def mixed():
        model = linear()["model"]()
        model.bias.data = model.bias.data.double()
        return model

    refused(linear(), "several dtypes: 'weight' is torch.float32, 'bias' is torch.float64", model=mixed)
    refused(linear(), "clipping over parameter 'bias'", optimizer=lambda params: sgd(params[:1]), max_grad_norm=1.0)
    refused(linear(), "max_grad_norm -1", max_grad_norm=-1)


def test_schedules_that_cannot_be_stepped_without_training():
    steps = len(linear()["order"])

    def cut(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps - 2)

    def demanding(params):
        optimizer = sgd(params)
        optimizer.register_step_pre_hook(lambda *_: params[0].grad.norm() and None)
        return optimizer

    refused(
        linear(), r"a ReduceLROnPlateau that cannot .*LambdaLR", scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau
    )
    refused(linear(), r"a OneCycleLR that cannot .*as many steps as the order has", scheduler=cut)
    constant = torch.optim.lr_scheduler.ConstantLR
    refused(linear(), "without training .AttributeError", scheduler=constant, optimizer=demanding)
    osc.Task(**linear() | {"optimizer": demanding})


def test_a_parameter_outside_the_optimizer_is_left_alone():
    task = osc.Task(**linear() | {"optimizer": lambda params: sgd(params[:1])})
    assert task.layout.names == ("weight",)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: nn.Dropout(0.1), r"active dropout of 0.1 in Dropout '0'.*\.eval\(\)"),
        (lambda: nn.BatchNorm1d(3), "batch statistics in BatchNorm1d '0'"),
        (lambda: nn.BatchNorm1d(3, track_running_stats=False).eval(), "batch statistics in BatchNorm1d '0'"),
        (lambda: nn.MultiheadAttention(3, 1, dropout=0.2), "active dropout of 0.2 in MultiheadAttention '0'"),
    ],
)
def test_layers_that_mix_samples_or_throw_dice(layer, message):
    refused(with_layer(layer), message)


def test_switched_off_they_are_welcome():
    osc.Task(**with_layer(lambda: nn.Dropout(0.1).eval()))
    osc.Task(**with_layer(lambda: nn.Dropout(0.0)))
    osc.Task(**with_layer(lambda: nn.BatchNorm1d(3).eval()))


def test_loss_shape_and_value():
    refused(
        linear(),
        r"a loss of shape \[\] for a batch of 4; expected one value per sample, \[4\]",
        loss=lambda m, b: squared_error(m, b).mean(),
    )
    refused(linear(), "a loss of shape float", loss=lambda m, b: 0.0)
    first = int(linear()["order"][0][0])
    refused(linear(), f"a loss of inf for sample {first}", loss=lambda m, b: squared_error(m, b) + torch.inf)


def test_loss_by_chance_or_by_mates():
    refused(linear(), "differs when it is computed twice", loss=lambda m, b: squared_error(m, b) + torch.rand(()))
    refused(linear(), "in its batch at the first step", loss=lambda m, b: squared_error(m, b) / len(b[0]))
    refused(linear(), "in its batch at", loss=lambda m, b: squared_error(m, (b[0] - b[0].mean(0), b[1])))


def test_data_that_changes():
    class Noisy(Rows):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return x + torch.rand(()), y

    refused(linear(), "differ when they are read twice", data=Noisy(*linear()["data"].columns))


def test_batches_of_tensors():
    kw = linear()
    named = [{"x": x, "y": y, "name": "n"} for x, y in kw["data"]]
    refused(kw, "a batch with a str in it", data=named, loss=lambda m, b: squared_error(m, (b["x"], b["y"])))

    def collate(samples):
        x, y = (torch.stack(c) for c in zip(*samples, strict=True))
        return x, y, torch.tensor(1.0)

    refused(kw, r"a tensor of shape \[\] in a batch of 4", collate=collate, loss=lambda m, b: squared_error(m, b[:2]))


def test_gradients_torch_func_cannot_take_are_taken_one_after_another():
    def detached(model, batch):
        return squared_error(model, batch).detach()

    def checkpointed(model, batch):
        return squared_error(lambda x: checkpoint(model, x, use_reentrant=False), batch)

    def shapes_by_data(model, batch):
        losses = squared_error(model, batch)
        return losses[losses > -1]

    refused(linear(), "a loss without gradient", loss=detached)
    assert osc.Task(**linear()).mapped
    assert not osc.Task(**linear() | {"loss": checkpointed}).mapped
    assert not osc.Task(**linear() | {"loss": shapes_by_data}).mapped


def test_gradients_that_torch_func_sees_differently():
    kw = linear()
    cached = []

    def build():
        model = kw["model"]()
        cached.append(model.weight)
        return model

    def loss(model, batch):
        x, y = batch
        return (x @ cached[0][0] + model.bias - y) ** 2

    refused(kw, "mean is not the batch gradient, most of all in 'weight'", model=build, loss=loss)


def test_sparse_gradients():
    torch.manual_seed(0)
    weights = nn.Embedding(5, 2).state_dict()

    def build():
        model = nn.Embedding(5, 2, sparse=True)
        model.load_state_dict(weights)
        return model

    kw = linear() | {"data": torch.arange(32) % 5, "metrics": {}, "loss": lambda m, ids: m(ids).sum(-1) ** 2}
    refused(kw, "a sparse gradient of parameter 'weight'", model=build)


def test_attention_and_functional_dropout():
    osc.Task(**char())

    def noisy(model, batch):
        x, y = batch
        return F.cross_entropy(F.dropout(model(x)), y, reduction="none")

    refused(classifier(), "computed twice", loss=noisy)
    osc.Task(**classifier() | {"loss": cross_entropy})
