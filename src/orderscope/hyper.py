"""The optimizer's numeric hyper-parameters, and how a schedule moves them from step to step."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from orderscope.errors import OrderscopeError

NAMES = (
    "lr", "weight_decay", "beta1", "beta2", "eps", "amsgrad", "decoupled",
    "momentum", "dampening", "nesterov", "maximize",
)  # fmt: skip


def hyper_parameters(optimizer: torch.optim.Optimizer) -> dict[str, list[float]]:
    """Name -> one value per parameter group, as they stand now; flags are 0 or 1, `betas` are beta1 and beta2."""
    values: dict[str, list[float]] = {}
    for group in optimizer.param_groups:
        flat = dict(group)
        if "betas" in flat:
            flat["beta1"], flat["beta2"] = flat["betas"]
            flat["decoupled"] = flat.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW))
        for name in NAMES:
            if name in flat:
                values.setdefault(name, []).append(float(flat[name]))
    return values


def scheduled(
    optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler | None, steps: int
) -> dict[str, np.ndarray]:
    """The hyper-parameters of each of `steps` steps, [steps, param_groups] float64 each.

    Steps a freshly built optimizer and scheduler without training: with no gradients `optimizer.step()` moves nothing,
    but keeps the scheduler from warning that it was called first.
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

    Raises:
        OrderscopeError: it cannot be told without.
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
