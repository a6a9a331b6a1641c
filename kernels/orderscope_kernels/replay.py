"""One step of many replays: the module that chooses between the kernels and their plain-torch reference.

All have the same four functions: `displacement_products`, `affine_weights` and `remainder_coefficients` of them, and
`replay_step`. What they compute is written down in `orderscope_kernels.reference`.

    triton    states on a GPU, float32
    numba     states on a CPU, float32, where numba is installed (extra "numba")
    reference everything else, and what the others are tested against

The environment variable ORDERSCOPE_KERNELS names one of the three to override the choice.

Little work on a CPU is left to the reference. Importing numba and loading what it compiled takes half a CPU second;
each coordinate of a step takes it 22 ns less (measured on two cores, 48 steps of 34,528 coordinates: 0.5 s for one
order by the reference and 1.0 s by numba, 2.3 s and 1.1 s for 32). They are even at 2.2e7 coordinates of steps.
"""

from __future__ import annotations

import math
import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from orderscope_kernels.reference import Products
from orderscope_kernels.shapes import Float

OVERRIDE = "ORDERSCOPE_KERNELS"
LITTLE = 22_000_000  # with fewer coordinates times steps times orders the reference is quicker than loading numba
MODULES = {"reference": "reference", "numba": "numba_replay", "triton": "triton_replay"}


@runtime_checkable
class ReplayKernels(Protocol):
    """What each of the modules offers; see `orderscope_kernels.reference` for the arguments."""

    def displacement_products(self, *args: Any, **kwargs: Any) -> Products:
        """As `reference.displacement_products`."""
        ...

    def affine_weights(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """As `reference.affine_weights`."""
        ...

    def remainder_coefficients(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `reference.remainder_coefficients`."""
        ...

    def replay_step(self, *args: Any, **kwargs: Any) -> None:
        """As `reference.replay_step`."""
        ...


def replay_kernels(
    theta: Float[Tensor, "states coords"], *, separate: bool = False, work: float = math.inf
) -> ReplayKernels:
    """The kernels for these states.

    Args:
        theta: the states, for their device and type.
        separate: some rows leave out some parts of a step, which only the reference knows.
        work: coordinates of all steps of all states. It alone decides, not what was imported before, so that the same
            question has the same answer.
    """
    if separate or theta.dtype != torch.float32:
        return named("reference")
    usual = "triton" if theta.is_cuda else "numba" if work >= LITTLE else "reference"
    return named(os.environ.get(OVERRIDE) or usual)


@cache
def named(name: str) -> ReplayKernels:
    """The kernels of that name, or the reference where what they are written in is not installed."""
    module = name if name == "reference" or find_spec(name) else "reference"
    return import_module(f"orderscope_kernels.{MODULES[module]}")  # type: ignore[return-value]


def short_types(device: torch.device | str = "cpu") -> bool:
    """Whether the device has instructions for bfloat16 products: then they are quicker than those in float32."""
    if torch.device(device).type != "cpu":
        return True
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
