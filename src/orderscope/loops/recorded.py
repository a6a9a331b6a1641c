"""What a Recorder wrote, read back: the order that was trained, and the task it makes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from orderscope.errors import OrderscopeError
from orderscope.loops.first_step import own_copy
from orderscope.loops.legs import Loop, Rows, kept_states, load_state, place, read_loop
from orderscope.loops.notices import NoGroupsWarning, ScaledWarning, UnevenStepsWarning, tell
from orderscope.loops.parts import NO_GROUPS, scaled_text, scaling_of, seen_at, with_scaling
from orderscope.loops.remembered import remember as remember_task
from orderscope.loops.scaling import Scaling
from orderscope.store import RunStore
from orderscope.task import Task
from orderscope.training.setup import RecordedSchedule, model_factory, optimizer_factory, optimizer_state
from orderscope.training.state import TrainingState


@dataclass(frozen=True)
class Recorded:
    """A recorded loop.

    Args:
        path: directory of the run.
        loop: its legs.
        batches: sample ids of each step from `loop.first` on, int64, of whatever length; of all ranks, in rank order.
        states: step -> place of the state after that many steps.
    """

    path: Path
    loop: Loop
    batches: list[np.ndarray]
    states: dict[int, Path]

    @property
    def first(self) -> int:
        return self.loop.first

    @property
    def last(self) -> int:
        """Steps trained, counted from the beginning of training."""
        return self.first + len(self.batches)

    @property
    def order(self) -> np.ndarray:
        """The whole order, int64 [steps, batch].

        Raises: OrderscopeError where steps are missing, or of unequal length.
        """
        if self.loop.gap is not None:
            raise OrderscopeError(
                self._gap_text(),
                "every step of the run",
                f"ask about the steps known, first={self.first}, last={self.last}, and call rec.flush() at checkpoints",
            )
        return self.window(self.first, self.last)

    def window(self, first: int, last: int) -> np.ndarray:
        """The order of some of the loop's steps, int64 [last - first, batch].

        Args:
            first: step to begin with.
            last: step to end before.

        Raises:
            OrderscopeError: as `order`.
        """
        if not self.first <= first < last <= self.last:
            raise OrderscopeError(
                f"steps {first} to {last}",
                f"a part of the recorded steps {self.first} to {self.last}",
                "correct first= and last=",
            )
        rows = self.batches[first - self.first : last - self.first]
        lengths = np.array([len(ids) for ids in rows])
        usual = int(np.bincount(lengths, minlength=2)[1:].argmax()) + 1
        odd = np.flatnonzero(lengths != usual)
        if len(odd):
            step = first + int(odd[0])
            what = f"{lengths[odd[0]]} samples" if lengths[odd[0]] else "no sample ids"
            raise OrderscopeError(
                f"step {step} with {what}, where the others have {usual} ({len(odd)} such steps)",
                "steps of one size, [steps, batch]",
                f"ask about a window without them, for instance last={step}, or train with drop_last=True"
                if lengths[odd[0]] else "call rec.step(ids) once after every optimizer.step()",
            )  # fmt: skip
        return np.stack(rows)

    @cached_property
    def rows(self) -> Rows | None:
        return self.loop.rows

    @property
    def header(self) -> dict[str, Any]:
        """Of the latest leg: model, optimizer and where it ran."""
        return self.loop.legs[-1].header

    @property
    def problems(self) -> list[str]:
        """What is missing or odd, in words; empty where the record is whole."""
        found = []
        if not self.batches:
            return ["no step was recorded"]
        if self.loop.legs[-1].end is None:
            found.append(f"the loop was interrupted; {len(self.batches)} steps are known")
        if self.loop.gap is not None:
            found.append(f"found {self._gap_text()}; expected every step; call rec.flush() at every checkpoint")
        for first, last, same in self.loop.retaken:
            if not same:
                found.append(
                    f"found steps {first} to {last - 1} with other samples after the resume than before it; expected "
                    "the same data order; the later ones are kept, since they made the model: seed the sampler if "
                    "they should be equal"
                )
        silent = [self.first + i for i, ids in enumerate(self.batches) if not len(ids)]
        if silent:
            found.append(
                f"found {len(silent)} optimizer steps without sample ids, the first at step {silent[0]}; expected "
                "rec.step(ids) after each optimizer.step(); call it in every step"
            )
        lengths = {len(ids) for ids in self.batches if len(ids)}
        if len(lengths) > 1:
            step = next(self.first + i for i, ids in enumerate(self.batches) if len(ids) != len(self.batches[0]))
            found.append(
                f"found steps of {min(lengths)} to {max(lengths)} samples, the first other one at step {step}; "
                "expected one size; ask about a window without them (first=, last=) or train with drop_last=True"
            )
        return found

    def task(
        self,
        *,
        model: Any,
        loss: Callable[[Any, Any], torch.Tensor],
        data: Any,
        optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
        scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        first: int | None = None,
        last: int | None = None,
        scaling: Scaling | None = None,
        remember: bool = True,
        **rest: Any,
    ) -> Task:
        """The recorded loop, or a window of it, as a task; `osc.record(task, path)` goes on from there.

        Starting weights, optimizer, its moments and the schedule are those recorded, so that only what a hook cannot
        see has to be said. Recording trains the window once more and refuses where it does not come out as recorded.

        Args:
            model: the module that was trained (it is copied), or `() -> module`.
            loss: as for `Task`.
            data: as for `Task`.
            optimizer: as for `Task`; by default made again from the record.
            scheduler: as for `Task`; by default the recorded rates.
            first: step that the window begins at, one of `states`; by default the first.
            last: step that it ends before; by default the last, but for a shorter last step.
            scaling: how the loop weighed its samples beside the loss; by default found by comparing the gradient of the
                loss with the recorded one, with a warning where it is no mean over the samples. Metrics keep the loss's
                own scale.
            remember: write the task beside the run, as PATH_task.py, for the command line; only where all of its parts
                have names that can be imported. Otherwise the run notes which has none.
            **rest: as for `Task`: metrics, groups, max_grad_norm, collate.

        Raises:
            OrderscopeError: no state was kept at `first`, steps are missing or uneven, or as `Task`.
        """
        first = self.first if first is None else first
        if last is None and self._short_tail(first):
            last = self.last - 1
            tell(
                UnevenStepsWarning,
                f"the last step has {len(self.batches[-1])} samples, the others {len(self.batches[-2])}: the task ends "
                f"before it, last={last}; train with drop_last=True to have all",
            )
        order = self.order[first - self.first :] if last is None else self.window(first, last)
        last = first + len(order)
        state = self._state_at(first)
        assert self.rows is not None
        model = own_copy(model) if isinstance(model, nn.Module) else model
        hyper = {n: v[first - self.first : last - self.first] for n, v in self.rows.hyper.items()}
        names = [n for n, _ in self.header["parameters"]]
        parts = {"loss": loss, "data": data, **rest}
        fixed: dict[str, Any] = {
            "model": model_factory(model, names, state),
            "optimizer": optimizer or optimizer_factory(self.header),
            "scheduler": scheduler or (lambda built: RecordedSchedule(built, hyper)),
            "order": order,
            "optimizer_state": optimizer_state(self.header, names, state),
        }
        task = Task(**fixed, **parts)
        if scaling is None:
            scaling = self._scaling(task, model, names, first)
            if not scaling.plain:
                tell(ScaledWarning, scaled_text(scaling, order))
        if not scaling.plain:
            task = Task(**fixed, **with_scaling(parts, task, scaling))
        if remember and task.groups is None:
            tell(NoGroupsWarning, NO_GROUPS)
        if remember:
            given = {"model": model, **parts, "optimizer": optimizer, "scheduler": scheduler}
            given |= {} if (first, last) == (self.first, self.last) else {"first": first, "last": last}
            remember_task(self.path, given | {"scaling": scaling}, task)
        return task

    def _state_at(self, first: int) -> TrainingState:
        """The state before a step. Raises: OrderscopeError where none was kept there."""
        if not self.states:
            raise OrderscopeError(
                f"no state kept in {self.path}",
                "a run of osc.Recorder: osc.Watcher keeps none",
                "record the loop with osc.Recorder",
            )
        if first not in self.states:
            raise OrderscopeError(
                f"first={first}",
                f"a step whose state was kept: {', '.join(str(s) for s in self.states)}",
                "choose one of these",
            )
        return load_state(self.states[first])

    def _short_tail(self, first: int) -> bool:
        """Whether all steps but the last have one size, and it is shorter."""
        sizes = [len(ids) for ids in self.batches[first - self.first :]]
        return self.loop.gap is None and len(sizes) > 2 and len(set(sizes[:-1])) == 1 and 0 < sizes[-1] < sizes[0]

    def _scaling(self, task: Task, model: Any, names: list[str], first: int) -> Scaling:
        """How the loop averaged, as seen at kept states; plain where the loss given does not explain it, which is then
        refused when the order is trained again."""
        assert self.rows is not None
        kept = [step for step in self.states if first <= step < first + len(task.order)]
        steps = [
            (
                seen_at(self.rows, step - self.first),
                lambda step=step: model_factory(model, names, load_state(self.states[step]))(),
            )
            for step in kept
        ]
        return scaling_of(task, steps)[0] or Scaling()

    def _gap_text(self) -> str:
        assert self.loop.gap is not None
        reached, begun = self.loop.gap
        return f"nothing of steps {reached} to {begun - 1}, between an interruption and the checkpoint it went on from"


def recorded(path: str | os.PathLike[str]) -> Recorded:
    """Read what a Recorder wrote, also of a loop that was killed.

    Raises:
        IncompleteRun: no loop was recorded there.
        OrderscopeError: the ids of another rank are missing.
    """
    path = Path(path)
    loop = read_loop(RunStore.open(path))
    for rank in range(1, int(loop.legs[-1].header["world_size"])):
        other = read_loop(RunStore.open(place(path, rank)))
        loop = replace(loop, rows=_of_both(loop, other))
    return Recorded(path, loop, [] if loop.rows is None else loop.rows.batches, kept_states(path, loop))


def _of_both(loop: Loop, other: Loop) -> Rows | None:
    """Steps of which both ranks are known: the ids of one after the other, the mean loss of all."""
    if loop.rows is None or other.rows is None or other.first != loop.first:
        return None
    count = min(len(loop.rows), len(other.rows))
    mine, theirs = loop.rows.some(0, count), other.rows.some(0, count)
    a, b = (np.array([len(ids) for ids in rows.batches]) for rows in (mine, theirs))
    return replace(
        mine,
        batches=[np.concatenate(pair) for pair in zip(mine.batches, theirs.batches, strict=True)],
        loss=(a * mine.loss + b * theirs.loss) / np.maximum(a + b, 1),
    )
