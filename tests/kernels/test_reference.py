"""The plain arithmetic against torch.optim, bit for bit, and against einsum."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernel_cases import made_terms
from orderscope_kernels.optimizers.adam import adam_update
from orderscope_kernels.optimizers.sgd import sgd_update
from orderscope_kernels.reference import (
    displacement_products,
    entry_products,
    gather_entries,
    predicted_gradient,
)
from tasks_tiny import generator

ADAM = {
    "adam": (torch.optim.Adam, {}),
    "coupled decay": (torch.optim.Adam, {"weight_decay": 0.1}),
    "betas, eps": (torch.optim.Adam, {"betas": (0.5, 0.7), "eps": 1e-3}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "maximize": (torch.optim.Adam, {"maximize": True}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "adamw amsgrad": (torch.optim.AdamW, {"amsgrad": True, "maximize": True}),
}
SGD = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.3},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "maximize": {"momentum": 0.5, "maximize": True},
}
ROWS, STEPS = 3, 5


def gradients(coords, dtype):
    """Some large, some tiny, some exactly zero."""
    g = generator(1)
    rows = torch.randn(STEPS, ROWS, coords, generator=g, dtype=dtype)
    rows = rows * 10.0 ** torch.randint(-9, 3, rows.shape, generator=g)
    return rows.where(torch.rand(rows.shape, generator=g) > 0.1, torch.zeros(()))


def by_torch(make, start, grads, lrs):
    """Each row trained by torch's own optimizer, the learning rate set anew at every step."""
    parameters = [row.clone().requires_grad_() for row in start]
    optimizers = [make([p]) for p in parameters]
    for t, rows in enumerate(grads):
        for p, optimizer, grad in zip(parameters, optimizers, rows, strict=True):
            optimizer.param_groups[0]["lr"] = lrs[t]
            p.grad = grad.clone()
            optimizer.step()
    return torch.stack([p.detach() for p in parameters])


@pytest.mark.parametrize("coords", [1, 63, 1000])
@pytest.mark.parametrize("name", ADAM)
def test_adam_has_the_bits_of_torch(name, coords):
    kind, options = ADAM[name]
    for dtype in (torch.float32, torch.float64):
        start, grads = torch.randn(ROWS, coords, generator=generator(2), dtype=dtype), gradients(coords, dtype)
        lrs = [1e-2 / (t + 1) for t in range(STEPS)]
        theta, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
        largest = torch.zeros_like(start) if options.get("amsgrad") else None
        default = kind([torch.zeros(1)]).defaults | options
        for t, g in enumerate(grads):
            adam_update(
                theta, g, first, second, largest, count=t + 1, lr=lrs[t], beta1=default["betas"][0],
                beta2=default["betas"][1], eps=default["eps"], weight_decay=default["weight_decay"],
                decoupled=kind is torch.optim.AdamW, maximize=default["maximize"],
            )  # fmt: skip
        assert torch.equal(theta, by_torch(lambda p: kind(p, **options), start, grads, lrs))


@pytest.mark.parametrize("coords", [1, 63, 1000])
@pytest.mark.parametrize("name", SGD)
def test_sgd_has_the_bits_of_torch(name, coords):
    options = SGD[name]
    start, grads = torch.randn(ROWS, coords, generator=generator(2)), gradients(coords, torch.float32)
    lrs = [1e-2 / (t + 1) for t in range(STEPS)]
    theta = start.clone()
    buffer = torch.zeros_like(start) if options.get("momentum") else None
    default = torch.optim.SGD([torch.zeros(1)]).defaults | options
    for t, g in enumerate(grads):
        sgd_update(
            theta, g, buffer, first=t == 0, lr=lrs[t], momentum=default["momentum"], dampening=default["dampening"],
            nesterov=default["nesterov"], weight_decay=default["weight_decay"], maximize=default["maximize"],
        )  # fmt: skip
    assert torch.equal(theta, by_torch(lambda p: torch.optim.SGD(p, **options), start, grads, lrs))


