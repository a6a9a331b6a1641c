"""Record a training loop from inside: a hook sees what the optimizer did, `step` says which samples were in it.

Past 400 lines: the hook, `step` and what is written between them are one protocol, which a loop may leave at any point.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from orderscope.errors import OrderscopeError
from orderscope.loops.beginning import (
    FIRST_STRIDE,
    check_recordable,
    counts_steps,
    members,
    place_among_ranks,
    stride_after,
)
from orderscope.loops.first_step import FirstStep
from orderscope.loops.gradient_sample import GradientProbe
from orderscope.loops.legs import LegWriter, place
from orderscope.loops.notices import (
    BatchStatisticsWarning,
    ChanceWarning,
    RecorderWarning,
    SameBatchWarning,
    TaskWarning,
    tell,
)
from orderscope.loops.parts import part_notices
from orderscope.loops.recorded import Recorded, recorded
from orderscope.loops.steps import Applied, Ids, as_ids, joined, to_rows
from orderscope.loops.watching import Watch, cold_moments, same_batches, started_over
from orderscope.task.hyper import hyper_parameters
from orderscope.task.layout import ParameterLayout
from orderscope.training.description import environment
from orderscope.training.loop import Session
from orderscope.training.setup import describe_optimizer, unwrapped
from orderscope.training.state import TrainingState, capture, require_supported

FLUSH_STEPS, FLUSH_SECONDS = 64, 20.0  # steps are written when there are so many, or after so many seconds
# Saving states may take 2 % of the training's time, on a disk that is taken to write 500 MB a second.
SHARE, DISK = 0.02, 5e8
HELD_BYTES = 1 << 28  # states up to this size in all wait in memory: of the first steps' most are dropped again
HOPELESS = (ChanceWarning, BatchStatisticsWarning, TaskWarning)  # rule out any question about another order


class Refused(OrderscopeError):
    """A training that `strict` stops at its first step."""


class Recorder:
    """Watches a training loop and records what predictions for other orders need.

        with osc.Recorder("run", model, optimizer) as rec:
            for ids, batch in loader:
                ...
                optimizer.step()
                rec.step(ids)

    A step counts when the optimizer moved the weights: one that a gradient scaler skipped does not. With accumulation,
    call `step` once with all ids, or for every micro-batch. Nothing here changes a bit of the run: hooks only read. A
    fault inside never stops the training: a warning says so, what was recorded before is kept, and the end says
    what is missing.

    Args:
        path: directory of the run. A loop that was interrupted and goes on from a checkpoint is given the same one:
            steps that are trained again supersede those recorded before.
        model, optimizer: as they train; SGD, Adam or AdamW of torch.optim. Wrappers (DDP, torch.compile) are seen
            through.
        scheduler: not needed: rates are read as each step uses them. Taken so that all three may be handed over.
        anchors: states kept, at evenly spread steps; up to twice as many where `steps` is not given.
        steps: how many steps the loop will take, where that is known.
        step: the step the loop begins at. Adam counts its steps, so this is needed only to go on with SGD, or to
            record the tail of a run under its own step numbers.
        rank, world_size: of this process; by default torch.distributed's. Rank 0 writes the run, the others their ids
            beside it.
        samples: of the data set, so that samples seen twice or never in an epoch are noticed.
        task: what `task` will be given (model, loss, data, ...): it is then compared with the loop at the first step,
            and need not be given again.
        states: False to watch only, see `Watcher`.
        check: False to leave out what is looked at in the first step.
        strict: stop the training at its first step where no other order could be asked about: active dropout, batch
            statistics, a task that is not the loop.

    Raises:
        OrderscopeError: before training starts, for an optimizer that cannot be carried, weights in low precision
            without a float32 copy, sharded parameters, another recorder on the same run. Later nothing is raised, but
            for `strict`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any = None,
        *,
        anchors: int = 8,
        steps: int | None = None,
        step: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        samples: int | None = None,
        task: Mapping[str, Any] | None = None,
        states: bool = True,
        check: bool = True,
        strict: bool = False,
    ) -> None:
        self.path = place(path, 0)
        self._rank, self._world_size = place_among_ranks(rank, world_size)
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has no hooks
        require_supported(optimizer)
        called, model = model, unwrapped(model)
        layout = ParameterLayout.of(model, optimizer)
        check_recordable(layout, layout.of_model(model), anchors, steps, step)
        self._session = Session(model, optimizer, scheduler, layout)
        self._probe = GradientProbe(layout, self._session.parameters)
        self._targets = None if steps is None else {round(x) for x in np.linspace(0, steps, max(2, anchors))}
        self._anchors, self._steps, self._stride = anchors, steps, FIRST_STRIDE
        self._given_step = step
        self._kept: list[int] = []
        self._held: dict[int, TrainingState] = {}
        self._writer = LegWriter(place(path, self._rank))
        if self._writer.before is not None and step is None and not counts_steps(optimizer):
            self._writer.close()
            raise OrderscopeError(
                f"a loop to go on with at {self.path} under {type(optimizer).__name__}, which does not count its steps",
                "the step it goes on from",
                "pass step= (steps trained before the checkpoint)",
            )
        self.problems: list[str] = []
        self.said: set[type[RecorderWarning]] = set()
        self._states, self._strict = states, strict
        self._parts = dict(task or {})
        self.expected = step  # steps trained before, as far as that is known
        self._start: TrainingState | None = None
        data = self._parts.get("data")
        samples = len(data) if samples is None and data is not None and hasattr(data, "__len__") else samples
        self._watch = Watch(samples if self._world_size == 1 else None, self._writer.earlier)
        self._unwatched: list[tuple[int, Applied]] = []
        self._first_step = FirstStep(called) if check and states and self._rank == 0 else None
        self._first: int | None = None
        self._done = 0
        self._applied: Applied | None = None
        self._waiting: list[tuple[Ids, Any]] = []
        self._finished: list[Applied] = []
        self._last_flush = time.monotonic()
        self._counts: dict[int, float] = {}
        self._groups: list[list[int]] = []
        self._versions = -1
        self._not_before = 0.0
        self._skipped = self._without_ids = self._told = 0
        self._faulty = self._closed = False
        self._recorded: Recorded | None = None
        self._pid = os.getpid()
        self._told_step = self._guarded(self._step)
        self._hooks = [
            optimizer.register_step_pre_hook(self._guarded(self._before_step)),
            optimizer.register_step_post_hook(self._guarded(self._after_step)),
        ]
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def step(self, ids: Any, loss: Any = None) -> None:
        """Say whose gradients the optimizer's step was made of.

        Args:
            ids: sample ids (indices into the data set) as a list, array or tensor of integers.
            loss: their mean loss, a number or tensor, before any scaling or division by accumulation steps; optional.
        """
        self._told_step(ids, loss)

    def flush(self) -> None:
        """Put all steps so far on disk, for instance when a checkpoint is written."""
        self._guarded(self._flush)(True)

    def close(self) -> None:
        """Stop watching and finish the files on disk; a `with` block does it. Warns of anything missing."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        atexit.unregister(self.close)
        for hook in self._hooks:
            hook.remove()
        if self._first_step is not None:
            self._first_step.close()
        self._guarded(self._finish)()
        with suppress(Exception):
            ended = {"problems": self.problems, "skipped": self._skipped, "without_ids": self._without_ids}
            self._writer.end(ended)
        with suppress(Exception):
            self._writer.close()
        if self._world_size == 1 and self._first is not None:
            with suppress(Exception):
                self._recorded = recorded(self.path)
                self.problems += self._recorded.problems
        if self.problems:
            tell(RecorderWarning, f"recording {self.path}: " + "; ".join(dict.fromkeys(self.problems)))

    @property
    def recorded(self) -> Recorded:
        """What was recorded, after the end.

        Raises: OrderscopeError before the end, or where nothing was recorded.
        """
        if self._closed and self._world_size > 1 and self._rank == 0:
            return recorded(self.path)  # other ranks may have ended later
        if self._recorded is None:
            raise OrderscopeError(
                "a recorder that is still recording" if not self._closed else "nothing recorded on this rank",
                "a finished recording with at least one step",
                "ask after the `with` block, on rank 0: " + ("; ".join(self.problems) or "osc.recorded(path)"),
            )
        return self._recorded

    @property
    def order(self) -> np.ndarray:
        """The order that was trained, int64 [steps, batch]. Raises as `Recorded.order`."""
        return self.recorded.order

    @property
    def batches(self) -> list[np.ndarray]:
        """Sample ids of each step, of whatever length."""
        return self.recorded.batches

    def task(self, **parts: Any) -> Any:
        """The recorded run as an `osc.Task`, see `Recorded.task`; the model, and parts that the recorder was given,
        need not be given again."""
        given: dict[str, Any] = {"model": self._session.model, **self._parts, **parts}
        return self.recorded.task(**given)

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._first is None:
            self._groups = members(optimizer)
            self._begin()
        elif members(optimizer) != self._groups:
            if self._rank == 0 and self._states and self._done not in self._kept:
                self._save()  # so that what was recorded ends with its state
            raise OrderscopeError(
                f"an optimizer whose parameter groups were changed after step {self._done}",
                "the groups that it had at the first step",
                "the steps up to there are kept; record what follows into another directory, from a recorder made "
                "after the change",
            )

    def _begin(self) -> None:
        session, before = self._session, self._writer.before
        state = capture(session, rng=False)
        count = float(state.count.max())
        if self._given_step is not None:
            first = self._given_step
        elif before is not None:
            first = int(before["first"] + count - before["count"])
        else:
            first = 0
        self._counts = dict(enumerate(state.count.tolist()))
        self._first = self._done = first
        weights = self._probe.of(session.parameters).double().cpu().numpy()
        started = None if before is None else before.get("weights")
        moved = started is not None and not np.array_equal(started, weights)
        cold = cold_moments(session.optimizer, state, step=self.expected, moved=moved)
        self._tell(cold or started_over(self.path, self._writer.earlier, first))
        self._watch.begin(first, fresh=not (first or state.count.any()))
        if self._first_step is not None:
            self._tell(self._first_step.notices(session.model))
        self._writer.begin(
            {"first": first, "count": count, "rank": self._rank, "world_size": self._world_size, "steps": self._steps,
             "environment": environment(session.parameters[0].device), "probe": self._probe.places,
             "weights": weights.tolist(), "watched": not self._states,
             **describe_optimizer(session)}
        )  # fmt: skip
        if self._rank == 0 and self._states:
            self._writer.state(first, state)
        self._start = state if self._parts else None
        if before is not None and first > before["first"]:
            self._stride = stride_after(first - before["first"], self._anchors)

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for p in self._session.parameters]
        if not self._moved(optimizer, gradients):
            return
        if self._applied is not None:
            self._complete([])
        self._applied = Applied(hyper_parameters(optimizer), *self._probe.measured(gradients), [], [])
        self._done += 1
        self._versions = self._weights_versions()
        self._keep_state()

    def _moved(self, optimizer: torch.optim.Optimizer, gradients: list[Tensor | None]) -> bool:
        """Whether the step changed the weights: under a scaler fused optimizers fire the hook on skipped steps too."""
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and float(found_inf):
            return False
        index = 0
        if gradients[0] is None:
            index = next((i for i, g in enumerate(gradients) if g is not None), -1)
        if index < 0:
            return False
        count = optimizer.state.get(self._session.parameters[index], {}).get("step")
        if count is None:
            return True
        before, self._counts[index] = self._counts.get(index, 0.0), float(count)
        return self._counts[index] > before

    def _step(self, ids: Any, loss: Any) -> None:
        if self._closed:
            return
        self._told += 1
        row = as_ids(ids), loss.detach() if isinstance(loss, Tensor) else loss
        if self._applied is None:
            if self._discarded():
                self._skipped += 1
                self._waiting = []
            else:
                self._waiting.append(row)
        elif self._waiting and self._backward_since():  # `step` is called before the optimizer's step
            self._complete(self._waiting)
            self._waiting = [row]
        else:
            self._complete([*self._waiting, row])
            self._waiting = []

    def _discarded(self) -> bool:
        """Whether the gradients of a batch were thrown away: a skipped step leaves none, or such as are not finite.
        In the middle of an accumulation they stand there."""
        held = [p.grad for p in self._session.parameters if p.grad is not None]
        norm = float(get_total_norm(held)) if held else 0.0
        return norm == 0.0 or not np.isfinite(norm)

    def _backward_since(self) -> bool:
        """Whether gradients were added since the optimizer's step."""
        assert self._applied is not None
        gradients = [p.grad for p in self._session.parameters]
        if all(g is None for g in gradients):
            return False
        now = self._probe.of(gradients)
        return bool(now.any()) and not torch.equal(now, self._applied.probe)

    def _complete(self, rows: list[tuple[Ids, Any]]) -> None:
        step = self._applied
        assert step is not None
        self._applied = None
        self._without_ids += not rows
        step.ids = [ids for ids, _ in rows]
        step.losses = [(loss, len(ids)) for ids, loss in rows]
        self._finished.append(step)
        if all(isinstance(ids, np.ndarray) for ids in step.ids):
            self._see(self._done - 1, step)
        else:
            self._unwatched.append((self._done - 1, step))  # its ids are fetched from the accelerator when written
        self._flush(False)

    def _see(self, number: int, step: Applied) -> None:
        """Look at the ids of a step, and at the task's parts where these were given and it is the first."""
        ids = joined(step.ids)
        self._tell(self._watch.step(number, ids))
        if self._parts and self._start is not None and len(ids) and self._world_size == 1:
            start, self._start = self._start, None
            self._tell(part_notices(self._parts, self._session, start, to_rows([step])))

    def _tell(self, notices: list[tuple[type[RecorderWarning], str]]) -> None:
        """Warn, of each kind once."""
        for kind, text in notices:
            if kind in self.said:
                continue
            self.said.add(kind)
            if self._strict and kind in HOPELESS:
                raise Refused(text, "a training whose other orders can be predicted", "or leave out strict=True")
            tell(kind, f"recording {self.path}: {text}")

    def _flush(self, wait: bool) -> None:
        due = len(self._finished) >= max(FLUSH_STEPS, (self._done - (self._first or 0)) // 16)
        late = time.monotonic() - self._last_flush > FLUSH_SECONDS
        if self._finished and (wait or due or late):
            rows, self._finished = self._finished, []
            self._writer.rows(to_rows(rows))
            unwatched, self._unwatched = self._unwatched, []
            for number, step in unwatched:
                self._see(number, step)
        if wait or late:
            self._last_flush = time.monotonic()
            self._spill()
        if wait:
            self._writer.flush()
        if (wait or late) and self._world_size > 1 and SameBatchWarning not in self.said:
            with suppress(Exception):  # the other rank may not have begun
                self._tell(same_batches(self.path, self._rank, self._watch.early))

    def _keep_state(self) -> None:
        if self._rank or not self._states:
            return
        if self._targets is not None:
            if self._done in self._targets:
                self._save()
            return
        if self._done % self._stride:
            return
        began = time.perf_counter()
        if began < self._not_before:
            self._stride *= 2
            return
        size = self._save()
        self._not_before = began + (time.perf_counter() - began + size / DISK) / SHARE
        if len(self._kept) > 2 * self._anchors:
            self._stride *= 2
            for step in [s for s in self._kept if s % self._stride]:
                self._kept.remove(step)
                if self._held.pop(step, None) is None:
                    self._writer.drop(step)

    def _save(self) -> int:
        """Keep the state as it is now; its size in bytes."""
        self._kept.append(self._done)
        state = self._held[self._done] = capture(self._session, rng=False)
        size = state.theta.nbytes * (1 + len(state.moments)) + sum(b.nbytes for b in state.buffers.values())
        if size * len(self._held) > HELD_BYTES:
            self._spill()
        return size

    def _spill(self) -> None:
        while self._held:
            step = next(iter(self._held))
            self._writer.state(step, self._held.pop(step))

    def _finish(self) -> None:
        if self._first is None:
            self.problems.append(
                "found no step of the optimizer; expected optimizer.step() inside the recorder; "
                "create it before the loop and hand it the optimizer that trains"
            )
            return
        if self._applied is not None:
            self._complete(self._waiting)
        changed = self._weights_versions() != self._versions
        if self._rank == 0 and self._states and self._done > self._first and self._done not in self._kept:
            if changed:
                self.problems.append("the weights were changed after the last step, so the final state was not kept")
            else:
                self._save()
        if not self._told:
            self.problems.append(
                f"found {self._done - self._first} optimizer steps and no call of step; expected rec.step(ids) after "
                "each; call it in the loop"
            )
        self._flush(True)
        self._tell(self._watch.end())

    def _weights_versions(self) -> int:
        return sum([p._version for p in self._session.parameters])

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., None]:
        """Nothing that goes wrong here may reach the training loop."""

        def run(*args: Any, **kwargs: Any) -> None:
            if self._faulty:
                return
            try:
                method(*args, **kwargs)
            except Refused:
                self._faulty = True
                raise
            except Exception as error:
                self._faulty = True
                self.problems.append(f"recording stopped after step {self._done}: {error or type(error).__name__}")
                tell(RecorderWarning, f"recording {self.path} stopped, training continues: {error}")
                with suppress(Exception):
                    self._flush(True)

        return run


class Watcher(Recorder):
    """A recorder that only watches: it warns as `Recorder` does of cold moments, another order after a resume, samples
    seen twice or never, and ranks with the same batch, and keeps the ids, losses and gradient norms of the steps. No
    states are kept, so that no other order can be asked about afterwards.

    Args:
        path, model, optimizer, options: as for `Recorder`.
    """

    def __init__(
        self, path: str | os.PathLike[str], model: nn.Module, optimizer: torch.optim.Optimizer, **options: Any
    ) -> None:
        super().__init__(path, model, optimizer, **{**options, "states": False})
