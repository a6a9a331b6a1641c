"""The optimizer's numeric hyper-parameters, and how a schedule moves them from step to step."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from orderscope.errors import OrderscopeError
from orderscope_kernels.optimizers import KINDS

NAMES = tuple(dict.fromkeys(name for kind in KINDS.values() for name in kind.recorded))


def hyper_parameters(optimizer: torch.optim.Optimizer) -> dict[str, list[float]]:
    """Name -> one value per parameter group, as they stand now; flags are 0 or 1, `betas` are beta1 and beta2."""
    values: dict[str, list[float]] = {}
    kind = KINDS.get(type(optimizer).__name__)
    for group in optimizer.param_groups:
        flat = dict(group)
        if "betas" in flat:
            flat["beta1"], flat["beta2"] = flat["betas"]
            flat["decoupled"] = flat.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW))
        for name in NAMES if kind is None else kind.recorded:
            if name in flat:
                values.setdefault(name, []).append(float(flat[name]))
    return values


def leading_rates(recorded: np.ndarray) -> np.ndarray:
    """Rate of the leading group, [steps]: at each step the first group with a rate above 0; 0 where all are at 0.

    Args:
        recorded: [steps, groups].

    Example:
        >>> leading_rates(np.array([[0.0, 0.2], [0.1, 0.3]]))
        array([0.2, 0.1])
    """
    return recorded[np.arange(len(recorded)), (recorded > 0).argmax(1)]


def group_rates(lr: Any, recorded: np.ndarray, count: int) -> np.ndarray:
    """Learning rates of every parameter group for `count` orders, float64 [count, steps, groups].

    Rates of shape [steps] or [count, steps] are those of the leading group, see `leading_rates`; the other groups keep
    the ratio to it that their recorded rates have at that step, so a group that was recorded at 0 stays at 0. Where all
    were at 0 (a warm-up's first step), the ratios are those of the nearest step at which one was not. Rates of shape
    [steps, groups] or [count, steps, groups] are taken as they are. A table that can be read both as [count, steps] and
    as [steps, groups] is [count, steps].

    Args:
        lr: rates >= 0, of one of the shapes above.
        recorded: [steps, groups].
        count: orders that they are for.

    Raises:
        OrderscopeError: rates of another shape, below 0 or not finite.

    Example:
        >>> group_rates([0.4, 0.4], np.array([[0.1, 0.2], [0.0, 0.2]]), 1)
        array([[[0.4, 0.8],
                [0. , 0.4]]])
    """
    rates, (steps, groups) = np.asarray(lr, dtype=np.float64), recorded.shape
    of_groups = {(steps, groups): rates[None], (count, steps, groups): rates}
    of_leading = {(steps,): rates[None], (count, steps): rates}
    if not np.isfinite(rates).all() or (rates < 0).any() or rates.shape not in {**of_groups, **of_leading}:
        raise OrderscopeError(
            f"learning rates of shape {list(rates.shape)}",
            f"finite rates >= 0 of shape [{steps}] or [{count}, {steps}], or [{steps}, {groups}] or "
            f"[{count}, {steps}, {groups}] for each parameter group",
            "give one rate a step, or one a step and group",
        )
    if rates.shape in of_leading:
        lead = leading_rates(recorded)
        known = np.flatnonzero(lead > 0)
        at = known[np.abs(known[None] - np.arange(steps)[:, None]).argmin(1)] if len(known) else np.arange(steps)
        ratios = recorded[at] / lead[at, None] if len(known) else np.ones_like(recorded)
        found = of_leading[rates.shape][:, :, None] * ratios
    else:
        found = of_groups[rates.shape]
    return np.array(np.broadcast_to(found, (count, steps, groups)))


def scheduled(
    optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler | None, steps: int
) -> dict[str, np.ndarray]:
    """The hyper-parameters of each of `steps` steps, [steps, param_groups] float64 each.

    Steps a freshly built optimizer and scheduler without training: with no gradients `optimizer.step()` moves nothing,
    but keeps the scheduler from warning that it was called first.

    Args:
        optimizer: freshly built.
        scheduler: freshly built, or None.
        steps: how many.
    """
    rows: dict[str, list[list[float]]] = {}
    for _ in range(steps):
        for name, values in hyper_parameters(optimizer).items():
            rows.setdefault(name, []).append(values)
        advance(optimizer, scheduler, 1)
    return {name: np.asarray(values, dtype=np.float64) for name, values in rows.items()}


def advance(
    optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler | None, steps: int
) -> None:
    """Move the schedule on by `steps` steps without training.

    Args:
        optimizer: the one that the schedule moves.
        scheduler: or None.
        steps: how many.

    Raises:
        OrderscopeError: the schedule depends on something that only training gives.
    """
    if scheduler is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for _ in range(steps):
                optimizer.zero_grad()
                optimizer.step()
                scheduler.step()
        except Exception as error:  # whatever the user's scheduler, or a hook of the optimizer, raises
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise OrderscopeError(
                f"a {type(scheduler).__name__} that cannot be stepped without training ({type(error).__name__}: "
                f"{reason})",
                "a schedule that is a function of the step, for every step of the order",
                "give it as many steps as the order has; what depends on losses (ReduceLROnPlateau) cannot be known of "
                "other orders: replay the rates it gave with LambdaLR, or record the loop with osc.Recorder",
            ) from error
