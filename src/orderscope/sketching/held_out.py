"""Held-out losses at known states: each distinct row is worked on once, however many metrics have it."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from orderscope.sketching.gradients import Point
from orderscope.task import Task
from orderscope.task.per_sample import filled
from orderscope.task.task import held_out_batches


@dataclass(frozen=True)
class HeldOutRows:
    """The distinct rows of a task's held-out sets.

    Args:
        samples: those rows.
        names: of the sets.
        counts: how often each set has each row, int64 [names, rows].
        places: for each set the row that each of its samples is, int64 [samples of the set].
    """

    samples: list[Any]
    names: tuple[str, ...]
    counts: np.ndarray
    places: tuple[np.ndarray, ...] = ()

    def parts(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Rows that the same sets have equally often, and how often: int64 [some rows], int64 [names]."""
        distinct, which = np.unique(self.counts.T, axis=0, return_inverse=True)
        which = which.reshape(-1)
        return [(np.flatnonzero(which == k), counts) for k, counts in enumerate(distinct)]


def held_out_rows(task: Task) -> HeldOutRows:
    """Find the distinct rows, by their content."""
    names = tuple(name for name, rows in task.metrics.items() if not callable(rows))
    places: dict[bytes, int] = {}
    samples: list[Any] = []
    counts: list[Counter[int]] = []
    at: list[np.ndarray] = []
    for name in names:
        rows, own, mine = task.metrics[name], Counter[int](), list[int]()
        for i in range(len(rows)):
            sample = rows[i]
            key = _content(sample) or f"{name} {i}".encode()
            if key not in places:
                places[key] = len(samples)
                samples.append(sample)
            own[places[key]] += 1
            mine.append(places[key])
        counts.append(own)
        at.append(np.array(mine, dtype=np.int64))
    table = np.array([[own[i] for i in range(len(samples))] for own in counts], dtype=np.int64)
    return HeldOutRows(samples, names, table.reshape(len(names), len(samples)), tuple(at))


def held_out_slopes(task: Task, at: Point, rows: HeldOutRows) -> Tensor:
    """Gradients of the held-out losses at a point, [names, P].

    Args:
        task: what is trained.
        at: weights, moments and buffers at which it is computed.
        rows: the distinct held-out rows, and what each counts in each loss.
    """
    parameters = at.layout.of_model(at.model)
    total = torch.zeros(len(rows.names), at.layout.size, dtype=at.layout.dtype)
    per_row = rows.counts / np.maximum(rows.counts.sum(1, keepdims=True), 1)
    for some, _ in rows.parts():
        gradient = torch.zeros(at.layout.size, dtype=at.layout.dtype)
        for places in held_out_batches(len(some)):
            batch = task.collated([rows.samples[some[i]] for i in places])
            with torch.enable_grad():
                loss = task.loss(at.model, batch).sum()
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            whole = filled(found, parameters)
            gradient += at.layout.flatten(whole).cpu()
        total += torch.from_numpy(per_row[:, some[0]])[:, None].to(total.dtype) * gradient
    return total


def drawn_rows(rows: HeldOutRows, count: int) -> np.ndarray:
    """About `count` of the distinct held-out rows, ascending; evenly spaced in each part, so that every set has its
    share.

    Args:
        rows: the distinct rows, and what each counts in each loss.
        count: how many.
    """
    total = len(rows.samples)
    if total <= count:
        return np.arange(total)
    chosen = []
    for some, _ in rows.parts():
        share = max(1, round(count * len(some) / total))
        chosen.append(some[np.unique(np.linspace(0, len(some) - 1, share).round().astype(int))])
    return np.sort(np.concatenate(chosen))


def _content(sample: Any) -> bytes | None:
    """A digest of a sample's content, by which equal samples are found; None where it has none."""
    leaves, spec = tree_flatten(sample)
    digest = hashlib.sha256(str(spec).encode())
    for leaf in leaves:
        if isinstance(leaf, np.ndarray) and leaf.dtype != object:
            leaf = torch.from_numpy(np.ascontiguousarray(leaf)) if leaf.dtype.kind in "biuf" else leaf.tobytes()
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            digest.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            continue
        try:
            digest.update(pickle.dumps(leaf))
        except Exception:  # whatever the user's object raises
            return None
    return digest.digest()
