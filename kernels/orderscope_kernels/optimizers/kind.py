"""What a replay has to know of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orderscope_kernels.shapes import Float

Options = Mapping[str, Any]
Back = Callable[..., tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class StateKey:
    """One entry of an optimizer's state, kept as a vector over the coordinates of the parameter.

    Args:
        name: key in `optimizer.state[parameter]`.
        option: one of `Kind.options`, without which there is no such entry; None where there always is.
        scalar: whether torch keeps one number a parameter instead of a tensor of its shape. The vector then repeats it,
            in the number's own type.
        initial: value before the first step.
    """

    name: str
    option: str | None = None
    scalar: bool = False
    initial: float = 0.0

    def start(self, like: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The vector before the first step, in the shape of `like`."""
        if not self.scalar:
            return torch.full_like(like, self.initial)
        wide = torch.get_default_dtype() == torch.float64
        return torch.full_like(like, self.initial, dtype=torch.float64 if wide else torch.float32)

    def of_torch(self, value: Float[Tensor, ...] | None, parameter: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The vector for what torch keeps, in the parameter's shape.

        Args:
            value: in `optimizer.state[parameter]`; None where nothing is kept yet.
            parameter: for the shape.
        """
        if value is None:
            return self.start(parameter)
        return torch.full_like(parameter, float(value), dtype=value.dtype) if self.scalar else value

    def for_torch(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, ...]:
        """The other way round: what torch keeps, from the vector in the parameter's shape; a copy."""
        return values.flatten()[0].clone() if self.scalar else values.clone()


@dataclass(frozen=True)
class Kind:
    """An optimizer of torch.optim, as a replay carries it.

    Args:
        name: of its class in torch.optim.
        keys: of its state.
        options: numeric options, lr apart; `betas` of torch are beta1 and beta2 here, and
            `decoupled_weight_decay` is `decoupled`.
        counts: whether it counts its steps (`step` in torch's state). A step then reads `count`, the number of the step
            being taken, from 1; otherwise it reads `first`, whether there is no state yet.
        moment: key of the running mean of gradients.
        seconds: keys of what steps are divided by the root of, the one that is used if present first; empty where
            steps are not divided.
        update: `update(theta, gradient, state, options)`: one step in place. theta and gradient [rows, coords]; state:
            key -> [rows, coords]; options: those above and `lr`, a number or [rows, 1].
        back: `back(h, weights, moment, preconditioner, count=, first=)`: the adjoint of one step whose preconditioner D
            is frozen. h: options of the step with lr; weights, moment: adjoints of the weights and the running mean
            after the step, [..., coords]; preconditioner: D [coords], None where `seconds` is empty. Returns the
            adjoints of the gradient, of the weights before and of the running mean before.
        direction: `direction(h, g, theta, state, count=, first=)`: the update as a smooth function, Gamma in
            theta <- theta - lr Gamma(g, theta), elementwise and without writing in place; state: key -> [coords].
        preconditioner: `preconditioner(h, second, count)`: D [coords] of a second moment after step `count`; None where
            `seconds` is empty.
    """

    name: str
    keys: tuple[StateKey, ...]
    options: tuple[str, ...]
    counts: bool
    moment: str
    seconds: tuple[str, ...]
    update: Callable[[Tensor, Tensor, Mapping[str, Tensor], Options], None]
    back: Back
    direction: Callable[..., Tensor]
    preconditioner: Callable[[Options, Tensor, float], Tensor] | None = None

    @property
    def recorded(self) -> tuple[str, ...]:
        """What is noted of every step, in the order in which it is stored."""
        return ("lr", *self.options)

    @property
    def torch_class(self) -> Any:
        return getattr(torch.optim, self.name)

    def second(self, state: Mapping[str, Tensor]) -> Tensor | None:
        """What steps are divided by the root of, if anything."""
        return next((state[key] for key in self.seconds if key in state), None)
