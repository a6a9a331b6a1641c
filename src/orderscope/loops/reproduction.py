"""Does a task do what the loop did? Compared step by step while the reference order is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orderscope.errors import OrderscopeError
from orderscope.loops.first_step import standing_notices
from orderscope.loops.gradient_sample import GradientProbe
from orderscope.loops.legs import has_loop, load_state
from orderscope.loops.notices import SlowPathWarning
from orderscope.loops.recorded import Recorded, recorded
from orderscope.loops.scaling import ScaledRows
from orderscope.store import RunStore
from orderscope.task import Task
from orderscope.task.hyper import hyper_parameters
from orderscope.training.description import environment
from orderscope.training.loop import Session

# Rounding alone gives 1e-6; training under bfloat16 or float16 autocast and repeating in float32 gives up to 1e-2 in
# losses and gradients, more in later gradients, since small differences grow. Another loss, another clipping, active
# dropout or shifted sample ids are wrong by 0.1 to 1 at the first step they touch.
LOSS = 0.02  # largest difference of a step's loss, in units of the mean recorded loss
FIRST_GRADIENT, GRADIENT = 0.1, 0.5  # largest relative error on the probed coordinates, at the first step and later
STATE = 0.1  # largest distance of the weights at a kept state, in units of how far they moved since the start
RATE = 1e-6  # largest relative difference of learning rates and other options


@dataclass
class Reproduction:
    """Watches the reference order being trained again.

    Args:
        record: the loop.
        first: its step at which the task begins.
        session: the training that is watched.
    """

    record: Recorded
    first: int
    session: Session
    factor: float = (
        1.0  # what the task's losses are multiplied by in training, beside the loss that the loop passed to `step`
    )

    def __post_init__(self) -> None:
        assert self.record.rows is not None
        self._rows = self.record.rows.some(self.first - self.record.first, len(self.record.batches))
        self._probe = GradientProbe(self.session.layout, self.session.parameters)
        told = self._rows.loss[np.isfinite(self._rows.loss)]
        self._scale = float(np.abs(told).mean()) if len(told) else 1.0
        self._start = load_state(self.record.states[self.first]).theta
        self._loss = float("nan")

    def gradient(self, step: int, losses: Tensor) -> None:
        self.state(step)
        self._loss = float(losses.double().mean()) / self.factor
        self._check_hyper(step)

    def norm(self, step: int, value: Tensor | None) -> None:
        recorded_loss = float(self._rows.loss[step])
        gradients = [p.grad for p in self.session.parameters]
        mine = self._probe.of(gradients).double().cpu().numpy()
        theirs = self._rows.probe[step]
        norm = float(torch.nn.utils.get_total_norm([g for g in gradients if g is not None]))
        error = float(np.linalg.norm(mine - theirs) / max(np.linalg.norm(theirs), 1e-30))
        off = abs(self._loss - recorded_loss)
        if np.isfinite(recorded_loss) and not off <= LOSS * max(self._scale, abs(recorded_loss)):
            self._refuse(step, f"loss {self._loss:.6g}, recorded {recorded_loss:.6g}", norm)
        if theirs.any() and error > (FIRST_GRADIENT if step == 0 else GRADIENT):
            what = f"a gradient of norm {norm:.4g} whose coordinates are off by {error:.2g} of themselves"
            self._refuse(step, f"{what}, recorded norm {self._rows.norm[step]:.4g}", norm)

    def state(self, step: int) -> None:
        """Compare the weights after `step` steps where the loop's were kept."""
        place = self.record.states.get(self.first + step)
        if place is None:
            return
        theirs, mine = load_state(place).theta, self.session.layout.flatten(self.session.parameters).cpu()
        if step == 0:
            if not torch.allclose(mine, theirs, rtol=1e-6, atol=1e-8):
                self._refuse_start(mine, theirs)
            return
        moved = float((theirs - self._start).norm())
        off = float((mine - theirs).norm())
        if off > STATE * moved:
            self._refuse(step - 1, f"weights {off:.4g} away from the recorded ones, which moved by {moved:.4g}", None)

    def _check_hyper(self, step: int) -> None:
        for name, values in hyper_parameters(self.session.optimizer).items():
            if name not in self._rows.hyper:
                continue
            theirs = self._rows.hyper[name][step]
            if len(theirs) != len(values) or not np.allclose(values, theirs, rtol=RATE, atol=1e-12):
                raise OrderscopeError(
                    f"a task with {name} {_some(values)} at step {step}, recorded {_some(theirs)}",
                    "the optimizer and schedule of the recorded loop",
                    "leave optimizer= and scheduler= to the record (rec.task), or correct them",
                )

    def _refuse_start(self, mine: Tensor, theirs: Tensor) -> None:
        a, b = self.session.layout.unflatten(mine), self.session.layout.unflatten(theirs)
        name = max(a, key=lambda n: float((a[n] - b[n]).abs().max()))
        raise OrderscopeError(
            f"a model that starts with other weights than the recorded one, most of all in {name!r}",
            "the weights at the recorded start",
            "make the task with rec.task, or load these weights in model()",
        )

    def _refuse(self, step: int, what: str, norm: float | None) -> None:
        reached = f"reproduced up to step {step - 1}" if step else "from the first step on"
        raise OrderscopeError(
            f"a task that does not do what the loop did at step {step} ({reached}): {what}",
            "the recorded losses and gradients, up to rounding",
            self._likely(step, norm),
        )

    def _likely(self, step: int, norm: float | None) -> str:
        recorded_norms = self._rows.norm
        top = float(recorded_norms.max())
        ratio = norm / float(recorded_norms[step]) if norm and recorded_norms[step] > 0 else 1.0
        capped = np.isclose(recorded_norms, top, rtol=1e-3).mean() > 0.3
        reasons = [
            "check the loss and its averaging, that ids are indices into data=, max_grad_norm=, dropout and autocast"
        ]
        device, recorded_on = self.session.parameters[0].device, self.record.header["environment"]["device"]
        if environment(device)["device"] != recorded_on:
            reasons.append(f"the loop ran on {recorded_on}, the task runs on {device.type}")
        if capped and ratio > 1.05:
            reasons.insert(0, f"the loop seems to clip at {top:.3g}: pass max_grad_norm={top:.3g}")
        elif abs(np.log(ratio)) > 0.05:
            reasons.insert(
                0, f"gradients are {ratio:.3g} times the recorded: compare how losses are averaged, or pass scaling="
            )
        reasons[:0] = [text for kind, text in standing_notices(self.session.model) if kind is not SlowPathWarning]
        return "; ".join(reasons)


