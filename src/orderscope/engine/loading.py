"""The table of a run: built once from the recording and the sketch, then mapped into memory.

Three shards: `table/window-NNN` has what a replay reads, `table/held-out-NNN` what the held-out losses are told by, and
`table/left-out-NNN` the true runs predicted without what they left behind, which errors are calibrated on. They are
written again, under the next number, when true runs are added; what they were made of is dropped then.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.anchors import AnchorSpace
from orderscope.engine.driven import recorded_dynamics
from orderscope.engine.held_out import HeldOut
from orderscope.engine.left_out import LeftOut, left_out, predicted
from orderscope.engine.raw import extended, raw_held_out, raw_window
from orderscope.engine.threads import one_thread
from orderscope.engine.window import Window, group_fractions
from orderscope.sketching import SketchPlan
from orderscope.store import RunStore
from orderscope.store.names import REFERENCE, TABLE, TASK_SHARD
from orderscope.training import load_run, true_runs


def table_number(store: RunStore) -> str | None:
    """The number of the finished table, of which `left-out` is written last; None where there is none."""
    names = store.names(f"{TABLE}left-out-")
    return names[-1][-3:] if names else None


def load_window(store: RunStore) -> Window:
    """The window of a finished recording, as it lies on disk.

    Raises:
        IncompleteRun: the sketch is not finished.
    """
    number = table_number(store)
    if number is None:
        return raw_window(store)
    name = f"{TABLE}window-{number}"
    return _window(store, store.attrs(name), _Mapped(store, name))


def load_held_out(store: RunStore, window: Window) -> HeldOut | None:
    """The model of the held-out losses; None if the task has no such losses.

    Args:
        store: the run on disk.
        window: the run, ready to be replayed.
    """
    number = table_number(store)
    if number is None:
        return raw_held_out(store, window, None)
    name = f"{TABLE}held-out-{number}"
    if name not in store:
        return None
    attrs, read = store.attrs(name), _Mapped(store, name)
    return HeldOut(
        names=tuple(attrs["names"]),
        runs=tuple(attrs["runs"]),
        weight=attrs["weight"],
        **{key: read(key) for key in HELD_OUT_ARRAYS},
    )


def load_left_out(store: RunStore, window: Window, held_out: HeldOut | None) -> LeftOut:
    """Leave-one-out predictions of the true runs under other orders.

    Args:
        store: the run on disk.
        window: the run, ready to be replayed.
        held_out: what held-out losses are predicted by; None where there are none.
    """
    number = table_number(store)
    if number is None:
        return _left_out(store, window, held_out)
    name = f"{TABLE}left-out-{number}"
    attrs, read = store.attrs(name), _Mapped(store, name)
    values = dict(zip(attrs["names"], read("values").numpy(), strict=True))
    runs, replayed, outside, kept = tuple(attrs["runs"]), read("theta"), read("outside").numpy(), attrs.get("kept", 1.0)
    if held_out is None:
        return LeftOut(runs, values, replayed, replayed, outside)
    if not attrs.get("corrected", False):
        return LeftOut(runs, values, replayed, held_out.drawn(replayed, kept, runs), outside, kept)
    theta, correction = predicted(held_out, replayed, runs, window.final, kept)
    return LeftOut(runs, values, replayed, theta, outside, kept, correction)


def _left_out(store: RunStore, window: Window, held_out: HeldOut | None) -> LeftOut:
    runs = [run for run in true_runs(store) if run != REFERENCE]
    orders = [load_run(store, run, gradients=False).order for run in runs]
    return left_out(window, held_out, runs, np.array(orders, dtype=np.int64).reshape(len(runs), *window.order.shape))


def missing_runs(store: RunStore) -> list[str]:
    """True runs that the finished table lacks."""
    present = store.attrs(f"{TABLE}left-out-{table_number(store)}")["runs"]
    return [run for run in true_runs(store) if run != REFERENCE and run not in present]


def build_table(store: RunStore) -> None:
    """Write the table, or write it again with the true runs that it lacks; then drop the shards that it was built from.

    Raises:
        IncompleteRun: the sketch is not finished.
    """
    built = table_number(store) is not None
    runs = missing_runs(store) if built else true_runs(store)
    if runs:
        with one_thread():
            window = load_window(store)
            held_out = load_held_out(store, window)
            if built:
                window = extended(store, window, runs)
                held_out = raw_held_out(store, window, held_out)
            _write_table(store, window, held_out)
    number = table_number(store)
    used = [name for name in store.names(TABLE) if not name.endswith(f"-{number}")]
    used += [name for prefix in RAW for name in store.names(prefix)]
    used += [name for run in true_runs(store) for name in store.names(f"record/{run}/gradient-")]
    if used:  # including shards of a writer that was killed before it dropped them
        store.drop(used)


def _write_table(store: RunStore, window: Window, held_out: HeldOut | None) -> None:
    parts = {"window": _stored(*_window_arrays(window))}
    if held_out is not None:
        arrays = {key: getattr(held_out, key) for key in HELD_OUT_ARRAYS}
        attrs = {"names": list(held_out.names), "runs": list(held_out.runs), "weight": held_out.weight}
        parts["held-out"] = _stored(arrays, attrs)
    number = max((int(name[-3:]) for name in store.names(TABLE)), default=0)
    begun = [(f"{TABLE}{part}-{number:03d}", attrs) for part, (_, attrs) in parts.items()]
    if f"{TABLE}left-out-{number:03d}" in store or any(n in store and store.attrs(n) != attrs for n, attrs in begun):
        number += 1  # else a writer was killed half way through the same table
    for part, (arrays, attrs) in parts.items():
        if (name := f"{TABLE}{part}-{number:03d}") not in store:
            store.write(name, arrays, attrs)
    found = _left_out(store, window, held_out)
    names = list(found.values)
    values = torch.from_numpy(np.stack(list(found.values.values()))) if names else torch.zeros(0, 0)
    arrays = {"values": values, "theta": found.replayed, "outside": torch.from_numpy(found.outside)}
    attrs = {"names": names, "runs": list(found.runs), "kept": found.kept, "corrected": found.correction is not None}
    store.write(f"{TABLE}left-out-{number:03d}", *_stored(arrays, attrs))


HELD_OUT_ARRAYS = ("center", "spread", "gram", "values", "slopes", "along", "factor", "shares", "crossed")
RAW = ("sketch/rows/", "sketch/curvature/", "sketch/held-out/", "calibration/")


class _Mapped:
    """Arrays of a shard as tensors, left on disk until they are touched."""

    def __init__(self, store: RunStore, name: str) -> None:
        self._store, self._name, self._short = store, name, set(store.attrs(name)["bfloat16"])

    def __call__(self, key: str) -> Tensor:
        tensor = torch.from_numpy(self._store.map(self._name, key))
        return tensor.view(torch.bfloat16) if key in self._short else tensor


def _stored(arrays: dict[str, Tensor], attrs: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and attributes of a shard; bfloat16 as the 16 bits that it is."""
    short = [key for key, x in arrays.items() if x.dtype == torch.bfloat16]
    plain = {k: (x.contiguous().view(torch.uint16) if k in short else x).numpy() for k, x in arrays.items()}
    return plain, {**attrs, "bfloat16": short}


