"""Which form the loss has in the model's outputs is found out without the user's help."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import vmap

import orderscope as osc
from orderscope.sketching.gradients import point
from orderscope.sketching.outputs import draw_output_gradient, find_split, hessian_product, loss_of_outputs, outputs_of
from orderscope.training.loop import start
from orderscope.training.state import capture
from tasks_tiny import Rows, generator

SAMPLES, WIDTH = 8, 3


class Head(nn.Module):
    """One linear layer with outputs in several shapes: [batch, *shape], as log-probabilities, or in a dictionary."""

    def __init__(self, shape, log=False, named=False) -> None:
        super().__init__()
        self.shape, self.log, self.named = shape, log, named
        self.linear = nn.Linear(WIDTH, int(torch.tensor(shape).prod()))

    def forward(self, x):
        z = self.linear(x).view(len(x), *self.shape)
        if self.log:
            z = z.log_softmax(-1)
        return {"hidden": 2 * x, "cache": None, "logits": z} if self.named else z


def made(loss, y, *shape, log=False, named=False):
    g = generator(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        weights = Head(shape, log, named).state_dict()

    def build():
        model = Head(shape, log, named)
        model.load_state_dict(weights)
        return model

    task = osc.Task(
        model=build, loss=loss, data=Rows(torch.randn(SAMPLES, WIDTH, generator=g), y),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1), order=torch.arange(SAMPLES).view(2, 4).numpy(),
    )  # fmt: skip
    return task, point(task, task.build_model(), capture(start(task)))


def split_of(loss, y, *shape, **options):
    task, at = made(loss, y, *shape, **options)
    return find_split(at, task.batch(range(4)))


def entropy(**options):
    return lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none", **options)


def by_token(**options):
    def loss(model, batch):
        z, y = model(batch[0]), batch[1]
        return F.cross_entropy(z.transpose(1, 2), y, reduction="none", **options).mean(1)

    return loss


def shifted(model, batch):
    z, y = model(batch[0])[:, :-1], batch[1][:, 1:]
    return F.cross_entropy(z.transpose(1, 2), y, reduction="none").mean(1)


g = generator(5)
CLASS, BIT = torch.randint(0, 4, (SAMPLES,), generator=g), torch.randint(0, 2, (SAMPLES,), generator=g)
TOKENS = torch.randint(0, 4, (SAMPLES, 5), generator=g)
MASKED = TOKENS.clone()
MASKED[:, 2], MASKED[0] = -100, -100  # a token everywhere, and all tokens of one sample
PLACES = torch.randint(0, 4, (SAMPLES, 5), generator=g)
REAL, SHARE = torch.randn(SAMPLES, 4, generator=g), torch.rand(SAMPLES, 4, generator=g)
WEIGHTS = torch.tensor([0.1, 2.0, 1.0, 0.5])

FORMS = {
    "cross-entropy": ("softmax", 1, entropy(), CLASS, (4,)),
    "two classes": ("softmax", 1, entropy(), BIT, (2,)),
    "many classes": ("softmax", 1, entropy(), CLASS, (300,)),
    "label smoothing": ("softmax", 1, entropy(label_smoothing=0.2), CLASS, (4,)),
    "class weights": ("softmax", 1, entropy(weight=WEIGHTS), CLASS, (4,)),
    "tokens": ("softmax", 2, by_token(), TOKENS, (5, 4)),
    "ignore_index": ("softmax", 2, by_token(ignore_index=-100), MASKED, (5, 4)),
    "tokens, all options": ("softmax", 2, by_token(label_smoothing=0.1, weight=WEIGHTS), MASKED, (5, 4)),
    "next token": ("softmax", 2, shifted, TOKENS, (5, 4)),
    "classes before places": ("softmax", 1, lambda m, b: entropy()(m, b).mean(1), PLACES, (4, 5)),
    "soft labels": ("softmax", 1, entropy(), SHARE.softmax(1), (4,)),
    "squared error": ("elementwise", -1, lambda m, b: ((m(b[0]) - b[1]) ** 2).mean(1), REAL, (4,)),
    "one output": ("elementwise", -1, lambda m, b: (m(b[0])[:, 0] - b[1][:, 0]) ** 2, REAL, (1,)),
    "huber": ("elementwise", -1, lambda m, b: F.huber_loss(m(b[0]), b[1], reduction="none").sum(1), REAL, (4,)),
    "binary cross-entropy": (
        "elementwise", -1,
        lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]), b[1], reduction="none").mean(1), SHARE, (4,),
    ),
    "temperature": (
        "dense", -1, lambda m, b: F.cross_entropy(m(b[0]) / 2, b[1], reduction="none"), CLASS, (4,)),
    "preference": ("softmax", 1, lambda m, b: -F.logsigmoid(torch.diff(m(b[0]), dim=1)[:, 0]), CLASS, (2,)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_are_recognised(name):
    kind, dim, loss, y, shape = FORMS[name]
    split = split_of(loss, y, *shape)
    assert (split.kind, split.dim) == (kind, dim)
    assert split.shape == (1, *shape)


def test_outputs_in_a_dictionary():
    split = split_of(lambda m, b: F.cross_entropy(m(b[0])["logits"], b[1], reduction="none"), CLASS, 4, named=True)
    assert split.kind == "softmax"
    assert split.shape == (1, 4)


def uses_two_outputs(model, batch):
    out = model(batch[0])
    return F.cross_entropy(out["logits"], batch[1], reduction="none") + out["hidden"].square().sum(1)


EMPIRICAL = {
    "calls the model 2 times": (lambda m, b: F.cross_entropy(m(b[0]) + m(-b[0]), b[1], reduction="none"), {}),
    "uses the weights in addition to": (lambda m, b: entropy()(m, b) + m.linear.weight.square().sum(), {}),
    "several outputs": (uses_two_outputs, {"named": True}),
    "linear in the model's outputs": (lambda m, b: F.nll_loss(m(b[0]), b[1], reduction="none"), {"log": True}),
}


@pytest.mark.parametrize("why", EMPIRICAL)
def test_losses_that_cannot_be_split_say_why(why):
    loss, options = EMPIRICAL[why]
    split = split_of(loss, CLASS, 4, **options)
    assert split.kind == "empirical"
    assert why in split.why


def test_a_dense_hessian_in_many_outputs_is_not_taken():
    split = split_of(lambda m, b: F.cross_entropy(m(b[0]) / 2, b[1], reduction="none"), CLASS, 300)
    assert split.kind == "empirical"
    assert "300 outputs" in split.why


@pytest.mark.parametrize("name", sorted(FORMS.keys() - {"many classes"}))
def test_drawn_output_gradients_have_the_hessian_as_their_second_moment(name):
    """E[s s^T] = L: what makes the pseudo-gradients' second moment the Gauss-Newton matrix."""
    _, _, loss, y, shape = FORMS[name]
    task, at = made(loss, y, *shape)
    split = find_split(at, task.batch(range(4)))
    sample = tuple(column[1] for column in task.batch(range(4)))
    z, leaves = outputs_of(at, split, at.params, at.rest, sample)
    z = z.detach()

    def of_z(v):
        return loss_of_outputs(at, split, at.params, at.rest, sample, leaves, v)

    draws = 20_000
    noise = torch.rand((draws, *split.noise_shape), generator=generator(6))
    drawn = vmap(lambda u: draw_output_gradient(split, of_z, z, u))(noise).flatten(1).double()
    eye = torch.eye(z.numel()).view(-1, *z.shape)
    hessian = vmap(lambda e: hessian_product(of_z, z, e))(eye).flatten(1).double()
    error = (((drawn**2).T @ drawn**2) / draws / draws).sqrt()
    # 5 standard errors, for up to 400 entries; float32 rounding where all draws agree
    assert bool(((drawn.T @ drawn / draws - hessian).abs() <= 5 * error + 1e-5 * hessian.abs().max()).all())
