"""The user's loss as a pure function of parameters, for `torch.func`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from orderscope.task.layout import ParameterLayout


class HasLoss(Protocol):
    @property
    def loss(self) -> Callable[[Any, Any], Tensor]: ...


class FunctionalLoss(Protocol):
    def __call__(
        self,
        params: Mapping[str, Tensor],
        frozen_and_buffers: Mapping[str, Tensor],
        batch: Any,
        *,
        wrap: Callable[[nn.Module], Any] | None = None,
    ) -> Tensor:
        """Losses of a batch with these tensors in the model, [batch].

        Args:
            params: parameters by name, tied ones under their first name; not written to.
            frozen_and_buffers: what else the model holds, by name, see the function of that name; not written to.
            batch: collated samples.
            wrap: makes of the model what is handed to the loss in its place, for instance a `StandIn`.
        """
        ...


class _Loss(nn.Module):
    """The loss as a module around the model, so that `functional_call` swaps the parameters for the whole loss.

    So the loss may call the model, any of its methods, or use one of its weights directly: all see the swapped tensors.
    """

    def __init__(self, loss: Callable[[Any, Any], Tensor], model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.per_sample = loss

    def forward(self, batch: Any, wrap: Callable[[nn.Module], Any] | None) -> Tensor:
        return self.per_sample(self.model if wrap is None else wrap(self.model), batch)


def functional_loss(task: HasLoss, model: nn.Module) -> FunctionalLoss:
    """`f(params, frozen_and_buffers, batch, wrap=None) -> [len(batch)]`: the loss with these tensors in the model.

    `params` and `frozen_and_buffers` are dicts by name (tied parameters under their first name); together they must
    hold every parameter, see `frozen_and_buffers`. Neither is written to. The model itself keeps its own tensors.
    `wrap(model)` gives the object that is handed to the loss in the model's place, for instance a `StandIn`.

    Args:
        task: has the loss, (model, batch) -> losses [batch].
        model: keeps its own tensors.
    """
    around = _Loss(task.loss, model)
    around.training = model.training  # not train(): that would reach into the model's own flags
    places = _places(model)

    def loss(params, frozen_and_buffers, batch, *, wrap=None):
        tensors = {
            f"model.{place}": tensor
            for part in (frozen_and_buffers, params)
            for name, tensor in part.items()
            for place in places.get(name, [name])
        }
        return functional_call(around, tensors, (batch, wrap), tie_weights=False)

    return loss


def _places(model: nn.Module) -> dict[str, list[str]]:
    """First name of each parameter and buffer -> every slot that holds it, each module once.

    torch's own tying goes by name and swaps a module that has two names twice, so that its own tensor is not put back.
    """
    found: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                found.setdefault(id(tensor), []).append(f"{path}.{attribute}" if path else attribute)
    return {names[0]: names for names in found.values()}


def frozen_and_buffers(model: nn.Module, layout: ParameterLayout) -> dict[str, Tensor]:
    """What `functional_loss` needs beside the parameters of the layout, detached.

    Args:
        model: of the task.
        layout: which entry of [P] belongs to which weight.
    """
    held = set(layout.names)
    frozen = {name: p.detach() for name, p in model.named_parameters() if name not in held}
    return frozen | {name: b.detach() for name, b in model.named_buffers()}


def sample_loss(loss: FunctionalLoss) -> Callable[..., Tensor]:
    """`f(params, frozen_and_buffers, sample) -> scalar`: a batch of one; `each_sample(grad(f), (None, None, 0))`."""

    def one(params, frozen_and_buffers, sample):
        return loss(params, frozen_and_buffers, tree_map(lambda leaf: leaf[None], sample))[0]

    return one


class StandIn:
    """Takes the model's place in a loss: calls go to `call`, every other attribute to the model.

    Args:
        model: whose place it takes.
        call: called instead of it.
    """

    def __init__(self, model: nn.Module, call: Callable[..., Any]) -> None:
        self._model, self._call = model, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
