"""Compute the units of a sketch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import treespec_dumps, treespec_loads

from orderscope.errors import OrderscopeError
from orderscope.sketching.coordinates import Coordinates
from orderscope.sketching.gradients import (
    MEMORY,
    Point,
    batch_gradient,
    gpu_share,
    join,
    micro_batch_size,
    point,
    proved_taps,
    sample_gradients,
)
from orderscope.sketching.held_out import HeldOutRows, held_out_rows, held_out_slopes
from orderscope.sketching.outputs import OutputSplit, find_split
from orderscope.sketching.plan import SketchPlan
from orderscope.sketching.pseudo_gradients import pseudo_gradients
from orderscope.sketching.taps import NO_TAPS, Taps
from orderscope.sketching.targets import target_gradients
from orderscope.store import RunStore
from orderscope.store.names import REFERENCE, SPLIT
from orderscope.task import Task
from orderscope.task.rounding import coarsest, tolerated_gradient
from orderscope.training.segments import boundaries_of, read_weights, segment_name, step_gradients

WHOLE_SIZE = 1 << 17  # models of up to so many weights have pseudo-gradients of held-out rows on all of them
SHORT_SIZE = 1 << 20  # models of more weights have gradients of held-out losses kept in bfloat16


@dataclass
class SketchStage:
    """Computes units one after the other; a model is built once and moved from anchor to anchor.

    Args:
        memory: bytes that full per-sample gradients may take at once, and what comes of the samples' outputs; on a GPU
            more, see `gpu_share`.
    """

    task: Task
    store: RunStore
    plan: SketchPlan
    memory: int = MEMORY

    def __post_init__(self) -> None:
        self._model = self.task.build_model()
        self._at: tuple[tuple[str, int], Point] | None = None
        self._coordinates = self.plan.coordinates
        self._first_use = first_use(self.task.order)

    @cached_property
    def micro_batch(self) -> int:
        """Samples at once; known once the form of the loss is stored."""
        outputs = math.prod(stored_split(self.store).shape)
        memory = max(self.memory, gpu_share(next(self._model.parameters()).device))
        return micro_batch_size(self.taps.formed(self.task.layout), memory, outputs=outputs)

    @cached_property
    def taps(self) -> Taps:
        """Layers whose weights' gradients are not formed, if a sample's come out the same so."""
        at = self._at[1] if self._at is not None else self._point(self.plan.curvature_anchor)
        return proved_taps(at, self.task.batch(np.unique(self.task.order)[:1]), self._coordinates)

    def compute(self, unit: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and attributes of one unit."""
        _, kind, which = unit.split("/", 2)
        if kind == "rows":
            anchor, block = (int(part[1:]) for part in which.split("-"))
            return self._rows(anchor, self.plan.blocks[block])
        if kind == "curvature":
            return self._curvature(int(which[1:]))
        return self._known(which) if kind == "known" else self._held_out(int(which[1:]))

    def split(self) -> OutputSplit:
        """The form of the loss, found on a few samples of the reference order at the curvature anchor."""
        if self.task.targets is not None:
            return OutputSplit("targets", "targets drawn by the task's own targets=")
        ids = np.unique(self.task.order)
        some = ids[np.linspace(0, len(ids) - 1, min(4, len(ids))).astype(int)]
        return find_split(self._point(self.plan.curvature_anchor), self.task.batch(some))

    def _point(self, anchor: int) -> Point:
        return self._at_state(self.plan.anchors[anchor].run, self.plan.anchors[anchor].segment)

    def _at_state(self, run: str, segment: int) -> Point:
        """The model moved to a recorded state."""
        if self._at is None or self._at[0] != (run, segment):
            self._at = (run, segment), point(self.task, self._model, read_weights(self.store, run, segment))
        return self._at[1]

    def _rows(self, anchor: int, block: tuple[int, int]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        at, first, last = self._point(anchor), *block
        order = np.asarray(self.task.order[first:last])
        what = f"anchor {anchor} ({self.plan.anchors[anchor].run}, step {self.plan.anchors[anchor].step})"
        if not self.plan.anchors[anchor].samples:
            rows = [batch_gradient(at, self.task.loss, self.task.batch(ids), self._coordinates) for ids in order]
            batch = torch.stack(rows)
            self._check_batch(anchor, block, batch, float(batch.norm(dim=1).mean()))
            return {"batch": finite(batch, what)}, {}
        at_once = max(1, self.micro_batch // order.shape[1]) * order.shape[1]
        ids = order.reshape(-1)
        own = self._first_use[ids] == np.repeat(np.arange(first, last), order.shape[1])
        own[np.setdiff1d(np.arange(len(ids)), np.unique(ids, return_index=True)[1])] = False
        batch = torch.empty(len(order), self.plan.carried, dtype=self.task.layout.dtype)
        samples = torch.empty(int(own.sum()), self.plan.carried, dtype=torch.bfloat16)
        kept = 0
        chunks = sample_gradients(at, self.task.batch, ids, self._coordinates, micro_batch=at_once, taps=self.taps)
        for start, parts in zip(range(0, len(ids), at_once), chunks, strict=True):
            chosen = torch.from_numpy(own[start : start + at_once])
            every, count = bool(chosen.all()), int(chosen.sum())
            units = slice(start // order.shape[1], (start + len(chosen)) // order.shape[1])
            join([(place, rows.unflatten(0, (-1, order.shape[1])).mean(1)) for place, rows in parts], batch[units])
            join([(place, rows if every else rows[chosen]) for place, rows in parts], samples[kept : kept + count])
            kept += count
        some = samples[: len(order)] if kept else batch
        self._check_batch(anchor, block, batch, float(some.float().norm(dim=1).mean()))
        arrays = {"batch": finite(batch, what), "samples": bits(samples), "ids": ids[own]}
        return arrays, {"bfloat16": ["samples"]}

    def _check_batch(self, anchor: int, block: tuple[int, int], rows: Tensor, size: float) -> None:
        """A batch's gradient must be what training recorded at that state, where it did, or what backward() gives.

        Args:
            anchor: which state, as a place in the plan.
            block: steps of the order, from and to.
            rows: gradients of the block's batches.
            size: mean norm of the gradients they are means of.

        Raises:
            OrderscopeError: it is another one, by more than rounding.
        """
        a, (first, last) = self.plan.anchors[anchor], block
        if first <= a.step < last:
            step, whose = a.step, "that training recorded there"
            recorded = step_gradients(self.store, a.run, a.segment + 1)[0]
            expected = torch.from_numpy(np.array(recorded))
        elif a.samples:
            step, whose = first, "that backward() leaves"
            batch = self.task.batch(self.task.order[first])
            expected = batch_gradient(self._point(anchor), self.task.loss, batch, self._coordinates)
        else:
            return
        apart = float((rows[step - first].cpu() - expected.cpu()).norm()) / (size or 1.0)
        if not apart <= self._rounding:
            ids = ", ".join(str(int(i)) for i in self.task.order[step][:4])
            raise OrderscopeError(
                f"gradients of the batch of step {step} (samples {ids}, ...) at the state after step {a.step} whose "
                f"mean is not the gradient {whose}: {apart:.2g} of their size apart, where rounding gives "
                f"{self._rounding:.1g}",
                "a batch gradient that is the mean of its samples', each a function of that sample and the weights",
                "look for what ties a sample to its batch or to chance: a mean over the batch's tokens, random layers, "
                "augmentation, hooks on parameters; then record into another directory",
            )

    @cached_property
    def _rounding(self) -> float:
        """Relative difference between two gradients that rounding explains."""
        batch = self.task.batch(self.task.order[0][:1])
        with torch.no_grad():
            _, eps = coarsest(lambda: self.task.loss(self._model, batch))
        return tolerated_gradient(self.task.layout.dtype, eps)

    def _curvature(self, block: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        ids = self.plan.curvature_ids[block]
        at = self._point(self.plan.curvature_anchor)
        rows = self._pseudo(at, self.task.batch, ids, self.plan.draws, block)
        group = int(self.task.group_codes[ids[0]])
        return {"rows": bits(rows.flatten(0, 1))}, {"group": group, "bfloat16": ["rows"]}

    def _known(self, run: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Values and gradients of the held-out losses where a run ended; at all kept states of the reference."""
        boundaries = boundaries_of(self.store, run)
        kept = range(len(boundaries)) if run == REFERENCE else [len(boundaries) - 1]
        slopes = []
        for index in kept:
            slopes.append(held_out_slopes(self.task, self._at_state(run, index), self.held_out))
        attrs = self.store.attrs(segment_name(run, len(boundaries) - 1))
        short = self.task.layout.size > SHORT_SIZE and self.task.layout.dtype == torch.float32
        arrays = {}
        for i, name in enumerate(self.held_out.names):
            rows = torch.stack([state[i] for state in slopes])
            finite_tensor(rows, f"metric {name!r} at the end of run {run!r}")
            arrays[f"slope:{name}"] = bits(rows.bfloat16()) if short else rows.numpy()
        values = {name: attrs["metrics"][name] for name in self.held_out.names}
        return arrays, {"run": run, "steps": [boundaries[k] for k in kept], "values": values}

    def _held_out(self, block: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Pseudo-gradients of held-out rows at the end of the reference run: of all weights where they are not many, so
        that products with known states are exact."""
        ids = self.plan.held_out_ids[block]
        at = self._at_state(REFERENCE, len(boundaries_of(self.store, REFERENCE)) - 1)
        collate = self.task.collate or torch.utils.data.default_collate
        whole = self.plan.size <= WHOLE_SIZE
        rows = self._pseudo(at, lambda some: collate([self.held_out.samples[int(i)] for i in some]), ids,
                            self.plan.held_out_draws, (1 << 20) + block, whole=whole)  # fmt: skip
        arrays = {"rows": bits(rows.flatten(0, 1)), "counts": self.held_out.counts[:, ids]}
        return arrays, {"names": list(self.held_out.names), "bfloat16": ["rows"]}

    @cached_property
    def held_out(self) -> HeldOutRows:
        return held_out_rows(self.task)

    def _pseudo(self, at: Point, batch_of: Any, ids: Any, draws: int, stream: int, *, whole: bool = False) -> Tensor:
        """Pseudo-gradients, [ids, draws, m], or [ids, draws, P] where `whole`. They are rounded to bfloat16: relative
        precision 2^-9 at every scale, which Adam needs, since it divides small gradients by small roots."""
        split, short = stored_split(self.store), torch.bfloat16
        seed = int(np.random.SeedSequence([self.plan.seed, stream]).generate_state(1)[0])
        micro_batch = self.micro_batch
        on = Coordinates(None, self.plan.size) if whole else self._coordinates
        taps = NO_TAPS if whole else self.taps
        if split.kind == "targets" and self.task.targets is not None:
            rows = target_gradients(at, self.task.targets, batch_of, ids, on, draws=draws, seed=seed,
                                    micro_batch=micro_batch, dtype=short, taps=taps)  # fmt: skip
        elif split.kind == "empirical":
            rows = torch.empty(len(ids), 1, on.carried, dtype=short)
            chunks = sample_gradients(at, batch_of, ids, on, micro_batch=micro_batch, taps=taps)
            for start, parts in zip(range(0, len(ids), micro_batch), chunks, strict=True):
                join(parts, rows[start : start + micro_batch, 0])
        else:
            rows = pseudo_gradients(at, split, batch_of, ids, on, draws=draws, seed=seed,
                                    micro_batch=micro_batch, dtype=short, taps=taps)  # fmt: skip
        return finite_tensor(rows, "curvature rows")


def write_split(store: RunStore, split: OutputSplit) -> None:
    """Keep in the run how pseudo-gradients are drawn.

    Args:
        store: the run, opened for writing.
        split: the loss as a function of the model's outputs.
    """
    store.write(
        SPLIT, {}, {"kind": split.kind, "why": split.why, "leaf": split.leaf, "dim": split.dim, "shape": split.shape,
                    "spec": _spec_to_text(split)}
    )  # fmt: skip


def stored_split(store: RunStore) -> OutputSplit:
    """How the run's pseudo-gradients are drawn."""
    attrs = store.attrs(SPLIT)
    spec = treespec_loads(attrs["spec"]) if attrs["spec"] else None
    return OutputSplit(attrs["kind"], attrs["why"], attrs["leaf"], spec, attrs["dim"], tuple(attrs["shape"]))


def bits(tensor: Tensor) -> np.ndarray:
    """bfloat16 as uint16: numpy has no such type."""
    return tensor.contiguous().view(torch.uint16).numpy()


def from_bfloat16(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array)).view(torch.bfloat16)


def finite(tensor: Tensor, what: str) -> np.ndarray:
    """A tensor as an array, after `finite_tensor`.

    Args:
        tensor: gradients.
        what: where they come from, for the message.
    """
    return finite_tensor(tensor, what).cpu().numpy()


def finite_tensor(tensor: Tensor, what: str) -> Tensor:
    """The same tensor, checked.

    Args:
        tensor: gradients.
        what: where they come from, for the message.

    Raises:
        OrderscopeError: one is not finite.
    """
    # A sum shows any inf or nan, without a mask in memory. That of bfloat16 has the range of float32, and asking for
    # the type would take thirty times as long.
    wide = torch.float32 if tensor.dtype == torch.float16 else None
    if not bool(torch.isfinite(tensor.sum(dtype=wide))):
        raise OrderscopeError(
            f"gradients that are not finite at {what}",
            "finite gradients at every anchor",
            "look at the loss for inf or nan there; what was sketched before is kept",
        )
    return tensor


def first_use(order: np.ndarray) -> np.ndarray:
    """Step at which each sample id is first trained on; -1 where it never is."""
    first = np.full(int(order.max()) + 1, -1, dtype=np.int64)
    for step in range(len(order) - 1, -1, -1):
        first[order[step]] = step
    return first


def _spec_to_text(split: OutputSplit) -> str | None:
    return None if split.spec is None else treespec_dumps(split.spec)
