"""One step of many replays: the module that chooses between the kernels and their plain-torch reference.

All have the same four functions: `displacement_products`, `affine_weights` and `remainder_coefficients` of them, and
`replay_step`. What they compute is written down in `orderscope_kernels.reference`.

    triton    states on a GPU, float32
    numba     states on a CPU, float32, where numba is installed (extra "numba")
    reference everything else, and what the others are tested against

The environment variable ORDERSCOPE_KERNELS names one of the three to override the choice.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from orderscope_kernels.reference import Products

OVERRIDE = "ORDERSCOPE_KERNELS"
# Numbers read in a replay below which numba is not loaded for it. Loading takes 0.55 to 0.7 s of CPU; on 40 million
# (text_24, six orders) the reference takes 0.19 s and numba, once loaded, 0.25 s.
SMALL = 1 << 27
MODULES = {"reference": "reference", "numba": "cpu_replay", "triton": "triton_replay"}


class ReplayKernels(Protocol):
    """What each of the modules offers; see `orderscope_kernels.reference` for the arguments."""

    def displacement_products(self, *args: Any, **kwargs: Any) -> Products: ...

    def affine_weights(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]: ...

    def remainder_coefficients(self, *args: Any, **kwargs: Any) -> Tensor: ...

    def replay_step(self, *args: Any, **kwargs: Any) -> None: ...


def replay_kernels(theta: Tensor, *, separate: bool = False, work: int | None = None) -> ReplayKernels:
    """The kernels for these states.

    Args:
        theta: the states, for their device and type.
        separate: some rows leave out some parts of a step, which only the reference knows.
        work: numbers of the tables that the replay reads, where that is known; on a CPU little work is not worth
            loading a compiler for.
    """
    if separate or theta.dtype != torch.float32:
        return named("reference")
    if work is not None and work < SMALL and not theta.is_cuda and not os.environ.get(OVERRIDE):
        return named("reference")
    return named(os.environ.get(OVERRIDE) or ("triton" if theta.is_cuda else "numba"))


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
