"""Recording: train one order and keep what a simulator needs, resumable at every boundary."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from orderscope.errors import OrderscopeError
from orderscope.loops.reproduction import reproduction
from orderscope.orders.checks import check_order
from orderscope.store import RunStore
from orderscope.store.names import REFERENCE
from orderscope.task import Task
from orderscope.task.fingerprint import digest
from orderscope.task.hyper import hyper_parameters
from orderscope.task.per_sample import filled
from orderscope.task.rng import seeded
from orderscope.task.task import Evaluation
from orderscope.training.loop import Session, Together, Watcher, start, train
from orderscope.training.mates import Mates
from orderscope.training.segments import finished_segments, read_state, segment_name, write_segment
from orderscope.training.state import capture, require_supported, restore

Progress = Callable[[int, int], None]


def record_run(
    task: Task,
    store: RunStore,
    name: str,
    order: Any,
    boundaries: Sequence[int],
    *,
    coords: Tensor | None = None,
    metrics_at: str = "all",
    keep_gradients: bool = True,
    whole: bool = True,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Train `order` and write the shard `record/<name>/segment-<k>` at each boundary; resume after the last one
    written.

    Segment k holds the state after step `boundaries[k]` and everything about the steps since boundary k - 1. A run that
    was killed and is recorded again ends with the same bytes as one that was not.

    Args:
        task: what is trained.
        store: the run that it becomes a part of.
        name: of its shards.
        order: sample ids, [steps, batch].
        boundaries: ascending steps, from 0 to `task.steps`.
        coords: ascending coordinates of [P] on which each step's gradient is kept; all if not given.
        metrics_at: "all" boundaries or only the "final" one.
        keep_gradients: whether to keep the steps' gradients.
        whole: whether to keep the optimizer's moments at the end too, and everywhere the states of the random
            generators, with which a run goes on after a boundary inside it. These are the process's own, where other
            threads may draw too.
        progress: called as `progress(steps done, steps)` after each step.

    Returns:
        The metrics of the final model.

    Raises:
        OrderscopeError: for an optimizer that cannot be carried, a run of this name with another order, or a loss or
            gradient that is not finite. What was written before stays.
    """
    ids = check_order(order, task.order, samples=task.samples, allow_other_samples=True)
    ends = _check_boundaries(boundaries, task.steps)
    _check_coords(coords, task.layout.size)
    if metrics_at not in ("all", "final"):
        raise OrderscopeError(f"metrics_at={metrics_at!r}", "'all' or 'final'", "change metrics_at=")
    plan = run_plan(ids, ends, coords, metrics_at, keep_gradients)
    done = finished_segments(store, name)
    if done:
        _check_same_plan(store, name, plan)
    if done == len(ends):
        return store.attrs(segment_name(name, done - 1))["metrics"]
    with seeded(0):
        session = start(task)
        require_supported(session.optimizer)
        check = reproduction(task, store, session) if name == REFERENCE else None
        before: list[Watcher] = [] if check is None else [check]
        after: list[Watcher] = [Mates(task, session, ids)] if name == REFERENCE else []
        if done:
            restore(session, read_state(store, name, done - 1), ends[done - 1])
        metrics: dict[str, float] = {}
        for index in range(done, len(ends)):
            began, cpu = time.perf_counter(), time.process_time()
            first = ends[max(index - 1, 0)]
            rows = _StepRows(name, session, ids, first, ends[index], coords, keep_gradients, progress)
            train(task, session, ids, first, ends[index], Together(*before, rows, *after))
            if check is not None:
                check.state(ends[index])
            trained, train_cpu = time.perf_counter(), time.process_time() - cpu
            if name == REFERENCE and index == len(ends) - 1:
                _check_weights_alone(task, session)
            asked = metrics_at == "all" or index == len(ends) - 1
            evaluation = _evaluate(task, session, name, ends[index]) if asked else Evaluation({}, {})
            metrics = evaluation.metrics
            held_out = {f"metric:{metric}": losses for metric, losses in evaluation.losses.items()}
            attrs = {
                "run": name, "index": index, "start": first, "stop": ends[index],
                "boundaries": ends, "plan": plan, "metrics": metrics, "hyper": rows.hyper_names,
            }  # fmt: skip
            write_segment(
                store, name, index, {**rows.tensors(), **held_out}, capture(session, rng=whole), attrs,
                whole=whole or index < len(ends) - 1,
                like=segment_name(REFERENCE, 0) if index == 0 and name != REFERENCE else None,
            )  # fmt: skip
            store.log(
                {"event": "segment", "run": name, "index": index, "steps": ends[index] - first,
                 "train_seconds": trained - began, "seconds": time.perf_counter() - began,
                 "train_cpu": train_cpu, "cpu": time.process_time() - cpu}
            )  # fmt: skip
    return metrics