def reproduction(task: Task, store: RunStore, session: Session) -> Reproduction | None:
    """The check that a task does what the loop did; None where the store holds no loop's record.

    Args:
        task: what is to be trained.
        store: the run on disk.
        session: model, optimizer and scheduler of the task at its start.

    Raises:
        OrderscopeError: the task's order, parameters or optimizer are not the recorded ones.
    """
    if not has_loop(store):
        return None
    record = recorded(store.path)
    first = window_start(record, task.order)
    if first is None:
        raise OrderscopeError(
            f"a task with an order of shape {list(task.order.shape)} that the recorded loop did not train",
            "the recorded order, or a window of it that starts at a kept state",
            "make the task with rec.task, or pass order=rec.order",
        )
    _same(
        "trained parameters",
        [n for n, _ in record.header["parameters"]], list(session.layout.names),
    )  # fmt: skip
    _same("optimizer", record.header["optimizer"], type(session.optimizer).__name__)
    factor = task.data.factor if isinstance(task.data, ScaledRows) else 1.0
    return Reproduction(record, first, session, factor)


def window_start(record: Recorded, order: np.ndarray) -> int | None:
    """The loop's step from which on it trained an order; None where it never did.

    Args:
        record: what was recorded of the loop. Only steps whose state was kept are considered.
        order: sample ids, [steps, batch].
    """
    return next((step for step in record.states if _matches(record, step, order)), None)


def _matches(record: Recorded, first: int, order: np.ndarray) -> bool:
    rows = record.batches[first - record.first :][: len(order)]
    return len(rows) == len(order) and all(np.array_equal(a, b) for a, b in zip(rows, order, strict=True))


def _same(what: str, theirs: Any, mine: Any) -> None:
    if theirs == mine:
        return
    if isinstance(mine, list):
        differ = sorted(set(theirs) ^ set(mine))
        mine, theirs = f"{len(mine)} (differing in {', '.join(differ[:3]) or 'order'})", len(theirs)
    raise OrderscopeError(
        f"a task with {what} {mine}, recorded {theirs}", "what the loop trained", "make the task with rec.task"
    )


def _some(values: Any) -> str:
    return ", ".join(f"{float(v):.6g}" for v in list(values)[:4])
