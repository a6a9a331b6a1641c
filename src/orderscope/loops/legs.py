"""A loop's record on disk: one leg for each start of the loop, with steps as shards and states in files of their own.

    <path>/          loop/000/leg, loop/000/rows-000000, ...   what happened, never written over
    <path>/states/   000000032-000, ...                        a small store each, so that they can be thinned out

A leg that starts at step s supersedes what earlier legs hold from step s on: they trained it and were taken back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orderscope.errors import DamagedRun, IncompleteRun, OrderscopeError
from orderscope.store import RunStore
from orderscope.store.names import REFERENCE
from orderscope.training.segments import finished_segments, read_state, segment_name, write_segment
from orderscope.training.state import TrainingState

LOOP = "loop"
STATES = "states"
NO_RUN = "loop"


@dataclass(frozen=True)
class Rows:
    """Steps of a loop.

    Args:
        batches: sample ids of each step, int64 arrays that may differ in length.
        loss: mean loss of each step, NaN where none was passed to `step`, float64 [steps].
        norm: norm of the gradient each step applied, float64 [steps].
        probe: that gradient on a few fixed coordinates, float64 [steps, probed].
        hyper: name -> float64 [steps, param_groups].
    """

    batches: list[np.ndarray]
    loss: np.ndarray
    norm: np.ndarray
    probe: np.ndarray
    hyper: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.batches)

    def some(self, first: int, last: int) -> Rows:
        """A part of the steps.

        Args:
            first: index of the first.
            last: index after the last.
        """
        part = slice(first, last)
        hyper = {name: values[part] for name, values in self.hyper.items()}
        return Rows(self.batches[part], self.loss[part], self.norm[part], self.probe[part], hyper)

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        return cls(
            [ids for part in parts for ids in part.batches],
            np.concatenate([part.loss for part in parts]),
            np.concatenate([part.norm for part in parts]),
            np.concatenate([part.probe for part in parts]),
            {name: np.concatenate([part.hyper[name] for part in parts]) for name in parts[0].hyper},
        )


@dataclass(frozen=True)
class Leg:
    """One start of the loop.

    Args:
        number: which one, from 0.
        first: the loop's step that it begins with.
        header: model, optimizer and machine, as they were written down at its start.
        rows: its steps; None where it has none.
        end: what was written down at its end; None where it was killed.
    """

    number: int
    first: int
    header: dict[str, Any]
    rows: Rows | None
    end: dict[str, Any] | None

    @property
    def last(self) -> int:
        return self.first + (0 if self.rows is None else len(self.rows))


@dataclass(frozen=True)
class Loop:
    """All legs of a run, the later superseding the earlier.

    Args:
        rows: the steps from `first` on as they finally counted.
        first: the step recording began at, 0 unless it was begun in mid-run.
        gap: (steps recorded up to, step the next leg began at) where steps between two legs were lost, or None; `rows`
            end before it, or begin after it where nothing is known before.
        retaken: steps trained again after a resume, with whether the data came in the same order as before.
    """

    legs: list[Leg]
    first: int
    rows: Rows | None
    gap: tuple[int, int] | None
    retaken: list[tuple[int, int, bool]]


def place(path: str | os.PathLike[str], rank: int) -> Path:
    """The directory that a rank writes to: rank 0 to the run, the others next to it.

    Args:
        path: the run.
        rank: from 0.
    """
    path = Path(path)
    return path if rank == 0 else path.with_name(f"{path.name}.rank-{rank}")


@dataclass
class LegWriter:
    """Writes one leg in a thread of its own; a failure is raised by the next call.

    Raises:
        OrderscopeError: another process writes there, or a finished run is there.
    """

    path: Path
    number: int = field(init=False)
    before: dict[str, Any] | None = field(init=False)
    earlier: Loop | None = field(init=False)

    def __post_init__(self) -> None:
        """Take the run's lock; `before` is the header of its first leg and `earlier` all of its legs, None where this
        is the first."""
        self._store = RunStore.create(self.path)
        try:
            if _reference_trained(self._store):
                raise finished(self.path)
            refused = [name for name in self._store.names() if not name.startswith(f"{LOOP}/")]
            if refused:  # of a task that did not reproduce the loop: this loop is the next try
                self._store.drop(refused)
            self.number = _legs(self._store)
            self.before = self._store.attrs(f"{LOOP}/000/leg") if self.number else None
            self.earlier = read_loop(self._store) if self.number else None
        except BaseException:
            self._store.close()
            raise
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="orderscope-recorder")
        self._pending: list[Future[None]] = []
        self._parts = 0

    def begin(self, header: Mapping[str, Any]) -> None:
        self._store.write(f"{LOOP}/{self.number:03d}/leg", {}, header)

    def rows(self, rows: Rows) -> None:
        name = f"{LOOP}/{self.number:03d}/rows-{self._parts:06d}"
        self._parts += 1
        arrays = {
            "ids": np.concatenate(rows.batches), "lengths": np.array([len(ids) for ids in rows.batches]),
            "loss": rows.loss, "norm": rows.norm, "probe": rows.probe,
            **{f"hyper:{n}": v for n, v in rows.hyper.items()},
        }  # fmt: skip
        self._submit(lambda: self._store.write(name, arrays, {"hyper": list(rows.hyper)}))

    def state(self, step: int, state: TrainingState) -> None:
        """Write a state, in the background.

        Args:
            step: steps of the loop taken before it.
            state: weights, moments, buffers and random numbers.
        """
        self._submit(lambda: self._write_state(step, state))

    def drop(self, step: int) -> None:
        self._submit(lambda: shutil.rmtree(self._state_path(step), ignore_errors=True))

    def flush(self) -> None:
        """Wait until all is on disk."""
        self._collect(0)

    def end(self, end: Mapping[str, Any]) -> None:
        """Write how the leg ended."""
        self.flush()
        self._store.write(f"{LOOP}/{self.number:03d}/end", {}, end)

    def close(self) -> None:
        """Let others write."""
        self._thread.shutdown()
        self._store.close()

    def _write_state(self, step: int, state: TrainingState) -> None:
        with RunStore.create(self._state_path(step)) as store:
            write_segment(store, NO_RUN, 0, {}, state, {"step": step})

    def _state_path(self, step: int) -> Path:
        return self.path / STATES / f"{step:09d}-{self.number:03d}"

    def _submit(self, work: Any) -> None:
        self._collect(2)  # two copies of a state in memory at most
        self._pending.append(self._thread.submit(work))

    def _collect(self, left: int) -> None:
        while len(self._pending) > left or (self._pending and self._pending[0].done()):
            self._pending.pop(0).result()


def finished(path: Path) -> OrderscopeError:
    """The error for recording a loop into a run that is complete already."""
    return OrderscopeError(
        f"a run at {path} that was recorded and probed already",
        "a new directory, or one whose loop was interrupted",
        f"to start afresh delete it (rm -r {path}) or give another path; to go on with it leave the training out and "
        f"ask: orderscope query {path} --order reverse, or osc.recorded({str(path)!r}).task(...)",
    )


def is_finished(path: str | os.PathLike[str]) -> bool:
    """Whether a directory holds a run whose reference was trained from its task."""
    return RunStore.is_there(Path(path)) and _reference_trained(RunStore.open(path))


def _reference_trained(store: RunStore) -> bool:
    first = segment_name(REFERENCE, 0)
    return first in store and finished_segments(store, REFERENCE) == len(store.attrs(first)["boundaries"])


def has_loop(store: RunStore) -> bool:
    return f"{LOOP}/000/leg" in store


def read_loop(store: RunStore) -> Loop:
    """The legs of a run, put together.

    Raises: IncompleteRun where no loop was recorded.
    """
    if not has_loop(store):
        raise IncompleteRun(
            f"no recorded loop in {store.path}", "a run begun by osc.Recorder", "run the training loop under a Recorder"
        )
    legs = [_read_leg(store, number) for number in range(_legs(store))]
    first = legs[0].first
    rows: Rows | None = None
    gap: tuple[int, int] | None = None
    ended = False
    retaken: list[tuple[int, int, bool]] = []
    for leg in legs:
        reached = first + (0 if rows is None else len(rows))
        if leg.rows is None or ended:
            continue
        if leg.first > reached:
            gap, ended = (reached, leg.first), rows is not None
            if ended:
                continue
        if rows is None or leg.first < first:
            first, rows = leg.first, None
        if rows is not None and leg.first < reached:
            last = min(reached, leg.last)
            before, now = rows.batches[leg.first - first : last - first], leg.rows.batches[: last - leg.first]
            same = all(np.array_equal(a, b) for a, b in zip(before, now, strict=True))
            retaken.append((leg.first, last, same))
            rows = rows.some(0, leg.first - first)
        rows = leg.rows if rows is None else Rows.joined([rows, leg.rows])
    return Loop(legs, first, rows, gap, retaken)


def kept_states(path: Path, loop: Loop) -> dict[int, Path]:
    """States that were kept: steps taken before -> directory, ascending. Where several legs kept one, that of the leg
    that counts.

    Args:
        path: the run.
        loop: all legs of the run.
    """
    found: dict[int, tuple[int, Path]] = {}
    for place in sorted((path / STATES).glob("*-*")):
        step, number = (int(part) for part in place.name.split("-"))
        superseded = any(leg.number > number and leg.first < step for leg in loop.legs if leg.rows is not None)
        if not superseded and _readable(place) and (step not in found or number > found[step][0]):
            found[step] = number, place
    return {step: place for step, (_, place) in sorted(found.items())}


def load_state(place: Path) -> TrainingState:
    return read_state(RunStore.open(place), NO_RUN, 0)


def _readable(place: Path) -> bool:
    try:
        return segment_name(NO_RUN, 0) in RunStore.open(place)
    except (OrderscopeError, DamagedRun):
        return False


def _legs(store: RunStore) -> int:
    return sum(name.endswith("/leg") for name in store.names(f"{LOOP}/"))


def _read_leg(store: RunStore, number: int) -> Leg:
    prefix = f"{LOOP}/{number:03d}"
    header = store.attrs(f"{prefix}/leg")
    parts = []
    for name in store.names(f"{prefix}/rows-"):
        arrays, names = store.read(name), store.attrs(name)["hyper"]
        batches = np.split(arrays["ids"], np.cumsum(arrays["lengths"])[:-1])
        hyper = {n: arrays[f"hyper:{n}"] for n in names}
        parts.append(Rows(batches, arrays["loss"], arrays["norm"], arrays["probe"], hyper))
    end = store.attrs(f"{prefix}/end") if f"{prefix}/end" in store else None
    return Leg(number, int(header["first"]), header, Rows.joined(parts) if parts else None, end)
