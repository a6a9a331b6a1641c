"""Samples go the way they would go alone, whatever Python looks at."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad

from orderscope.task.per_sample import each_sample

X = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [3.0, 0.0], [-2.0, -2.0], [1.0, 2.0]])
W = torch.tensor([0.5, -1.0])


def branching(w, x):
    if x.sum() > 0:
        return (w * x).sum() ** 2
    return (w * x).sum() * 3


def nested(w, x):
    y = (w * x).sum()
    if y > 0:  # depends on what is differentiated
        y = y**3
        if x[0] > 2:
            y = y * 2
    return y


def reading(w, x):
    return (w * x).sum() * x[0].item() + float(x[1]) * int(x[0]) * w[0]


def looping(w, x):
    y = w.sum()
    for _ in range(int(x[0].abs())):
        y = y * x[1]
    return y


def shared(w, x):
    return (w * x).sum() ** 2 if w.sum() < 0 else (w * x).sum()


@pytest.mark.parametrize("f", [branching, nested, reading, looping, shared])
def test_gradients_are_those_of_each_sample_alone(f):
    together = each_sample(grad(f), (None, 0))(W, X)
    alone = torch.stack([grad(f)(W, x) for x in X])
    torch.testing.assert_close(together, alone)


def test_trees_in_and_out():
    def f(w, sample):
        if sample["flag"]:
            return {"a": w * sample["x"], "b": [sample["x"].sum()]}
        return {"a": w - sample["x"], "b": [sample["x"].prod()]}

    flags = torch.tensor([True, False, False, True, False])
    out = each_sample(f, (None, 0))(W, {"x": X, "flag": flags})
    torch.testing.assert_close(out["a"], torch.where(flags[:, None], W * X, W - X))
    torch.testing.assert_close(out["b"][0], torch.where(flags, X.sum(1), X.prod(1)))


def test_attention_has_a_batching_rule():
    q = torch.randn(3, 1, 2, 4, 4, generator=torch.Generator().manual_seed(0))

    def f(q):
        return F.scaled_dot_product_attention(q, q, q, is_causal=True).pow(2).sum()

    torch.testing.assert_close(each_sample(grad(f), (0,))(q), torch.stack([grad(f)(x) for x in q]))


def test_other_axes_inside_and_outside():
    def f(w, x):
        return torch.func.vmap(lambda c: c * branching(w, x))(torch.arange(4.0))

    alone = torch.stack([torch.arange(4.0) * branching(W, x) for x in X])
    torch.testing.assert_close(each_sample(f, (None, 0))(W, X), alone)

    def total(w):
        return each_sample(branching, (None, 0))(w, X).sum()

    torch.testing.assert_close(grad(total)(W), sum(grad(branching)(W, x) for x in X))

    def inner(x):
        return torch.func.vmap(lambda c: c if c * x[0] > 0 else -c)(X[:, 0])

    with pytest.raises(RuntimeError, match="vmap"):
        each_sample(inner, (0,))(X)


def test_answers_that_are_no_numbers():
    x = torch.tensor([[torch.nan, 1.0], [torch.nan, 2.0], [1.0, 3.0]])
    out = each_sample(lambda x: x[1] if x[0] > 0 else x[1] * float(x[0] != x[0]), (0,))(x)
    torch.testing.assert_close(out, torch.tensor([1.0, 2.0, 3.0]))
    out = each_sample(lambda x: x[1] + (x[0].item() if x[0] == x[0] else 0), (0,))(x)
    torch.testing.assert_close(out, torch.tensor([1.0, 2.0, 4.0]))


def test_what_is_left_is_refused():
    with pytest.raises(RuntimeError, match="vmap"):
        each_sample(lambda x: x[x > 0].sum(), (0,))(X)
    with pytest.raises(RuntimeError, match="random"):
        each_sample(lambda x: x + torch.rand(2), (0,))(X)
    torch.testing.assert_close(each_sample(lambda x: x * 2, (0,))(X), X * 2)  # and leaves nothing behind