def test_learning_rates_of_single_rows():
    """One rate a row: torch's arithmetic up to rounding, since the scalar is a tensor here."""
    start, grads = torch.randn(ROWS, 50, generator=generator(2)), gradients(50, torch.float32)
    rates = torch.tensor([[1e-2], [3e-3], [0.0]])
    adam, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    plain = start.clone()
    for t, g in enumerate(grads):
        adam_update(adam, g, first, second, None, count=t + 1, lr=rates, beta1=0.9, beta2=0.999, eps=1e-8,
                    weight_decay=0.1, decoupled=True, maximize=False)  # fmt: skip
        sgd_update(plain, g, None, first=t == 0, lr=rates, momentum=0.0, dampening=0.0, nesterov=False,
                   weight_decay=0.1, maximize=False)  # fmt: skip
    for row, rate in enumerate(rates[:, 0].tolist()):
        own, lrs = slice(row, row + 1), [rate] * STEPS
        true = by_torch(lambda p: torch.optim.AdamW(p, weight_decay=0.1), start[own], grads[:, own], lrs)
        torch.testing.assert_close(adam[own], true, rtol=1e-6, atol=1e-6)
        true = by_torch(lambda p: torch.optim.SGD(p, weight_decay=0.1), start[own], grads[:, own], lrs)
        torch.testing.assert_close(plain[own], true, rtol=1e-6, atol=1e-6)


def test_rows_that_take_their_first_step_at_different_times():
    theta, buffer = torch.zeros(2, 3), torch.ones(2, 3)
    sgd_update(theta, torch.full((2, 3), 2.0), buffer, first=torch.tensor([[True], [False]]), lr=1.0, momentum=0.5,
               dampening=0.0, nesterov=False, weight_decay=0.0, maximize=False)  # fmt: skip
    assert buffer[:, 0].tolist() == [2.0, 2.5]
    assert theta[:, 0].tolist() == [-2.0, -2.5]


shapes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.sampled_from([1, 7, 63]), st.integers(1, 6))


@given(shapes, st.integers(0, 10**6))
def test_gathering_is_a_weighted_sum_of_entries(shape, seed):
    units, anchors, coords, rows = shape
    g = generator(seed)
    table = torch.randn(units * anchors, coords, generator=g, dtype=torch.float64)
    weights = torch.randn(rows, anchors, generator=g, dtype=torch.float64)
    index = torch.randint(0, units, (rows, 1), generator=g) * anchors + torch.arange(anchors)
    poisoned = table.clone()
    poisoned[[e for e in range(len(table)) if e not in index]] = torch.nan
    expected = torch.einsum("oa,oac->oc", weights, table[index])
    torch.testing.assert_close(gather_entries(poisoned, index, weights), expected)
    short = gather_entries(poisoned.bfloat16(), index, weights)
    torch.testing.assert_close(short, torch.einsum("oa,oac->oc", weights, table.bfloat16()[index].double()))
    vectors = torch.randn(rows, coords, generator=g, dtype=torch.float64)
    torch.testing.assert_close(
        entry_products(poisoned, index, vectors), torch.einsum("oac,oc->oa", table[index], vectors)
    )


@given(shapes, st.integers(0, 10**6))
def test_on_an_anchor_the_entrys_own_bits_come_back(shape, seed):
    units, anchors, coords, rows = shape
    g = generator(seed)
    table = torch.randn(units * anchors, coords, generator=g)
    index = torch.randint(0, units, (rows, 1), generator=g) * anchors + torch.arange(anchors)
    anchor = torch.randint(0, anchors, (rows,), generator=g)
    weights = torch.nn.functional.one_hot(anchor, anchors).float()
    assert torch.equal(gather_entries(table, index, weights), table[index[torch.arange(rows), anchor]])


@pytest.mark.parametrize("rank", [1, 70])
def test_products_and_gradient_use_a_rows_own_range_of_the_factor(rank):
    terms = made_terms(9, 40, rank=rank)
    column = torch.arange(rank)
    used = (column >= terms.ranges[:, :1]) & (column < terms.ranges[:, 1:])
    states = torch.randn(11, 40, generator=generator(4))
    at, start = torch.arange(9) + 1, torch.ones(40)
    found = displacement_products(states, start, at, torch.ones(15, 40), terms.index, terms.factor, terms.ranges)
    d = states[1:10] - 1
    torch.testing.assert_close(found.curved, (d @ terms.factor.T) * used, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.along, d.sum(1, keepdim=True).expand(9, 3), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.square, d.pow(2).sum(1))
    gathered = gather_entries(terms.table, terms.index, terms.weights)
    expected = gathered + terms.coefficients @ terms.factor
    torch.testing.assert_close(predicted_gradient(terms), expected, rtol=1e-5, atol=1e-5)
