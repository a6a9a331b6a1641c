"""A device that is not there, for tests of code that runs on a GPU.

Its tensors hold their numbers on the CPU and say that they are elsewhere: they cannot be read as numpy arrays, and an
operation that meets them beside a tensor of the CPU fails as it does on a GPU. So device mistakes are found without a
GPU, and the numbers are those of the CPU to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = torch.device("meta")  # a name that every build of torch knows
aten = torch.ops.aten
# What takes tensors of two devices on a GPU too: copies, and indices on the CPU into what is not there.
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten._index_put_impl_.default}


class Away(Tensor):
    """A tensor elsewhere; `held` are its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Away:
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=ELSEWHERE,
        )  # fmt: skip
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _done(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"Away({self.held!r})"

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, **options: Any) -> Any:
        raise TypeError("can't convert a tensor of another device to numpy: copy it to the CPU first")


class Elsewhere(TorchDispatchMode):
    """While open, tensors can be made elsewhere."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _done(func, args, kwargs or {})


def _done(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the numbers; results are where a GPU's would be."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    away = any(isinstance(x, Away) for x in tensors)
    here = [x for x in tensors if not isinstance(x, Away) and x.dim() > 0]
    indices = func in INDEXING and isinstance(args[0], Away)
    if away and here and not (indices or func in COPIES):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} was given two")
    if (device := kwargs.get("device")) is not None:
        away = torch.device(device).type == ELSEWHERE.type
        kwargs = kwargs | {"device": torch.device("cpu")}
    wrappers = {id(x.held): x for x in tensors if isinstance(x, Away)}
    numbers, options = tree_map(lambda x: x.held if isinstance(x, Away) else x, (args, kwargs))
    result = func(*numbers, **options)
    if torch.Tag.inplace_view in func.tags and isinstance(args[0], Away):
        with no_dispatch():  # the wrapper's own shape
            func(*args, **kwargs)
    if func is aten.copy_.default:
        return args[0]

    def placed(x: Any) -> Any:
        known = wrappers.get(id(x))
        return known if known is not None else Away(x) if away and type(x) is Tensor else x

    return tree_map(placed, result)


def moved(model: nn.Module) -> nn.Module:
    """The model with its parameters and buffers elsewhere."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                away = Away(parameter.detach().clone())
                module._parameters[name] = nn.Parameter(away, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Away(buffer.clone())
    return model