def run_plan(
    order: np.ndarray,
    boundaries: Sequence[int],
    coords: Tensor | None,
    metrics_at: str = "all",
    keep_gradients: bool = True,
) -> str:
    """The plan that identifies a recording: it can be resumed with the same plan. It is stored in its segments.

    Args:
        order: sample ids, [steps, batch].
        boundaries: steps after which states are kept.
        coords: on which gradients are kept, int64; None for all.
        metrics_at: after which steps metrics are computed: "all" boundaries, or the "final" one.
        keep_gradients: whether the steps' gradients are kept.
    """
    return digest(np.asarray(order, dtype=np.int64), [int(b) for b in boundaries], coords, metrics_at, keep_gradients)


class _StepRows:
    """Collects what each step of a segment shows; see `orderscope.training.loop.Watcher`."""

    def __init__(
        self,
        run: str,
        session: Session,
        order: np.ndarray,
        first: int,
        last: int,
        coords: Tensor | None,
        keep_gradients: bool,
        progress: Progress | None,
    ) -> None:
        self._run, self._session, self._order, self._first, self._last = run, session, order, first, last
        self._progress = progress
        self._losses: list[Tensor] = []
        self._has_grad: list[list[bool]] = []
        self._norms: list[float] = []
        self._hyper: list[dict[str, list[float]]] = []
        self._flat = _Flat(session, coords)
        size = session.layout.size if coords is None else len(coords)
        self._gradients = torch.empty(last - first if keep_gradients else 0, size, dtype=session.layout.dtype)

    def gradient(self, step: int, losses: Tensor) -> None:
        grads = [p.grad for p in self._session.parameters]
        self._losses.append(losses)
        self._has_grad.append([g is not None for g in grads])
        flat = [g.reshape(-1) for g in filled(grads, self._session.parameters)]
        self._flat.take(flat, self._gradients[step - self._first] if len(self._gradients) else None)

    def norm(self, step: int, value: Tensor | None) -> None:
        value = self._flat.norm() if value is None else value
        norm = float(value)
        if not math.isfinite(norm + float(self._losses[-1].sum())):  # a sum shows any inf or nan
            self._refuse_not_finite(step)
        self._norms.append(norm)
        self._hyper.append(hyper_parameters(self._session.optimizer))
        if self._progress is not None:
            self._progress(step + 1, len(self._order))

    @property
    def hyper_names(self) -> list[str]:
        """Names along the second axis of `hyper` [steps, names, param_groups]."""
        return list(self._hyper[0]) if self._hyper else []

    def tensors(self) -> dict[str, Tensor]:
        if self._first == self._last:
            return {}
        tensors = {
            "order": torch.tensor(self._order[self._first : self._last]),
            "loss": torch.stack(self._losses),
            "grad_norm": torch.tensor(self._norms, dtype=torch.float64),
            "has_grad": torch.tensor(self._has_grad),
            "hyper": torch.tensor([list(values.values()) for values in self._hyper], dtype=torch.float64),
        }
        return tensors | ({"gradient": self._gradients} if len(self._gradients) else {})

    def _refuse_not_finite(self, step: int) -> None:
        losses = self._losses[-1]
        ids = self._order[step]
        bad = [int(i) for i, fine in zip(ids, torch.isfinite(losses).tolist(), strict=True) if not fine]
        what = "loss" if bad else "gradient"
        names = zip(self._session.layout.names, self._session.parameters, strict=True)
        where = [n for n, p in names if p.grad is not None and not torch.isfinite(p.grad).all()]
        if not bad and not where:
            return  # only the norm overflowed
        detail = f"sample ids {bad or [int(i) for i in ids]}" + (f", first in {where[0]!r}" if where else "")
        raise OrderscopeError(
            f"a {what} that is not finite in run {self._run!r} at step {step} ({detail})",
            "finite losses and gradients",
            "lower the learning rate, clip with max_grad_norm=, or look at these samples; finished segments are kept",
        )


