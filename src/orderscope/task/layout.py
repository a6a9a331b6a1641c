"""The flat vector of parameters: which entry of [P] belongs to which tensor of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod

import torch
from torch import Tensor, nn

from orderscope.errors import OrderscopeError


@dataclass(frozen=True)
class ParameterLayout:
    """Trainable parameters in `model.named_parameters()` order, tied ones once, those the optimizer holds.

    Args:
        names: parameter names.
        shapes: their shapes.
        group: index of the optimizer's parameter group each belongs to.
        dtype: the one floating dtype they share.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    group: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, model: nn.Module, optimizer: torch.optim.Optimizer) -> ParameterLayout:
        """The layout of a model's parameters that an optimizer trains, in the model's order.

        Args:
            model: with the parameters.
            optimizer: over some or all of them.

        Raises:
            OrderscopeError: parameters that are not the model's, sparse, complex or of several types, or none at all.
        """
        own = {id(p) for p in model.parameters()}
        group_of = {id(p): g for g, group in enumerate(optimizer.param_groups) for p in group["params"]}
        foreign = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in own]
        if foreign:
            raise OrderscopeError(
                f"{len(foreign)} tensor(s) in the optimizer that are not parameters of the model "
                f"(shape {list(foreign[0].shape)})",
                "an optimizer over parameters of the model",
                "build the optimizer from the parameters it is given",
            )
        held = [(n, p) for n, p in model.named_parameters() if p.requires_grad and id(p) in group_of]
        if not held:
            raise OrderscopeError(
                "no trainable parameter in the optimizer",
                "at least one parameter with requires_grad=True",
                "check which parameters model() freezes and optimizer() takes",
            )
        for name, p in held:
            if p.layout != torch.strided or not p.is_floating_point():
                raise OrderscopeError(
                    f"parameter {name!r} of dtype {p.dtype}, layout {p.layout}",
                    "dense parameters of a real floating dtype",
                    "freeze it (requires_grad_(False)) or use a dense real parameter",
                )
        dtypes = {p.dtype: name for name, p in held}
        if len(dtypes) > 1:
            raise OrderscopeError(
                "trainable parameters of several dtypes: " + ", ".join(f"{n!r} is {d}" for d, n in dtypes.items()),
                "one floating dtype for all trainable parameters",
                "cast the model in model(), for instance model.float()",
            )
        return cls(
            names=tuple(n for n, _ in held),
            shapes=tuple(tuple(p.shape) for _, p in held),
            group=tuple(group_of[id(p)] for _, p in held),
            dtype=held[0][1].dtype,
        )

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(prod(shape) for shape in self.shapes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Start of each parameter in [P], and P as the last entry."""
        return (0, *accumulate(self.sizes))

    @property
    def size(self) -> int:
        """P, the number of coordinates."""
        return self.offsets[-1]

    def __len__(self) -> int:
        return len(self.names)

    def of_model(self, model: nn.Module) -> list[nn.Parameter]:
        """The model's own parameters, in layout order."""
        by_name = dict(model.named_parameters())
        return [by_name[name] for name in self.names]

    def flatten(self, tensors: Mapping[str, Tensor] | Sequence[Tensor]) -> Tensor:
        """Tensors by name or in layout order, leading axes allowed if all share them -> [..., P], a new tensor."""
        parts = [tensors[n] for n in self.names] if isinstance(tensors, Mapping) else list(tensors)
        lead = parts[0].dim() - len(self.shapes[0])
        return torch.cat([t.detach().flatten(lead) if t.dim() > lead else t.detach()[..., None] for t in parts], dim=-1)

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """[..., P] -> views by name, `[..., *shape]`."""
        pieces = flat.split(self.sizes, dim=-1)
        named = zip(self.names, self.shapes, pieces, strict=True)
        return {name: piece.view((*flat.shape[:-1], *shape)) for name, shape, piece in named}
