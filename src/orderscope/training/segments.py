"""A segment: one shard with the steps since the last boundary and the whole state at the next one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orderscope.errors import IncompleteRun
from orderscope.store import RunStore
from orderscope.store.names import FURTHER
from orderscope.training.state import TrainingState, Weights

PREFIX = "record"
CHUNK = 1 << 20  # bytes that are compared at once


def segment_name(run: str, index: int) -> str:
    """The shard of a segment: the steps up to a kept state, and that state.

    Args:
        run: name of a training.
        index: of the segment, from 1; 0 is the start, without steps.
    """
    return f"{PREFIX}/{run}/segment-{index:03d}"


def gradient_name(run: str, index: int) -> str:
    """The shard with the gradients of a segment's steps, [steps, coords], which is dropped once the table is built.

    Args:
        run: name of a training.
        index: of the segment, from 1.
    """
    return f"{PREFIX}/{run}/gradient-{index:03d}"


def step_gradients(store: RunStore, run: str, index: int) -> np.ndarray:
    """Mean gradients of a segment's steps before clipping, [steps, coords], left on disk. Runs of earlier versions have
    them in the segment itself.

    Args:
        store: the run on disk.
        run: name of a training.
        index: of the segment, from 1.

    Raises:
        IncompleteRun: they were not kept, or dropped.
    """
    name = gradient_name(run, index)
    if name not in store and "gradient" in store.attrs(segment_name(run, index))["keys"]["steps"]:
        name = segment_name(run, index)
    return store.map(name, "gradient")


def has_gradients(store: RunStore, run: str) -> bool:
    """Whether the gradients of a finished run's steps are still there.

    Args:
        store: the run on disk.
        run: name of a training that is finished.
    """
    own = "gradient" in store.attrs(segment_name(run, 1))["keys"]["steps"]
    return own or gradient_name(run, 1) in store


def finished_segments(store: RunStore, run: str) -> int:
    """How many segments of a run are there, counted from the first without a gap.

    Args:
        store: the run on disk.
        run: name of a training.
    """
    index = 0
    while segment_name(run, index) in store:
        index += 1
    return index


def recorded_runs(store: RunStore) -> list[str]:
    """Names of the runs that have at least their first segment, in the order they were begun."""
    first = [n for n in store.names(f"{PREFIX}/") if n.endswith("/segment-000")]
    return [n.removeprefix(f"{PREFIX}/").removesuffix("/segment-000") for n in first]


def true_runs(store: RunStore) -> list[str]:
    """`recorded_runs` without further runs whose writer was killed before their end: nothing waits for those."""
    names = recorded_runs(store)
    return [
        n for n in names if not n.startswith(FURTHER) or finished_segments(store, n) == len(boundaries_of(store, n))
    ]


def boundaries_of(store: RunStore, run: str) -> list[int]:
    """The steps after which states of a run are kept, from 0 to its end.

    Args:
        store: the run on disk.
        run: name of a training that was begun.
    """
    return store.attrs(segment_name(run, 0))["boundaries"]


def write_segment(
    store: RunStore,
    run: str,
    index: int,
    tensors: Mapping[str, Tensor],
    state: TrainingState,
    attrs: Mapping[str, Any],
    *,
    whole: bool = True,
    like: str | None = None,
) -> None:
    """Write `state`, and the per-step `tensors` before it, as one shard; their gradients before it, as another.

    Args:
        store: the run on disk.
        run: name of a training.
        index: of the segment.
        tensors: by name, [steps, ...].
        state: at the segment's end.
        attrs: what else the shard says.
        whole: whether to write the optimizer's moments too, without which no training goes on from there.
        like: a shard of a segment: what the state has in common with that one is not written again but read there.
    """
    tensors, gradient = dict(tensors), tensors.get("gradient")
    if gradient is not None and len(gradient):
        del tensors["gradient"]
        if gradient_name(run, index) not in store:  # of a writer killed before the segment: the same bytes
            store.write(gradient_name(run, index), {"gradient": _to_array(gradient)})
    large = {
        "theta": state.theta,
        **{f"state:{key}": t for key, t in state.moments.items() if whole},
        **{f"buffer:{key}": t for key, t in state.buffers.items()},
    }
    small = {"step": state.count, "present": state.present, **{f"rng:{key}": t for key, t in state.rng.items()}}
    named = {**tensors, **large, **small}
    arrays = {key: _to_array(t) for key, t in named.items()}
    there = [] if like is None else [key for key in large if _has(store, like, key, arrays[key])]
    keys = {
        "steps": sorted(tensors),
        "moments": sorted(state.moments) if whole or not state.moments else None,
        "buffers": list(state.buffers),
        "rng": sorted(state.rng),
        "bfloat16": sorted(key for key, t in named.items() if t.dtype == torch.bfloat16),
        "elsewhere": dict.fromkeys(there, like),
    }
    written = {key: array for key, array in arrays.items() if key not in there}
    store.write(segment_name(run, index), written, {**attrs, "keys": keys})


def _has(store: RunStore, name: str, key: str, array: np.ndarray) -> bool:
    """Whether another segment has the same bytes under this key."""
    if name not in store or key not in _Shard(store, name).of_state:
        return False
    theirs = store.map(name, key)
    if theirs.dtype != array.dtype or theirs.shape != array.shape:
        return False
    mine, theirs = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (array, theirs))
    return all(np.array_equal(mine[at : at + CHUNK], theirs[at : at + CHUNK]) for at in range(0, len(mine), CHUNK))


def read_state(store: RunStore, run: str, index: int) -> TrainingState:
    """The whole state at a boundary, in memory of its own.

    Args:
        store: the run on disk.
        run: name of a training.
        index: of the boundary, from 0.

    Raises:
        IncompleteRun: its moments were not kept, as at the ends of probes.
    """
    shard = _Shard(store, segment_name(run, index))
    weights = read_weights(store, run, index)
    return TrainingState(
        theta=weights.theta,
        buffers=weights.buffers,
        moments={key: shard[f"state:{key}"] for key in shard.moments},
        count=shard["step"],
        present=shard["present"],
        rng={key: shard[f"rng:{key}"] for key in shard.attrs["keys"]["rng"]},
    )


def read_weights(store: RunStore, run: str, index: int | None = None) -> Weights:
    """Weights and buffers at a boundary, in memory of their own.

    Args:
        store: the run on disk.
        run: name of a training.
        index: of the boundary, from 0; its end by default.
    """
    shard = _at(store, run, index)
    return Weights(shard["theta"], {key: shard[f"buffer:{key}"] for key in shard.attrs["keys"]["buffers"]})


def map_theta(store: RunStore, run: str, index: int | None = None) -> np.ndarray:
    """Weights at a boundary, [P], left on disk.

    Args:
        store: the run on disk.
        run: name of a training.
        index: of the boundary, from 0; its end by default.
    """
    return _at(store, run, index).map("theta")


@dataclass(frozen=True)
class RecordedRun:
    """A finished run as it was recorded; weights and moments stay on disk until they are accessed.

    Args:
        store: where it lies.
        name: its name there.
        boundaries: steps after which a state was kept, from 0 to `steps`, int64 [anchors].
        order: who was trained on when, int64 [steps, batch].
        loss: per-sample losses before each step's update, [steps, batch].
        grad_norm: norm of each step's mean gradient before clipping, float64 [steps].
        hyper: hyper-parameters each step was taken with, name -> float64 [steps, param_groups].
        has_grad: which parameters had a gradient, bool [steps, n_params].
        gradient: mean gradient of each step before clipping on the recorded coordinates, [steps, coords], or None.
        count: the optimizer's step counts at the boundaries, float64 [anchors, n_params].
        present: which parameters had optimizer state, bool [anchors, n_params].
        metrics: one dict of metric values per boundary, empty where none were computed.
    """

    store: RunStore
    name: str
    boundaries: np.ndarray
    order: np.ndarray
    loss: Tensor
    grad_norm: Tensor
    hyper: dict[str, Tensor]
    has_grad: Tensor
    gradient: Tensor | None
    count: Tensor
    present: Tensor
    metrics: tuple[dict[str, float], ...]

    def state(self, anchor: int) -> TrainingState:
        """The whole state at boundary number `anchor`, read from disk. Raises as `read_state`."""
        return read_state(self.store, self.name, anchor)

    def is_whole(self, anchor: int) -> bool:
        """Whether boundary number `anchor` has the optimizer's moments, without which no training goes on."""
        return _Shard(self.store, segment_name(self.name, anchor)).is_whole

    @cached_property
    def states(self) -> tuple[TrainingState, ...]:
        """All states in memory; for large models take `theta` and `moment` on some coordinates instead."""
        return tuple(self.state(k) for k in range(len(self.boundaries)))

    def theta(self, coords: Tensor | None = None) -> Tensor:
        """Weights at the boundaries, [anchors, P] or [anchors, coords]."""
        return torch.stack([self._part(k, "theta", coords) for k in range(len(self.boundaries))])

    def moment(self, key: str, coords: Tensor | None = None) -> Tensor:
        """An optimizer moment at the kept states; zero where the optimizer has none.

        Args:
            key: of the moment in torch's state.
            coords: coordinates to read, int64 [coords]; all P if not given.

        Returns:
            [anchors, P] or [anchors, coords].

        Raises:
            IncompleteRun: a state was kept without its moments, as at the ends of probes.
        """
        rows = []
        for k in range(len(self.boundaries)):
            kept = key in _Shard(self.store, segment_name(self.name, k)).moments
            part = self._part(k, f"state:{key}" if kept else "theta", coords)
            rows.append(part if kept else torch.zeros_like(part))
        return torch.stack(rows)

    def metric_losses(self, metric: str) -> Tensor:
        """Held-out per-sample losses at the boundaries where metrics were computed, [those anchors, rows]."""
        kept = [segment_name(self.name, k) for k, values in enumerate(self.metrics) if values]
        return torch.stack([_Shard(self.store, name)[f"metric:{metric}"] for name in kept])

    def _part(self, anchor: int, key: str, coords: Tensor | None) -> Tensor:
        shard = _Shard(self.store, segment_name(self.name, anchor))
        return shard[key] if coords is None else shard.some(key, coords)


