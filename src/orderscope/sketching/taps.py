"""Gradients of big layers' weights from what goes into the layers and the gradients of what comes out.

A linear layer's gradient is a sum of outer products over positions, an embedding's has a row for each token. Where few
of their entries are carried, only those are worked out (`orderscope_kernels.projection`) and the whole is never formed:
a sample's gradient costs its activations, not its P numbers.

The gradient of what comes out is that of an offset of zeros added there, so all of it stays `torch.func`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from orderscope.sketching.coordinates import Coordinates
from orderscope.task.layout import ParameterLayout
from orderscope_kernels.projection import embedding_entries, linear_entries

FEW = 1 / 16  # where a larger share of a weight's entries is carried, forming its whole gradient takes no longer
LIKE = 1e-3  # largest relative difference to gradients formed in full: rounding in float32 explains as much


@dataclass(frozen=True)
class Taps:
    """Layers whose weights' gradients are read off.

    Args:
        places: parameter name -> the modules that hold it as their weight.
        offsets: for each call of one, "parameter/module/call" -> zeros as what comes out for a single sample.
    """

    places: Mapping[str, tuple[nn.Module, ...]]
    offsets: Mapping[str, Tensor]

    def parted(self, params: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Parameters whose gradients are formed, and those whose are read off."""
        free = {name: p for name, p in params.items() if name not in self.places}
        return free, {name: p for name, p in params.items() if name in self.places}

    def formed(self, layout: ParameterLayout) -> int:
        """Numbers of a sample's gradient that are formed, with about as many as go into and come out of the layers."""
        whole = sum(size for name, size in zip(layout.names, layout.sizes, strict=True) if name not in self.places)
        return whole + 2 * sum(zeros.numel() for zeros in self.offsets.values())

    def fitted(self, forward: Callable[[], Any]) -> Taps:
        """With the offsets that a forward pass of one sample shows to be needed."""
        if not self.places:
            return self
        offsets: dict[str, Tensor] = {}

        def note(key: str, output: Tensor) -> Tensor:
            offsets[key] = torch.zeros_like(output)
            return output

        with self._open(note), torch.no_grad():
            forward()
        return replace(self, offsets=offsets)

    @contextmanager
    def reading(self, offsets: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """While open, every call adds its offset and leaves what went in, by key."""
        inputs: dict[str, Tensor] = {}
        with self._open(lambda key, output: output + offsets[key], inputs):
            yield inputs

    def entries(
        self,
        layout: ParameterLayout,
        coordinates: Coordinates,
        inputs: Mapping[str, Tensor],
        slopes: Mapping[str, Tensor],
    ) -> list[tuple[slice, Tensor]]:
        """The carried entries of tapped weights' gradients, as pairs of a place in [m] and [rows, entries].

        Args:
            layout: which entry of [P] belongs to which weight.
            coordinates: the carried coordinates, m of the P weights.
            inputs: what went in, [rows, *shape] by key.
            slopes: gradients of what came out, [rows, *shape] by key.
        """
        parts = []
        for name, (place, carried) in zip(layout.names, coordinates.of_tensors(layout.sizes), strict=True):
            if name not in self.places:
                continue
            assert carried is not None
            total: Tensor | None = None
            for key in (key for key in self.offsets if key.startswith(f"{name}/")):
                module = self.places[name][int(key.split("/")[1])]
                slope = slopes[key].flatten(1, -2)
                carried = carried.to(slope.device)
                if isinstance(module, nn.Embedding):
                    found = embedding_entries(inputs[key].flatten(1), slope, carried)
                else:
                    found = linear_entries(inputs[key].flatten(1, -2).to(slope.dtype), slope, carried)
                total = found if total is None else total + found
            if total is not None:
                parts.append((place, total))
        return parts

    @contextmanager
    def _open(self, on: Callable[[str, Tensor], Tensor], inputs: dict[str, Tensor] | None = None) -> Iterator[None]:
        with ExitStack() as stack:
            for name, modules in self.places.items():
                for number, module in enumerate(modules):
                    stack.enter_context(_hooked(module, f"{name}/{number}", on, inputs))
            yield


NO_TAPS = Taps({}, {})


@contextmanager
def _hooked(
    module: nn.Module, key: str, on: Callable[[str, Tensor], Tensor], inputs: dict[str, Tensor] | None
) -> Iterator[None]:
    calls = 0

    def hook(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        nonlocal calls
        here, calls = f"{key}/{calls}", calls + 1
        if inputs is not None:
            inputs[here] = args[0] if args else kwargs["input"]
        return on(here, output)

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def find_taps(model: nn.Module, layout: ParameterLayout, coordinates: Coordinates) -> Taps:
    """Plain linear layers and embeddings of whose weights few entries are carried.

    That a weight is used by its layers alone cannot be seen from here; whoever uses taps compares a sample.

    Args:
        model: the model, as it stands.
        layout: which entry of [P] belongs to which weight.
        coordinates: the carried coordinates, m of the P weights.
    """
    holders: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append(module)
    carried = coordinates.of_tensors(layout.sizes)
    places = {}
    for name, parameter, size, (place, entries) in zip(
        layout.names, layout.of_model(model), layout.sizes, carried, strict=True
    ):
        modules = holders[id(parameter)]
        few = entries is not None and place.start < place.stop <= place.start + FEW * size
        if few and all(_readable(module, parameter) for module in modules):
            places[name] = tuple(modules)
    return Taps(places, {})


def _readable(module: nn.Module, weight: nn.Parameter) -> bool:
    plain = {nn.Linear: nn.Linear.forward, nn.Embedding: nn.Embedding.forward}
    kind = next((k for k in plain if isinstance(module, k)), None)
    if kind is None or type(module).forward is not plain[kind] or module._parameters.get("weight") is not weight:
        return False
    return not (isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq))
