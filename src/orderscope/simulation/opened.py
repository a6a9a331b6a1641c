"""An open recorded run; its contents are read on first use."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from orderscope.engine import Batches, HeldOut, Replayed, Window, replay, units_of
from orderscope.engine.completed import KnownStates, held_bytes, known_states
from orderscope.engine.left_out import LeftOut
from orderscope.engine.loading import load_held_out, load_left_out, load_window, table_number
from orderscope.engine.threads import one_thread
from orderscope.engine.units import sorting_orders
from orderscope.errors import OrderscopeError
from orderscope.sketching import SketchPlan, require_probes
from orderscope.store import RunStore
from orderscope.store.names import FURTHER, REFERENCE, TASK_SHARD
from orderscope.task import Task
from orderscope.training import load_run, require_recorded, true_runs


class OpenedRun:
    """An open recorded run, optionally with its task; `Simulator` adds the predictions.

    Args:
        path: a run, as a directory or packed.
        task: the recorded task, or None.
        device: the device on which orders are replayed, such as "cuda"; the CPU by default.

    Raises:
        OrderscopeError: the task is not the recorded one (the message names the parts that differ), or the device
            cannot be used.
        IncompleteRun: recording or sketching is not finished.
        DamagedRun: a file is missing or was changed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        task: Task | None = None,
        *,
        device: str | torch.device | None = None,
    ) -> None:
        self.store = RunStore.open(path)
        self.path, self.task, self.device = path, task, _usable_device(device)
        if task is not None:
            require_recorded(task, self.store)
        self.plan = SketchPlan.read(self.store)
        require_probes(self.store, self.plan)
        self.window = load_window(self.store)
        self.description = self.store.attrs(TASK_SHARD)
        self.progress: Callable[[str, int, int], None] | None = None
        self._batches = Batches(self.window.order)
        self._reference = load_run(self.store, REFERENCE, gradients=False).metrics[-1]

    @property
    def order(self) -> np.ndarray:
        """The reference order, int64 [steps, batch]."""
        return self.window.order

    @property
    def reference(self) -> dict[str, float]:
        """The recorded final metrics of the reference order."""
        return self._reference

    @cached_property
    def held_out(self) -> HeldOut | None:
        """The model of the held-out losses; None without such losses."""
        return load_held_out(self.store, self.window)

    @cached_property
    def left_out(self) -> LeftOut:
        """The true runs under other orders, predicted as if they had not been trained."""
        return load_left_out(self.store, self.window, self.held_out)

    @cached_property
    def runs(self) -> tuple[str, ...]:
        """Names of the true runs under other orders, which are the probes and orders trained after recording."""
        if table_number(self.store) is None:
            return tuple(run for run in true_runs(self.store) if run != REFERENCE)
        return self.left_out.runs

    @cached_property
    def _run_files(self) -> list[Any]:
        return [load_run(self.store, run, gradients=False) for run in self.runs]

    @cached_property
    def run_orders(self) -> np.ndarray:
        """Orders of `runs`, [runs, steps, batch]."""
        return np.array([run.order for run in self._run_files], dtype=np.int64).reshape(
            len(self.runs), *self.order.shape
        )

    @cached_property
    def run_truth(self) -> dict[str, np.ndarray]:
        """True final metrics of `runs`, name -> [runs]."""
        return {n: np.array([run.metrics[-1][n] for run in self._run_files], dtype=np.float64) for n in self.reference}

    @cached_property
    def probes(self) -> tuple[str, ...]:
        """Names of the probes, the runs under other orders that the recording made."""
        return tuple(run for run in self.runs if not run.startswith(FURTHER))

    @cached_property
    def probe_orders(self) -> np.ndarray:
        """Orders of `probes`, [probes, steps, batch]."""
        return self.run_orders[[self.runs.index(probe) for probe in self.probes]]

    @cached_property
    def truth(self) -> dict[str, np.ndarray]:
        """True final metrics of the probes, name -> [probes]."""
        rows = [self.runs.index(probe) for probe in self.probes]
        return {name: values[rows] for name, values in self.run_truth.items()}

    @cached_property
    def sample_groups(self) -> list[str]:
        """The group label of every sample; the same for all if the task has no groups."""
        names = self.description["group_names"]
        return [names[code] for code in self.window.group_codes]

    @property
    def losses(self) -> tuple[str, ...]:
        """Metrics that are held-out losses, predicted without the model."""
        return () if self.held_out is None else self.held_out.names

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Metrics that can be predicted, in the task's sequence. (`reference` has its names sorted, as stored in
        JSON.)"""
        possible = self.losses if self._by is None else self.reference
        return tuple(name for name in self.description["metric_names"] if name in possible)

    @property
    def exact(self) -> bool:
        """Whether all coordinates are carried, so that the model can be evaluated at estimated weights."""
        return self.plan.carried == self.plan.size

    @property
    def eps(self) -> float:
        """Machine epsilon of the weights, and so of the metrics."""
        return torch.finfo(self.window.final.dtype).eps

    @property
    def _by(self) -> str | None:
        """How the model is evaluated at estimated weights: "evaluated", or "completed" with the other weights
        interpolated; None if it cannot be evaluated."""
        if self.task is None:
            return None
        if self.exact:
            return "evaluated"
        states = len(self.plan.anchors) + len(self.runs)
        return "completed" if held_bytes(states, self.plan.size, self.task.layout.dtype.itemsize) else None

    @cached_property
    def _known(self) -> KnownStates:
        return known_states(self.store, self.plan)

    def sigma_order(self, metric: str) -> float:
        """Standard deviation of the metric over reference and probes: how much order matters here. Where batches mix
        groups, probes that sort samples by group have many times the effect of others, and do not count."""
        usual = ~self.sorting(self.probe_orders)
        values = self.truth[metric][usual if usual.any() else slice(None)]
        return float(np.append(values, self.reference[metric]).std(ddof=1)) if self.probes else 0.0

    def regrouped(self, orders: np.ndarray) -> np.ndarray:
        """Share of each order's batches that are not recorded batches, [n].

        Args:
            orders: sample ids, [n, steps, batch].
        """
        return (self._batches.index(orders)[0] >= self.window.units).mean(1)

    def sorting(self, orders: np.ndarray) -> np.ndarray:
        """Which orders sort samples by group more than the recorded one does, see `sorts_more`, bool [n].

        Args:
            orders: sample ids, [n, steps, batch].
        """
        return sorting_orders(self.window, orders)

    @cached_property
    def _replayed_window(self) -> Window:
        return self.on_device(self.window)

    def on_device(self, window: Window) -> Window:
        """A window moved to the device on which orders are replayed."""
        return window if self.device.type == "cpu" else window.to(self.device)

    def replay_of(self, orders: np.ndarray, **options: Any) -> Replayed:
        """Replays of orders on all carried coordinates, computed on the simulator's device and moved to the CPU. The
        final weights are drawn towards the recorded runs' last states and corrected, see `LeftOut.finished`.

        Args:
            orders: sample ids, [n, steps, batch].
            options: options of `orderscope.engine.replay`.
        """
        units = units_of(self.window, self._batches, orders)
        with one_thread():
            replayed = replay(self._replayed_window, units, **options).cpu()
            if self.held_out is None:
                return replayed
            theta, last = self.left_out.finished(self.held_out, replayed.theta), self.window.steps
        snapshots = replayed.snapshots | ({last: theta} if last in replayed.snapshots else {})
        return replace(replayed, theta=theta, snapshots=snapshots)


def _usable_device(device: str | torch.device | None) -> torch.device:
    try:
        found = torch.device(device or "cpu")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise OrderscopeError(
            f"device {str(device)!r}: {str(error).splitlines()[0]}",
            "a device that torch can use here, such as cpu or cuda",
            "leave out device=, or run `orderscope doctor` to see which devices there are",
        ) from error
    return found
