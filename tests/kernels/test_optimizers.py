"""Laws that hold for every optimizer in the table; each is also held against torch.optim (tests/engine)."""

import re
from pathlib import Path

import pytest
import torch

from kernel_cases import ADAM, OPTIMIZERS, made_states
from law_optimizers import MAKE
from orderscope_kernels.optimizers import KINDS, StateKey
from tasks_tiny import generator

LIMITS = Path(__file__).parents[2] / "docs" / "limits.md"
LARGE = 1e12  # a second moment that one more gradient does not change


def prepared(name):
    """Kind, options, weights, gradient and state of two rows in float64."""
    optimizer, options = OPTIMIZERS[name]
    theta, state, _ = made_states(name, 6)
    g = torch.randn(2, 6, generator=generator(3), dtype=torch.float64)
    return KINDS[optimizer], options, theta[:2].double(), g, {key: value[:2].double() for key, value in state.items()}


def test_every_kind_has_cases_and_its_place_on_the_page():
    assert {optimizer for optimizer, _ in OPTIMIZERS.values()} == set(KINDS)
    assert {type(make([torch.zeros(1)])).__name__ for make in MAKE.values()} == set(KINDS)
    (said,) = [text for text in LIMITS.read_text().split("\n\n") if text.startswith("**Optimizers.**")]
    assert set(KINDS) <= set(re.findall(r"\w+", said))


@pytest.mark.parametrize("name", KINDS)
def test_the_table_is_torchs(name):
    """Class, state and options are what an optimizer of that name really has."""
    kind, parameter = KINDS[name], torch.zeros(3, requires_grad=True)
    optimizer = kind.torch_class([parameter], lr=0.1)
    given = {"momentum": 0.9, "amsgrad": True}
    optimizer.param_groups[0].update({k: v for k, v in given.items() if k in optimizer.param_groups[0]})
    parameter.grad = torch.ones(3)
    optimizer.step()
    own = optimizer.state[parameter]
    assert {key.name for key in kind.keys} | ({"step"} if kind.counts else set()) == set(own)
    assert {key.name for key in kind.keys if key.scalar} == {k for k, v in own.items() if not v.shape} - {"step"}
    torch_names = {"beta1": "betas", "beta2": "betas", "decoupled": "decoupled_weight_decay"}
    for option in kind.options:
        assert torch_names.get(option, option) in optimizer.param_groups[0]
    assert kind.moment in {key.name for key in kind.keys}
    assert set(kind.seconds) < {key.name for key in kind.keys}
    assert (kind.preconditioner is None) == (not kind.seconds)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_smooth_form_is_the_step(name):
    """theta - lr Gamma."""
    kind, options, theta, gradient, state = prepared(name)
    stepped, moved = theta.clone(), {key: value.clone() for key, value in state.items()}
    kind.update(stepped, gradient, moved, options)
    count, first = options.get("count", 1.0), options.get("first", False)
    if "amsgrad" in name:
        options = options | {"amsgrad": 1.0}
    gamma = kind.direction(options, gradient, theta, state, count=count, first=first)
    torch.testing.assert_close(theta - options["lr"] * gamma, stepped, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_adjoint_is_that_of_the_step(name):
    """With the preconditioner frozen a step is affine in gradient, weights and running mean: a difference of two steps
    shows its Jacobian. P of NAdam is that of its own steps."""
    kind, options, theta, gradient, state = prepared(name)
    for key in kind.seconds:
        if key in state:
            state[key].fill_(LARGE)
    if "mu_product" in state:
        mu = [options["beta1"] * (1 - 0.5 * 0.96 ** (t * options["momentum_decay"])) for t in (1, 2)]
        state["mu_product"].fill_(mu[0] * mu[1])  # before step 3
    options = options | {"lr": 1e4 if kind.seconds else 0.1, "weight_decay": 1e-5 if kind.seconds else 0.1}
    mean = state.get(kind.moment, torch.zeros_like(theta))

    def after(gradient, theta, mean):
        theta, own = theta.clone(), {key: value.clone() for key, value in state.items()}
        if kind.moment in own:
            own[kind.moment] = mean.clone()
        kind.update(theta, gradient, own, options)
        return theta, own.get(kind.moment, torch.zeros_like(theta)), own

    g = generator(5)
    weights, moment, d_gradient, d_theta, d_mean = torch.randn(5, 2, 6, generator=g, dtype=torch.float64)
    theta_0, mean_0, own = after(gradient, theta, mean)
    theta_1, mean_1, _ = after(gradient + d_gradient, theta + d_theta, mean + d_mean)
    count, first = options.get("count", 1.0), options.get("first", False)
    second = kind.second(own)
    scale = None if second is None or kind.preconditioner is None else kind.preconditioner(options, second[0], count)
    back = kind.back(options, weights, moment, scale, count=count, first=first)
    sign = -1.0 if options["maximize"] else 1.0  # the adjoint is that of the gradient as the step sees it
    forward = (weights * (theta_1 - theta_0)).sum() + (moment * (mean_1 - mean_0)).sum()
    backward = sign * (back[0] * d_gradient).sum() + (back[1] * d_theta).sum() + (back[2] * d_mean).sum()
    torch.testing.assert_close(backward, forward, rtol=1e-8, atol=1e-10)


def test_a_number_of_torchs_state_is_kept_as_a_vector():
    key, parameter = StateKey("mu_product", scalar=True, initial=1.0), torch.zeros(2, 3, dtype=torch.bfloat16)
    vector = key.of_torch(torch.tensor(0.123456789), parameter)
    assert vector.shape == (2, 3)
    assert vector.dtype == torch.float32  # not the parameter's type, which would round it
    assert torch.equal(key.for_torch(vector), torch.tensor(0.123456789))
    assert torch.equal(key.of_torch(None, parameter), torch.ones(2, 3))


def test_rows_of_one_step_may_have_taken_others_before():
    """NAdam's P differs where another schedule of beta1 came before: each row is stepped by its own."""
    kind, options = KINDS["NAdam"], ADAM | {"momentum_decay": 0.04}
    g = generator(7)
    theta, gradient = torch.randn(2, 2, 5, generator=g, dtype=torch.float64)
    state = {key.name: torch.rand(2, 5, generator=g, dtype=torch.float64) for key in kind.keys}
    state["mu_product"] = torch.tensor([[0.3], [0.6]], dtype=torch.float64).expand(2, 5).clone()
    both, own = theta.clone(), {key: value.clone() for key, value in state.items()}
    kind.update(both, gradient, own, options)
    for row in range(2):
        on = slice(row, row + 1)
        alone, state_of_it = theta[on].clone(), {key: value[on].clone() for key, value in state.items()}
        kind.update(alone, gradient[on], state_of_it, options)
        torch.testing.assert_close(both[on], alone, rtol=1e-14, atol=1e-14)
