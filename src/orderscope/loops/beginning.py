"""What has to hold before a loop can be recorded, and where its record begins."""

from __future__ import annotations

import torch
from torch import nn

from orderscope.errors import OrderscopeError, check_whole
from orderscope.task.layout import ParameterLayout

FIRST_STRIDE = 4  # steps between kept states at the beginning of a loop whose length is not known


def check_recordable(
    layout: ParameterLayout, parameters: list[nn.Parameter], anchors: int, steps: int | None, step: int | None
) -> None:
    """Check that a loop can be recorded.

    Args:
        layout: which entry of [P] belongs to which weight.
        parameters: that are trained, in layout order.
        anchors: states to keep.
        steps: how many the loop will take; None where that is not known.
        step: the loop's own count so far; None where the optimizer counts.

    Raises:
        OrderscopeError: weights of another type than float32 or float64, sharded or on the meta device; or a number
            that is not whole.
    """
    if layout.dtype not in (torch.float32, torch.float64):
        raise OrderscopeError(
            f"weights of dtype {layout.dtype}",
            "float32 or float64 master weights",
            "keep the weights in float32 and train under torch.autocast",
        )
    sharded = next((n for n, p in zip(layout.names, parameters, strict=True) if hasattr(p, "placements")), None)
    if sharded is not None or any(p.is_meta for p in parameters):
        raise OrderscopeError(
            f"parameter {sharded or layout.names[0]!r} that is sharded or on the meta device",
            "whole parameters in every process (plain or DDP)",
            "record an unsharded run, for instance of the adapter weights alone",
        )
    for name, value, least in (("anchors", anchors, 2), ("steps", steps, 1), ("step", step, 0)):
        if value is not None:
            check_whole(least, **{name: value})


def place_among_ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank of this process and number of ranks, from `torch.distributed` where it is initialized and no rank is given.

    Args:
        rank: as given, from 0.
        world_size: as given.
    """
    if rank is None and torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return rank or 0, world_size or 1


def members(optimizer: torch.optim.Optimizer) -> list[list[int]]:
    return [[id(p) for p in group["params"]] for group in optimizer.param_groups]


def counts_steps(optimizer: torch.optim.Optimizer) -> bool:
    return not isinstance(optimizer, torch.optim.SGD)


def stride_after(steps: int, anchors: int) -> int:
    """Steps between two kept states after some steps of a loop: doubled each time that twice as many as wanted are
    kept.

    Args:
        steps: taken so far.
        anchors: states wanted.
    """
    stride = FIRST_STRIDE
    while steps // stride > 2 * anchors:
        stride *= 2
    return stride
