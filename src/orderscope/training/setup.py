"""Model, optimizer and schedule of a loop as plain values, and made again from them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from orderscope.errors import OrderscopeError
from orderscope.task.hyper import NAMES
from orderscope.training.loop import Session
from orderscope.training.state import SUPPORTED, TrainingState
from orderscope_kernels.optimizers import KINDS

TORCH_NAMES = {"beta1": "betas", "beta2": "betas", "decoupled": "decoupled_weight_decay"}
OPTIONS = tuple(dict.fromkeys([*(TORCH_NAMES.get(name, name) for name in NAMES), "foreach", "fused"]))
FLAGS = {"amsgrad", "decoupled", "nesterov", "maximize"}  # options that no schedule changes


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DDP and torch.compile."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def describe_optimizer(session: Session) -> dict[str, Any]:
    """Class, options and parameters of every group, as JSON values."""
    place = {id(p): i for i, p in enumerate(session.model.parameters())}
    layout = session.layout
    return {
        "model": type(session.model).__name__,
        "parameters": [[n, list(s)] for n, s in zip(layout.names, layout.shapes, strict=True)],
        "places": [place[id(p)] for p in session.parameters],
        "optimizer": type(session.optimizer).__name__,
        "groups": [
            {"params": [place[id(p)] for p in group["params"]],
             "options": {key: _plain(group[key]) for key in OPTIONS if key in group}}
            for group in session.optimizer.param_groups
        ],
    }  # fmt: skip


def optimizer_factory(header: Mapping[str, Any]) -> Callable[[Any], torch.optim.Optimizer]:
    """`(params) -> optimizer` as the loop had it at its start, `params` being all of the model's."""
    kind = SUPPORTED[header["optimizer"]]

    def build(params: Any) -> torch.optim.Optimizer:
        everything = list(params)
        groups = []
        for group in header["groups"]:
            options = {key: tuple(v) if key == "betas" else v for key, v in group["options"].items()}
            groups.append({"params": [everything[i] for i in group["params"]], **options})
        return kind(groups, lr=groups[0]["lr"])

    return build


def optimizer_state(header: Mapping[str, Any], layout_names: list[str], state: TrainingState) -> dict[str, Any] | None:
    """A `state_dict` with the recorded moments and step counts, None where there were none yet.

    Args:
        header: of the leg; its groups give the places of the parameters in the model.
        layout_names: names of the trained parameters, in layout order.
        state: moments and counts to hand over.
    """
    if not bool(state.present.any()):
        return None
    shapes = {n: tuple(s) for n, s in header["parameters"]}
    sizes = [int(np.prod(shapes[n])) for n in layout_names]
    flat = {key: vector.split(sizes) for key, vector in state.moments.items()}
    held, kind = {place: i for i, place in enumerate(header["places"])}, KINDS[header["optimizer"]]
    found: dict[int, dict[str, Any]] = {}
    groups, number = [], 0
    for group in header["groups"]:
        groups.append({"params": list(range(number, number + len(group["params"])))})
        for place in group["params"]:
            i = held.get(place)
            if i is not None and bool(state.present[i]):
                shape = shapes[layout_names[i]]
                own: dict[str, Any] = {
                    key.name: key.for_torch(flat[key.name][i].view(shape)) for key in kind.keys if key.name in flat
                }
                if kind.counts:
                    own["step"] = torch.tensor(float(state.count[i]))
                found[number] = own
            number += 1
    return {"state": found, "param_groups": groups}


def model_factory(model: Any, names: list[str], state: TrainingState) -> Callable[[], nn.Module]:
    """`() -> model` with the recorded weights and buffers in it.

    Args:
        model: a module to be copied, or `() -> module`.
        names: of the trained parameters, in layout order.
        state: weights and buffers that the built model gets.
    """
    template = copy.deepcopy(unwrapped(model)) if isinstance(model, nn.Module) else None

    def build() -> nn.Module:
        fresh = copy.deepcopy(template) if template is not None else unwrapped(model())
        own = dict(fresh.named_parameters())
        missing = [n for n in names if n not in own]
        size = sum(own[n].numel() for n in names if n in own)
        if missing or size != len(state.theta):
            raise OrderscopeError(
                f"a model without the recorded parameter {missing[0]!r}" if missing else f"a model of {size} weights",
                f"the recorded model, with {len(names)} trained parameters of {len(state.theta)} weights",
                "pass the model that was trained, or a function that builds it",
            )
        start = 0
        with torch.no_grad():
            for n in names:
                own[n].requires_grad_(True)
                own[n].grad = None
                own[n].copy_(state.theta[start : start + own[n].numel()].view(own[n].shape))
                start += own[n].numel()
            for n, buffer in fresh.named_buffers():
                if n in state.buffers:
                    buffer.copy_(state.buffers[n])
        return fresh

    return build


class RecordedSchedule:
    """Sets the hyper-parameters that the recorded steps had, whatever moved them; made for one optimizer.

    Args:
        hyper: name -> [steps, param_groups], as `orderscope.task.hyper.hyper_parameters` reads them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, hyper: Mapping[str, np.ndarray]) -> None:
        self._optimizer, self._next = optimizer, 0
        self._hyper = {name: values for name, values in hyper.items() if name not in FLAGS}
        self.step()

    def step(self) -> None:
        row = min(self._next, len(next(iter(self._hyper.values()))) - 1)
        for g, group in enumerate(self._optimizer.param_groups):
            now = {name: float(values[row, g]) for name, values in self._hyper.items()}
            if "beta1" in now:
                group["betas"] = now.pop("beta1"), now.pop("beta2")
            group.update(now)
        self._next += 1


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else list(value) if isinstance(value, tuple) else value
