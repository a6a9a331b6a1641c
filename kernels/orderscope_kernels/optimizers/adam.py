"""torch.optim.Adam and AdamW, with amsgrad. eps is added outside the root, as torch does."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from orderscope_kernels.optimizers.kind import Kind, Options, StateKey
from orderscope_kernels.shapes import Float


def adam_update(
    theta: Float[Tensor, "rows coords"],
    gradient: Float[Tensor, "rows coords"],
    exp_avg: Float[Tensor, "rows coords"],
    exp_avg_sq: Float[Tensor, "rows coords"],
    max_exp_avg_sq: Float[Tensor, "rows coords"] | None,
    *,
    count: float | Float[Tensor, "rows 1"],
    lr: float | Float[Tensor, "rows 1"],
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: float,
    maximize: float,
) -> None:
    """One step in place, with the bits of torch's own single-tensor code:

        m <- beta1 m + (1 - beta1) g,    v <- beta2 v + (1 - beta2) g^2,
        theta <- theta - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps).

    Args:
        theta: weights, [rows, coords].
        gradient: already clipped, [rows, coords].
        exp_avg: m, the running mean of gradients, [rows, coords].
        exp_avg_sq: v, that of their squares, [rows, coords].
        max_exp_avg_sq: the largest v so far, which is used instead of v, [rows, coords]; None without amsgrad.
        count: t, the number of the step being taken, from 1; a number or [rows, 1].
        lr: learning rate, a number or [rows, 1].
        beta1: share of m that is kept a step, in [0, 1).
        beta2: share of v that is kept a step, in [0, 1).
        eps: added to the root, > 0.
        weight_decay: lambda, >= 0.
        decoupled: whether weights are decayed by themselves (AdamW) rather than through the gradient.
        maximize: whether to step against the gradient's sign.
    """
    gradient = decayed(theta, gradient, lr, weight_decay, decoupled, maximize)
    exp_avg.lerp_(gradient, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    correction1, correction2 = 1 - beta1**count, 1 - beta2**count
    second = exp_avg_sq
    if max_exp_avg_sq is not None:
        torch.maximum(max_exp_avg_sq, exp_avg_sq, out=max_exp_avg_sq)
        second = max_exp_avg_sq
    denominator = (second.sqrt() / correction2**0.5).add_(eps)
    size = lr / correction1
    if isinstance(size, Tensor):
        theta.sub_(size * exp_avg / denominator)
    else:
        theta.addcdiv_(exp_avg, denominator, value=-size)


def decayed(
    theta: Float[Tensor, "rows coords"],
    gradient: Float[Tensor, "rows coords"],
    lr: float | Float[Tensor, "rows 1"],
    weight_decay: float,
    decoupled: float,
    maximize: float,
) -> Float[Tensor, "rows coords"]:
    """The gradient as the moments see it, [rows, coords]; decoupled decay is done on `theta`, in place. Arguments as
    `adam_update`.

    Args:
        theta: weights, [rows, coords].
        gradient: already clipped, [rows, coords].
        lr: learning rate, a number or [rows, 1].
        weight_decay: lambda, >= 0.
        decoupled: whether weights are decayed by themselves.
        maximize: whether to step against the gradient's sign.
    """
    if maximize:
        gradient = -gradient
    if weight_decay == 0:
        return gradient
    if decoupled:
        theta.mul_(1 - lr * weight_decay)
        return gradient
    return gradient.add(theta, alpha=weight_decay)


def adam_back(
    h: Options,
    weights: Float[Tensor, "*rows coords"],
    moment: Float[Tensor, "*rows coords"],
    preconditioner: Float[Tensor, " coords"] | None,
    *,
    count: float,
    first: bool,
) -> tuple[Float[Tensor, "*rows coords"], Float[Tensor, "*rows coords"], Float[Tensor, "*rows coords"]]:
    """Adjoint of one step; arguments and results as `Kind.back`, of which `first` is not used."""
    assert preconditioner is not None
    moment = moment - h["lr"] / (1 - h["beta1"] ** count) * preconditioner * weights
    gradient = (1 - h["beta1"]) * moment
    return gradient, decay_back(h, weights, gradient), h["beta1"] * moment


def decay_back(
    h: Options, weights: Float[Tensor, "*rows coords"], gradient: Float[Tensor, "*rows coords"]
) -> Float[Tensor, "*rows coords"]:
    """Adjoint of the weights before a step, from those of the weights after it and of the gradient, [..., coords].

    Args:
        h: options of the step by name, lr among them.
        weights: adjoint of the weights after the step, [..., coords].
        gradient: adjoint of the gradient, [..., coords].
    """
    return weights * (1 - h["lr"] * h["weight_decay"]) if h["decoupled"] else weights + h["weight_decay"] * gradient


def adam_preconditioner(h: Options, second: Float[Tensor, " coords"], count: float) -> Float[Tensor, " coords"]:
    """D = 1 / (sqrt(v / (1 - beta2^t)) + eps), [coords]; arguments as `Kind.preconditioner`.

    Args:
        h: options of the step by name, lr among them.
        second: v after the step, [coords].
        count: t, the number of the step, from 1.
    """
    return 1 / ((second / (1 - h["beta2"] ** count)).sqrt() + h["eps"])


def adam_direction(
    h: Options,
    g: Float[Tensor, "*rows coords"],
    theta: Float[Tensor, "*rows coords"],
    state: Mapping[str, Tensor],
    *,
    count: float,
    first: bool,
) -> Float[Tensor, "*rows coords"]:
    """Gamma, elementwise; arguments as `Kind.direction`, of which `first` is not used.

    Example:
        >>> h = {"beta1": 0.9, "beta2": 0.99, "eps": 0.0, "weight_decay": 0.0, "decoupled": 0.0}
        >>> zero = torch.zeros(2)
        >>> state = {"exp_avg": zero, "exp_avg_sq": zero}
        >>> g = torch.tensor([3.0, -0.1])
        >>> adam_direction(h, g, zero, state, count=1, first=True).round(decimals=3)  # the sign
        tensor([ 1., -1.])
    """
    g, m, denominator = smooth_moments(h, g, theta, state, count)
    gamma = (m / (1 - h["beta1"] ** count)) / denominator
    return gamma + h["weight_decay"] * theta if h["weight_decay"] and h["decoupled"] else gamma


def smooth_moments(
    h: Options,
    g: Float[Tensor, "*rows coords"],
    theta: Float[Tensor, "*rows coords"],
    state: Mapping[str, Tensor],
    count: float,
) -> tuple[Float[Tensor, "*rows coords"], Float[Tensor, "*rows coords"], Float[Tensor, "*rows coords"]]:
    """Gradient as the moments see it, m and sqrt(v / (1 - beta2^t)) + eps after a step, [..., coords] each.

    Where the second moment is zero its root has no derivative; none is taken there. Arguments as `Kind.direction`.

    Args:
        h: options of the step by name, lr among them.
        g: gradient, already clipped, [..., coords].
        theta: weights before the step, [..., coords].
        state: moments before the step, key -> [..., coords].
        count: t, the number of the step, from 1.
    """
    g = -g if h.get("maximize") else g
    if h["weight_decay"] and not h["decoupled"]:
        g = g + h["weight_decay"] * theta
    first = h["beta1"] * state["exp_avg"] + (1 - h["beta1"]) * g
    second = h["beta2"] * state["exp_avg_sq"] + (1 - h["beta2"]) * g * g
    if h.get("amsgrad") and "max_exp_avg_sq" in state:
        second = torch.maximum(second, state["max_exp_avg_sq"])
    seen = second > 0
    root = torch.where(seen, second, torch.ones_like(second)).sqrt() * seen
    return g, first, root / (1 - h["beta2"] ** count) ** 0.5 + h["eps"]


def _update(theta: Tensor, gradient: Tensor, state: Mapping[str, Tensor], options: Options) -> None:
    own = {name: value for name, value in options.items() if name != "amsgrad"}  # it shows in the state
    adam_update(theta, gradient, state["exp_avg"], state["exp_avg_sq"], state.get("max_exp_avg_sq"), **own)


def _kind(name: str) -> Kind:
    return Kind(
        name=name,
        keys=(StateKey("exp_avg"), StateKey("exp_avg_sq"), StateKey("max_exp_avg_sq", option="amsgrad")),
        options=("weight_decay", "beta1", "beta2", "eps", "amsgrad", "decoupled", "maximize"),
        counts=True,
        moment="exp_avg",
        seconds=("max_exp_avg_sq", "exp_avg_sq"),
        update=_update,
        back=adam_back,
        direction=adam_direction,
        preconditioner=adam_preconditioner,
    )


ADAM, ADAMW = _kind("Adam"), _kind("AdamW")