def _window_arrays(window: Window) -> tuple[dict[str, Tensor], dict[str, Any]]:
    arrays = {
        "spread": window.anchors.spread,
        "gram": window.anchors.gram,
        "norms": window.norms,
        "stands": window.stands,
        "known": window.known,
        "entries": window.entries,
        "sample_place": torch.from_numpy(window.sample_place),
        "factor": window.factor,
        "crossed": window.crossed,
        "final": window.final,
    }
    attrs = {
        "shared": window.anchors.shared,
        "sample_anchors": list(window.sample_anchors),
        "sizes": list(window.sizes),
        "anchor_runs": list(window.anchor_runs),
    }
    return arrays, attrs


def _window(store: RunStore, attrs: dict[str, Any], read: _Mapped) -> Window:
    plan, task = SketchPlan.read(store), store.read(TASK_SHARD)
    order, codes = task["order"], task["group_codes"]
    dynamics = recorded_dynamics(store, plan.coordinates)
    return Window(
        dynamics=dynamics,
        anchors=AnchorSpace(dynamics.start.theta, read("spread"), attrs["shared"], read("gram")),
        norms=read("norms"),
        stands=read("stands"),
        known=read("known"),
        entries=read("entries"),
        sample_anchors=tuple(attrs["sample_anchors"]),
        sample_place=read("sample_place").numpy(),
        fractions=group_fractions(order, codes, len(store.attrs(TASK_SHARD)["group_names"])),
        has_grad=load_run(store, REFERENCE, gradients=False).has_grad if dynamics.masked else None,
        factor=read("factor"),
        sizes=tuple(attrs["sizes"]),
        crossed=read("crossed"),
        order=order,
        group_codes=codes,
        anchor_runs=tuple(attrs["anchor_runs"]),
        final=read("final"),
    )