def load_run(store: RunStore, name: str, *, gradients: bool = True) -> RecordedRun:
    """The run `name` of a store.

    Args:
        store: the run on disk.
        name: of one of its trainings.
        gradients: whether to read those of the steps too, which are most of it.

    Raises:
        IncompleteRun: it was not recorded to its end.
        DamagedRun: its files are not what was written.
    """
    done = finished_segments(store, name)
    boundaries = boundaries_of(store, name) if done else []
    if not done or done < len(boundaries):
        reached = f"up to step {boundaries[done - 1]} of {boundaries[-1]}" if done else "not at all"
        raise IncompleteRun(f"run {name!r} recorded {reached}", "a finished run", "record again: recording resumes")
    shards = [_Shard(store, segment_name(name, k)) for k in range(done)]
    steps = shards[1:]

    def over_steps(key: str) -> Tensor:
        return torch.cat([shard[key] for shard in steps])

    kept = range(1, done) if gradients and has_gradients(store, name) else ()
    rows = [torch.from_numpy(np.array(step_gradients(store, name, k))) for k in kept]
    rows = [row.view(torch.bfloat16) if row.dtype == torch.uint16 else row for row in rows]
    return RecordedRun(
        store=store,
        name=name,
        boundaries=np.array(boundaries, dtype=np.int64),
        order=over_steps("order").numpy(),
        loss=over_steps("loss"),
        grad_norm=over_steps("grad_norm"),
        hyper=dict(zip(steps[0].attrs["hyper"], over_steps("hyper").unbind(1), strict=True)),
        has_grad=over_steps("has_grad"),
        gradient=torch.cat(rows) if rows else None,
        count=torch.stack([shard["step"] for shard in shards]),
        present=torch.stack([shard["present"] for shard in shards]),
        metrics=tuple(shard.attrs["metrics"] for shard in shards),
    )


