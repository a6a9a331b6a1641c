"""Metrics of a model that leave it, and everything else, as they were.

An evaluation is a function of the weights: the same question has the same answer whatever was asked before, in which
order, and with which random numbers. So nothing that a metric does to a model may reach the next metric, or the steps
of training that follow. A data set is evaluated by the task's own loss, which moves no more than buffers and flags; a
function may do anything to a model, and is handed a copy.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from orderscope.errors import OrderscopeError
from orderscope.task.rng import seeded


@contextmanager
def untouched(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Let code use a model without leaving anything behind.

    Inside there are no gradients, and the same random numbers every time. Afterwards buffers, train flags, random
    numbers, autograd's mode and torch's default dtype are as they were.

    Args:
        model: that is used.
        seed: of the random numbers inside.
    """
    modules = list(model.modules())
    flags = [module.training for module in modules]
    slots = [(module, dict(module._buffers)) for module in modules if module._buffers]
    values = [[None if b is None else b.detach().clone() for b in held.values()] for _, held in slots]
    dtype = torch.get_default_dtype()
    try:
        with seeded(seed), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)
        with torch.no_grad():
            for (module, held), kept in zip(slots, values, strict=True):
                module._buffers.update(held)
                for buffer, value in zip(held.values(), kept, strict=True):
                    if buffer is not None and value is not None:
                        buffer.copy_(value)
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag


def value_of(name: str, function: Callable[[nn.Module], Any], model: nn.Module) -> float:
    """What a metric function says of a model. It is called without gradients, and with them where it asks for some.

    Args:
        name: of the metric, for the message.
        function: model -> number.
        model: a copy is handed over.

    Raises:
        OrderscopeError: it fails, does not return one number, or the model cannot be copied.
    """
    try:
        try:
            found = function(copied(model))
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            with torch.enable_grad():
                found = function(copied(model))
    except OrderscopeError:
        raise
    except Exception as error:  # it is the user's code: whatever it raises is reported with its place
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OrderscopeError(
            f"metric {name!r} that fails with {type(error).__name__}: {reason} (line {where.lineno} of "
            f"{where.filename})",
            "a function that returns a number for any model of the task",
            "correct it",
        ) from error
    return _number(name, found)


def _number(name: str, found: Any) -> float:
    value = found.detach().cpu().numpy() if isinstance(found, Tensor) else found
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # a list of unequal parts
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "biuf" or array.size != 1:
        shape = f" of shape {list(found.shape)}" if isinstance(found, (Tensor, np.ndarray)) else ""
        keys = f" with {', '.join(map(repr, list(found)[:3]))}" if isinstance(found, Mapping) else ""
        raise OrderscopeError(
            f"metric {name!r} that returns {type(found).__name__}{shape}{keys}",
            "one number",
            "return one of them, and name a metric for each: metrics={'a': lambda model: f(model)['a'], ...}",
        )
    return float(array.reshape(()))


def copied(model: nn.Module) -> nn.Module:
    """A model of its own with the same weights, buffers and flags, without gradients.

    Raises:
        OrderscopeError: it holds what cannot be copied.
    """
    computed = [t for module in model.modules() for t in tree_leaves(vars(module)) if isinstance(t, Tensor)]
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in computed if not t.is_leaf}  # torch copies leaves only
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever the user's objects raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OrderscopeError(
            f"a model that cannot be copied ({type(error).__name__}: {reason})",
            "a model that copy.deepcopy takes, since a metric function is handed a copy",
            "keep results and handles out of the model, or make the metric a data set",
        ) from error
