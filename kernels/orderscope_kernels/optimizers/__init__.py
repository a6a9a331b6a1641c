"""The optimizers of torch.optim that a replay carries: one module each, and the table of them.

To add one: write its module (the step, the step's adjoint, the step as a smooth function, the names of its state and
options; see `Kind`) and name it in `KINDS`. numba and Triton have steps of their own for some; the others take the
plain one, with the gradient by numba or in plain torch.
"""

from __future__ import annotations

from orderscope_kernels.optimizers.adam import ADAM, ADAMW
from orderscope_kernels.optimizers.kind import Kind, StateKey
from orderscope_kernels.optimizers.nadam import NADAM
from orderscope_kernels.optimizers.sgd import SGD

KINDS: dict[str, Kind] = {kind.name: kind for kind in (SGD, ADAM, ADAMW, NADAM)}

__all__ = ["KINDS", "Kind", "StateKey"]