class _Flat:
    """A step's gradient, tensor by tensor, as one vector or as some coordinates of it.

    Up to `SCRATCH` coordinates it is copied together first, which is quicker than one call per tensor.
    """

    SCRATCH = 1 << 22

    def __init__(self, session: Session, coords: Tensor | None) -> None:
        device, layout = session.parameters[0].device, session.layout
        small = layout.size <= self.SCRATCH
        self._whole = torch.empty(layout.size, dtype=layout.dtype, device=device) if small else None
        self._coords = None if coords is None else coords.to(device)
        starts = torch.tensor(layout.offsets)
        cuts = [] if coords is None else torch.searchsorted(coords.contiguous(), starts).tolist()
        self._local = [
            (i, self._coords[low:high] - layout.offsets[i])
            for i, (low, high) in enumerate(pairwise(cuts))
            if self._coords is not None and high > low
        ]
        self._parts: list[Tensor] = []

    def take(self, parts: list[Tensor], row: Tensor | None) -> None:
        """Process a gradient before it is clipped; write its coordinates into `row`."""
        self._parts = parts
        if self._whole is not None:
            if row is not None and self._coords is None and row.device == self._whole.device:
                self._whole = row
            torch.cat(parts, out=self._whole)
        if row is None or row is self._whole:
            return
        if self._coords is None:
            row.copy_(torch.cat(parts) if self._whole is None else self._whole)
        elif self._whole is not None:
            row.copy_(self._whole.index_select(0, self._coords))
        else:
            row.copy_(torch.cat([parts[i].index_select(0, local) for i, local in self._local]))

    def norm(self) -> Tensor:
        return torch.linalg.vector_norm(self._whole) if self._whole is not None else get_total_norm(self._parts)


def _evaluate(task: Task, session: Session, run: str, step: int) -> Evaluation:
    evaluation = task.evaluation(session.model)
    for name, value in evaluation.metrics.items():
        if not math.isfinite(value):
            raise OrderscopeError(
                f"metric {name!r} = {value} in run {run!r} after step {step}",
                "finite metrics",
                "look at that metric and at the learning rate; finished segments are kept",
            )
    return evaluation


def _check_weights_alone(task: Task, session: Session) -> None:
    """Check that a new model with the trained weights gives the same metrics, since other orders are evaluated by such
    models."""
    fresh = task.build_model()
    mine, theirs = dict(session.model.named_parameters()), dict(fresh.named_parameters())
    with torch.no_grad():
        for name, p in theirs.items():
            if name in session.layout.names:
                p.copy_(mine[name])
            elif not torch.equal(p, mine[name]):
                raise OrderscopeError(
                    f"parameter {name!r}, which the optimizer does not hold and training changed",
                    "weights that only the optimizer moves",
                    "hand it to the optimizer, or keep the model's and the optimizer's hooks away from it",
                )
    mine, theirs = task.evaluate(session.model), task.evaluate(fresh)
    for name, value in mine.items():
        # Weights and arithmetic are the same; devices may sum in another order.
        if not abs(theirs[name] - value) <= torch.finfo(session.layout.dtype).eps ** 0.5 * (1 + abs(value)):
            raise OrderscopeError(
                f"metric {name!r} = {value:.6g} of the trained model and {theirs[name]:.6g} of a new one with the same "
                "weights",
                "metrics that are a function of the trained weights",
                "look for buffers, flags or other parts of the model that training changes beside its weights",
            )


def _check_boundaries(boundaries: Sequence[int], steps: int) -> list[int]:
    ends = [int(b) for b in boundaries]
    if len(ends) < 2 or ends[0] != 0 or ends[-1] != steps or any(a >= b for a, b in pairwise(ends)):
        raise OrderscopeError(
            f"boundaries {ends}", f"ascending steps from 0 to {steps}", "begin with 0 and end with the number of steps"
        )
    return ends


def _check_coords(coords: Tensor | None, size: int) -> None:
    if coords is None:
        return
    ascending = coords.dim() == 1 and len(coords) and bool((coords[1:] > coords[:-1]).all())
    if coords.dtype != torch.int64 or not ascending or coords[0] < 0 or coords[-1] >= size:
        raise OrderscopeError(
            f"coordinates of shape {list(coords.shape)}, dtype {coords.dtype}",
            f"ascending int64 indices below {size}",
            "sort them and take each once",
        )


def _check_same_plan(store: RunStore, name: str, plan: str) -> None:
    if store.attrs(segment_name(name, 0))["plan"] != plan:
        raise OrderscopeError(
            f"run {name!r} recorded with another order, other boundaries or other coordinates",
            "the same recording to go on with",
            "record it under another name or into another directory",
        )
