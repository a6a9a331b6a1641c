"""torch.optim.NAdam: Adam with Nesterov's momentum, whose strength mu grows with the steps.

    mu_t = beta1 (1 - 1/2 0.96^(t psi)),    P_t = mu_1 ... mu_t,    psi = momentum_decay

Source: Dozat, "Incorporating Nesterov momentum into Adam", 2016.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor

from orderscope_kernels.optimizers.adam import adam_preconditioner, decay_back, decayed, smooth_moments
from orderscope_kernels.optimizers.kind import Kind, Options, StateKey
from orderscope_kernels.shapes import Float


def strength(beta1: float, momentum_decay: float, count: float) -> float:
    """mu_t of step t = `count`, from 1.

    Args:
        beta1: of NAdam, in [0, 1).
        momentum_decay: psi, >= 0.
        count: t, from 1.
    """
    return beta1 * (1.0 - 0.5 * (0.96 ** (count * momentum_decay)))


def nadam_update(
    theta: Float[Tensor, "rows coords"],
    gradient: Float[Tensor, "rows coords"],
    exp_avg: Float[Tensor, "rows coords"],
    exp_avg_sq: Float[Tensor, "rows coords"],
    mu_product: Float[Tensor, "rows coords"],
    *,
    count: float,
    lr: float | Float[Tensor, "rows 1"],
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    momentum_decay: float,
    decoupled: float,
    maximize: float,
) -> None:
    """One step in place, with the bits of torch's own single-tensor code where all rows have the same P:

        m <- beta1 m + (1 - beta1) g,    v <- beta2 v + (1 - beta2) g^2,    P <- mu_t P,
        u = (1 - mu_t) / (1 - P) g  +  mu_(t+1) / (1 - P mu_(t+1)) m,
        theta <- theta - lr u / (sqrt(v / (1 - beta2^t)) + eps).

    Args:
        theta: weights, [rows, coords].
        gradient: already clipped, [rows, coords].
        exp_avg: m, the running mean of gradients, [rows, coords].
        exp_avg_sq: v, that of their squares, [rows, coords].
        mu_product: P, the same number on all coordinates of a parameter, [rows, coords].
        count: t, the number of the step being taken, from 1.
        lr: learning rate, a number or [rows, 1].
        beta1: share of m that is kept a step, in [0, 1).
        beta2: share of v that is kept a step, in [0, 1).
        eps: added to the root, > 0.
        weight_decay: lambda, >= 0.
        momentum_decay: psi, >= 0.
        decoupled: whether weights are decayed by themselves rather than through the gradient.
        maximize: whether to step against the gradient's sign.
    """
    gradient = decayed(theta, gradient, lr, weight_decay, decoupled, maximize)
    mu, after = strength(beta1, momentum_decay, count), strength(beta1, momentum_decay, count + 1)
    mu_product.mul_(mu)
    exp_avg.lerp_(gradient, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = exp_avg_sq.div(1 - beta2**count).sqrt().add_(eps)
    alike = mu_product.numel() == 0 or bool((mu_product == mu_product[0, 0]).all())
    if isinstance(lr, Tensor) or not alike:
        along = lr * (1 - mu) / (1 - mu_product) * gradient + lr * after / (1 - mu_product * after) * exp_avg
        theta.sub_((along / denominator).to(theta.dtype))
        return
    product = float(mu_product[0, 0]) if mu_product.numel() else 0.0
    theta.addcdiv_(gradient, denominator, value=-lr * (1.0 - mu) / (1.0 - product))
    theta.addcdiv_(exp_avg, denominator, value=(-lr * after) / (1.0 - product * after))


def nadam_back(
    h: Options,
    weights: Float[Tensor, "*rows coords"],
    moment: Float[Tensor, "*rows coords"],
    preconditioner: Float[Tensor, " coords"] | None,
    *,
    count: float,
    first: bool,
) -> tuple[Float[Tensor, "*rows coords"], Float[Tensor, "*rows coords"], Float[Tensor, "*rows coords"]]:
    """Adjoint of one step; arguments and results as `Kind.back`, of which `first` is not used.

    P is that of a run with the same beta1 and momentum_decay at every step.
    """
    assert preconditioner is not None
    plain, ahead = _shares(h, count, prod(strength(h["beta1"], h["momentum_decay"], t + 1) for t in range(int(count))))
    scaled = -h["lr"] * preconditioner * weights
    moment = moment + ahead * scaled
    gradient = (1 - h["beta1"]) * moment + plain * scaled
    return gradient, decay_back(h, weights, gradient), h["beta1"] * moment


def nadam_direction(
    h: Options,
    g: Float[Tensor, "*rows coords"],
    theta: Float[Tensor, "*rows coords"],
    state: Mapping[str, Tensor],
    *,
    count: float,
    first: bool,
) -> Float[Tensor, "*rows coords"]:
    """Gamma, elementwise; arguments as `Kind.direction`, of which `first` is not used."""
    g, m, denominator = smooth_moments(h, g, theta, state, count)
    mu = strength(h["beta1"], h["momentum_decay"], count)
    plain, ahead = _shares(h, count, (state["mu_product"] * mu).to(g.dtype))
    gamma = (plain * g + ahead * m) / denominator
    return gamma + h["weight_decay"] * theta if h["weight_decay"] and h["decoupled"] else gamma


def _shares(h: Options, count: float, product: Any) -> tuple[Any, Any]:
    """What gradient and running mean count in a step after which P is `product`, a number or [..., coords]."""
    mu, after = (strength(h["beta1"], h["momentum_decay"], t) for t in (count, count + 1))
    return (1 - mu) / (1 - product), after / (1 - product * after)


def _update(theta: Tensor, gradient: Tensor, state: Mapping[str, Tensor], options: Options) -> None:
    nadam_update(theta, gradient, state["exp_avg"], state["exp_avg_sq"], state["mu_product"], **options)


NADAM = Kind(
    name="NAdam",
    keys=(StateKey("exp_avg"), StateKey("exp_avg_sq"), StateKey("mu_product", scalar=True, initial=1.0)),
    options=("weight_decay", "beta1", "beta2", "eps", "momentum_decay", "decoupled", "maximize"),
    counts=True,
    moment="exp_avg",
    seconds=("exp_avg_sq",),
    update=_update,
    back=nadam_back,
    direction=nadam_direction,
    preconditioner=adam_preconditioner,
)
