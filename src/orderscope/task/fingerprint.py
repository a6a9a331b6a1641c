"""What a run was recorded with, as one SHA-256 per part, so that it can be named in which part another task differs."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import pickle
import textwrap
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from orderscope.errors import OrderscopeError
from orderscope.task.hyper import hyper_parameters, scheduled

if TYPE_CHECKING:
    from orderscope.task import Task

PLAIN = (type(None), bool, int, float, complex, str, bytes)


def fingerprint(task: Task) -> dict[str, str]:
    """Part -> hex SHA-256.

    Parts: model (class, starting weights, buffers, layout), data (every sample), optimizer (class, hyper-parameters,
    starting moments), schedule (hyper-parameters of every step), loss (name, source, closed-over constants), metrics
    (names and their data), order, groups, max_grad_norm.
    """
    model = task.build_model()
    optimizer = task.build_optimizer(model)
    first = hyper_parameters(optimizer)
    warm = task.optimizer_state["state"] if task.optimizer_state else None
    return {
        "model": digest(type(model).__qualname__, dict(model.named_parameters()), dict(model.named_buffers()),
                        task.layout.names, task.layout.group),
        "data": digest_data(task.data),
        "optimizer": digest(type(optimizer).__name__, first, warm),
        "schedule": digest(scheduled(optimizer, task.build_scheduler(optimizer), task.steps)),
        "loss": digest(describe(task.loss)),
        "metrics": digest({
            name: describe(metric) if callable(metric) else digest_data(metric)
            for name, metric in task.metrics.items()
        }),
        "order": digest(task.order),
        "groups": digest(list(task.group_names), task.group_codes),
        "max_grad_norm": digest(task.max_grad_norm),
        **({} if task.targets is None else {"targets": digest(describe(task.targets))}),
    }  # fmt: skip


def compare(recorded: Mapping[str, str], mine: Mapping[str, str]) -> None:
    """Check that two fingerprints are of one task.

    Args:
        recorded: of the run: part -> SHA-256.
        mine: of the task at hand, alike.

    Raises:
        OrderscopeError: naming the parts that differ.
    """
    differ = [part for part in {**recorded, **mine} if recorded.get(part) != mine.get(part)]
    if differ:
        raise OrderscopeError(
            f"a task with another {', '.join(differ)}",
            "the task this run was recorded with",
            "pass the recorded task, or record this one into another directory",
        )


def digest(*values: Any) -> str:
    """SHA-256 of nested plain values, arrays and tensors; equal values give equal digests on every machine."""
    sha = hashlib.sha256()
    for value in values:
        _feed(sha, value)
    return sha.hexdigest()


def digest_data(data: Any) -> str:
    """SHA-256 of all samples of a map-style data set, read one at a time."""
    sha = hashlib.sha256()
    for i in range(len(data)):
        _feed(sha, data[i])
    return sha.hexdigest()


def describe(function: Any, depth: int = 2) -> Any:
    """A callable as plain values: name, source and the constants it closes over.

    Args:
        function: a function, method, partial, module or other callable.
        depth: how many levels of functions that are closed over are described likewise.
    """
    if isinstance(function, functools.partial):
        return ["partial", describe(function.func, depth), list(function.args), dict(function.keywords)]
    if isinstance(function, nn.Module):
        return [type(function).__qualname__, _source(type(function)), dict(function.state_dict())]
    if inspect.ismethod(function):
        return [describe(function.__func__, depth), describe_value(function.__self__)]
    if not hasattr(function, "__qualname__"):
        return [type(function).__qualname__, _source(type(function)), describe_value(function)]
    closed = {}
    if depth and inspect.isfunction(function):
        for name, value in inspect.getclosurevars(function).nonlocals.items():
            if inspect.isfunction(value):
                closed[name] = describe(value, depth - 1)
            elif isinstance(value, (*PLAIN, torch.Tensor, np.ndarray)):
                closed[name] = value
    return [function.__qualname__, _source(function), closed]


def describe_value(value: Any) -> Any:
    """The plain attributes of an object."""
    kept = (*PLAIN, torch.Tensor, np.ndarray)
    return {k: v for k, v in getattr(value, "__dict__", {}).items() if isinstance(v, kept)}


def _source(thing: Any) -> str:
    try:
        text = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        return ""
    try:
        return ast.unparse(ast.parse(text))  # layout and comments do not count
    except SyntaxError:  # a lambda in the middle of an expression
        return text


def _feed(sha: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        sha.update(f"tensor {str(value.dtype).removeprefix('torch.')} {list(value.shape)}:".encode())
        sha.update(flat.view(torch.uint8).numpy().data)
    elif isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        if array.dtype.hasobject:
            _feed(sha, array.tolist())
            return
        sha.update(f"array {array.dtype.str} {list(array.shape)}:".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    elif isinstance(value, PLAIN):
        data = value if isinstance(value, bytes) else repr(value).encode()
        sha.update(f"{type(value).__name__} {len(data)}:".encode() + data)
    elif isinstance(value, Mapping):
        sha.update(f"mapping {len(value)}:".encode())
        for key in sorted(value, key=repr):
            _feed(sha, key)
            _feed(sha, value[key])
    elif isinstance(value, (list, tuple)):
        sha.update(f"list {len(value)}:".encode())
        for item in value:
            _feed(sha, item)
    elif is_dataclass(value) and not isinstance(value, type):
        _feed(sha, [type(value).__qualname__, *(getattr(value, f.name) for f in fields(value))])
    elif hasattr(value, "__array__"):
        _feed(sha, np.asarray(value))
    else:
        sha.update(f"object {type(value).__qualname__}:".encode())
        sha.update(pickle.dumps(value, protocol=4))