def _at(store: RunStore, run: str, index: int | None) -> _Shard:
    return _Shard(store, segment_name(run, len(boundaries_of(store, run)) - 1 if index is None else index))


class _Shard:
    """Tensors of one shard by key."""

    def __init__(self, store: RunStore, name: str) -> None:
        self._store, self._name = store, name

    @cached_property
    def attrs(self) -> dict[str, Any]:
        return self._store.attrs(self._name)

    @property
    def is_whole(self) -> bool:
        return self.attrs["keys"]["moments"] is not None

    @property
    def moments(self) -> list[str]:
        """Keys of the optimizer's moments."""
        if not self.is_whole:
            raise IncompleteRun(
                f"{self._name} without the optimizer's moments",
                "a state with them: of runs under other orders than the recorded one only weights and buffers are kept",
                "take its weights, or train the order with osc.retrain",
            )
        return self.attrs["keys"]["moments"]

    @property
    def of_state(self) -> set[str]:
        """Keys of the tensors of the state that this shard holds itself."""
        keys = self.attrs["keys"]
        state = {"theta", *(f"state:{k}" for k in keys["moments"] or ()), *(f"buffer:{k}" for k in keys["buffers"])}
        return state - set(keys.get("elsewhere", ()))

    def __getitem__(self, key: str) -> Tensor:
        return self._to_tensor(key, self._store.read(self._place(key), [key])[key])

    def map(self, key: str) -> np.ndarray:
        """One array, left on disk."""
        return self._store.map(self._place(key), key)

    def some(self, key: str, coords: Tensor) -> Tensor:
        """Some entries of a vector; only the pages they lie on are read."""
        return self._to_tensor(key, np.array(self.map(key)[coords.numpy()]))

    def _place(self, key: str) -> str:
        return self.attrs["keys"].get("elsewhere", {}).get(key, self._name)

    def _to_tensor(self, key: str, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if key in self.attrs["keys"]["bfloat16"] else tensor


def _to_array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
