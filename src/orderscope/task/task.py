"""What is trained, on what, in which order: the one description everything else starts from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from orderscope.errors import OrderscopeError
from orderscope.orders.checks import check_reference
from orderscope.task import fingerprint as prints
from orderscope.task.checks import check_data, check_task
from orderscope.task.layout import ParameterLayout
from orderscope.task.untouched import untouched, value_of

# Held-out sets of up to so many rows are evaluated in one batch: the value has the bits of loss(model, all).mean().
ONE_BATCH = 1024
CHUNK = 256  # rows at a time of larger sets, and samples at a time where single samples' losses are computed


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one model.

    Args:
        metrics: name -> value.
        losses: name -> per-sample losses [rows] of every metric that is a data set.
    """

    metrics: dict[str, float]
    losses: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One training run, described so that it can be trained again in any order.

    Args:
        model: `() -> nn.Module` with its starting weights, the same on every call.
        loss: `(model, batch) -> Tensor [len(batch)]`, one value per sample that depends on nothing but that sample.
        data: map-style data set; a sample's index is its id.
        optimizer: `(params) -> torch.optim.Optimizer`.
        scheduler: `(optimizer) -> LRScheduler`, stepped after every step, or None.
        metrics: name -> data set (mean loss over it) or `(model) -> float`. A function is handed a copy of the model,
            and the same random numbers every time, so that it may do to the model what it likes.
        order: sample ids, integer [steps, batch]: who is trained on when.
        groups: one label per sample of `data`, or None.
        optimizer_state: a `state_dict` to start from in mid-run: moments and step counts are taken from it, learning
            rate and decay stay the optimizer's own; or None.
        max_grad_norm: clipping as `torch.nn.utils.clip_grad_norm_`, or None.
        collate: list of samples -> batch; torch's `default_collate` if not given.
        targets: `(model, batch, generator) -> batch`, the batch with targets drawn from the model's own prediction.
            Only needed where the curvature of the loss cannot be found from the model's outputs: a loss computed inside
            the model, or a sum over several outputs. `orderscope inspect` says what was used.
        mapped: found out: whether torch.func can take its samples' gradients. Where it cannot (nn.GRU, packed
            sequences, gradient checkpointing), plain autograd takes one after the other, which is slower.

    Raises:
        OrderscopeError: where a run of it could not be repeated, simulated or taken apart sample by sample; the message
            says what to change.
    """

    model: Callable[[], nn.Module]
    loss: Callable[[Any, Any], Tensor]
    data: Any
    optimizer: Callable[[Any], torch.optim.Optimizer]
    order: Any
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    groups: Sequence[Any] | None = None
    optimizer_state: Mapping[str, Any] | None = None
    max_grad_norm: float | None = None
    collate: Callable[[list[Any]], Any] | None = None
    targets: Callable[[Any, Any, torch.Generator], Any] | None = None
    mapped: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_data(self.data)
        order = check_reference(self.order, len(self.data))
        order.setflags(write=False)
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "mapped", check_task(self))

    @property
    def steps(self) -> int:
        return self.order.shape[0]

    @property
    def batch_size(self) -> int:
        return self.order.shape[1]

    @property
    def samples(self) -> int:
        return len(self.data)

    @cached_property
    def group_names(self) -> tuple[str, ...]:
        """Names of the groups in sorted order; one group "all" where the task has none."""
        return ("all",) if self.groups is None else tuple(sorted({str(g) for g in self.groups}))

    @cached_property
    def group_codes(self) -> np.ndarray:
        """Index into `group_names` of every sample, int64 [samples]."""
        if self.groups is None:
            return np.zeros(self.samples, dtype=np.int64)
        code = {name: i for i, name in enumerate(self.group_names)}
        return np.array([code[str(g)] for g in self.groups], dtype=np.int64)

    @cached_property
    def layout(self) -> ParameterLayout:
        model = self.build_model()
        return ParameterLayout.of(model, self.build_optimizer(model))

    def build_model(self) -> nn.Module:
        return self.model()

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over the model's parameters, with the moments and step counts of `optimizer_state`."""
        optimizer = self.optimizer(list(model.parameters()))
        if self.optimizer_state:
            own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            optimizer.load_state_dict(copy.deepcopy(dict(self.optimizer_state)))  # torch aliases what it loads
            for group, mine in zip(optimizer.param_groups, own, strict=True):
                group.update(mine)
        return optimizer

    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        return self.scheduler(optimizer) if self.scheduler else None

    def batch(self, ids: Any) -> Any:
        """The collated batch of these sample ids."""
        return self.collated([self.data[int(i)] for i in ids])

    def evaluate(self, model: nn.Module, names: Sequence[str] | None = None) -> dict[str, float]:
        """Metrics of a model as it stands, computed without gradients, name -> value.

        Args:
            model: one of the task.
            names: of the metrics; all if not given.
        """
        return self.evaluation(model, names).metrics

    def evaluation(self, model: nn.Module, names: Sequence[str] | None = None) -> Evaluation:
        """Metrics of a model as it stands, with the per-sample losses that they are means of. No metric leaves anything
        behind.

        Args:
            model: one of the task.
            names: of the metrics; all if not given.
        """
        values: dict[str, float] = {}
        losses: dict[str, Tensor] = {}
        for name in self.metrics if names is None else names:
            metric = self.metrics[name]
            with untouched(model):
                if callable(metric):
                    values[name] = value_of(name, cast(Any, metric), model)
                    continue
                losses[name] = self.held_out_losses(model, metric)
            exact = len(held_out_batches(len(metric))) == 1
            values[name] = float((losses[name] if exact else losses[name].double()).mean())
        return Evaluation(values, losses)

    def held_out_losses(self, model: nn.Module, rows: Any) -> Tensor:
        """Losses of held-out rows, [rows].

        Args:
            model: one of the task.
            rows: a map-style data set.
        """
        with torch.no_grad():
            parts = [self.loss(model, self.collated([rows[i] for i in some])) for some in held_out_batches(len(rows))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def fingerprint(self) -> dict[str, str]:
        """Part -> SHA-256, see `orderscope.task.fingerprint`; computed once."""
        return dict(self._fingerprint)

    @cached_property
    def _fingerprint(self) -> dict[str, str]:
        return prints.fingerprint(self)

    def collated(self, samples: list[Any]) -> Any:
        """A batch of these samples, by the task's `collate`."""
        return (self.collate or default_collate)(samples)


def held_out_batches(count: int) -> list[range]:
    """How `count` held-out rows are evaluated: all in one batch up to `ONE_BATCH` rows, else `CHUNK` at a time."""
    size = max(1, count) if count <= ONE_BATCH else CHUNK
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def require_task(given: object) -> None:
    """Check that a task is one: it may be the function that makes it, or the name of that.

    Args:
        given: as a task.

    Raises:
        OrderscopeError: it is something else.
    """
    if not isinstance(given, Task):
        raise OrderscopeError(
            f"a task of type {type(given).__name__}", "an osc.Task", "call the function that makes it, and pass that"
        )
