"""What the recorded run remembers along its anchors: forgetting after exposure, memorization against generalization,
and how large gradients are by layer and group.

Everything is the truth of the reference run, measured at its recorded weights; nothing is estimated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orderscope.engine import Window
from orderscope.engine.threads import one_thread
from orderscope.errors import unknown_metric, without_task
from orderscope.simulation.simulator import Simulator
from orderscope.sketching.gradients import set_parameters
from orderscope.store.names import REFERENCE
from orderscope.task.task import CHUNK
from orderscope.training import load_run

HALF = 0.5  # share of the change on trained batches, up to which the change on held-out rows counts as small


@dataclass(frozen=True)
class Memory:
    """The reference run at its anchors.

    Args:
        steps: steps trained at each anchor, [K].
        seen, unseen: mean loss there less that at the start, over batches trained before and over those to come, [K];
            not a number where there are none.
        held_out: the metric less its value at the start, [K].
        metric: its name.
        ages: steps since a batch was trained, ascending, [a].
        remembered: loss on batches of that age less that on batches of their groups still to come (all groups', where
            theirs has none), both taken from the start's, [a]: what is remembered beyond what is generalized.
        generalized: the first anchor's step from which on held-out data gains at least half of what batches trained
            before do; None where that is never so.
        layers: parameter names; groups: group names.
        norms: root mean square gradient by anchor, parameter and group of the batch, [K, layers, groups]; not a number
            for groups without a batch of their own, and for parameters without a carried coordinate.
    """

    steps: np.ndarray
    seen: np.ndarray
    unseen: np.ndarray
    held_out: np.ndarray
    metric: str
    ages: np.ndarray
    remembered: np.ndarray
    generalized: int | None
    layers: list[str]
    groups: list[str]
    norms: np.ndarray


def memory(sim: Simulator, metric: str | None = None) -> Memory:
    """Measure what the reference run remembers: one pass over its samples at each anchor.

    Args:
        sim: the run, opened with its task.
        metric: what `held_out` is; the first metric by default.

    Raises:
        OrderscopeError: without the task, or for an unknown metric.
    """
    if sim.task is None:
        raise without_task("for the losses of its samples")
    names = list(sim.description["metric_names"])
    name = metric or (names[0] if names else "none")
    if name not in names:
        raise unknown_metric(metric, names)
    run = load_run(sim.store, REFERENCE)
    steps = np.asarray(run.boundaries, dtype=np.int64)
    losses = batch_losses(sim, run.theta())
    held_out = np.array([m[name] for m in run.metrics])
    codes = np.asarray(sim.window.fractions).argmax(1)
    seen, unseen = seen_and_unseen(losses, steps)
    ages, remembered = forgetting(losses, steps, codes)
    return Memory(
        steps=steps,
        seen=seen,
        unseen=unseen,
        held_out=held_out - held_out[0],
        metric=name,
        ages=ages,
        remembered=remembered,
        generalized=generalized(steps, seen, held_out - held_out[0]),
        layers=[p["name"] for p in sim.description["parameters"]],
        groups=list(sim.description["group_names"]),
        norms=layer_norms(sim.window, sim.description["parameters"], sim.plan.coordinates.indices),
    )


def batch_losses(sim: Simulator, states: Tensor) -> np.ndarray:
    """Mean loss of each recorded batch at some weights, [K, steps].

    Args:
        sim: the run, opened with its task.
        states: weights, [K, P].
    """
    task = sim.task
    assert task is not None
    model, used = task.build_model(), np.unique(sim.order)
    out = np.empty((len(states), len(sim.order)))
    with one_thread(), torch.no_grad():
        for row, theta in zip(out, states, strict=True):
            set_parameters(model, task.layout, theta)
            losses = np.zeros(used[-1] + 1)
            for start in range(0, len(used), CHUNK):
                ids = used[start : start + CHUNK]
                losses[ids] = task.loss(model, task.batch(ids)).double().cpu().numpy()
            row[:] = losses[sim.order].mean(1)
    return out


def seen_and_unseen(losses: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean change of loss since the start over batches trained before each anchor, and over the others.

    Args:
        losses: of each batch at each anchor, [K, batches]; batch t is trained on at step t.
        steps: steps trained at each anchor, [K].
    """
    change = losses - losses[0]
    before = np.arange(losses.shape[1])[None] < steps[:, None]
    return _masked_mean(change, before), _masked_mean(change, ~before)


def forgetting(losses: np.ndarray, steps: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The forgetting curve: ages ascending [a], and the mean change of loss at that age beyond that of batches to come.

    Args:
        losses: of each batch at each anchor, [K, batches]; batch t is trained on at step t.
        steps: steps trained at each anchor, [K].
        codes: group of each batch, [batches].
    """
    change = losses - losses[0]
    batches = np.arange(losses.shape[1])
    found: dict[int, list[float]] = {}
    for row, trained in zip(change, steps, strict=True):
        later = batches >= trained
        if not later.any():
            continue
        for batch in batches[~later]:
            alike = later & (codes == codes[batch])
            rest = row[alike if alike.any() else later].mean()
            found.setdefault(int(trained - batch - 1), []).append(float(row[batch] - rest))
    ages = np.array(sorted(found), dtype=np.int64)
    return ages, np.array([np.mean(found[int(age)]) for age in ages])


def generalized(steps: np.ndarray, seen: np.ndarray, held_out: np.ndarray) -> int | None:
    """The first step from which on held-out data gains at least half of what batches trained before do; None where that
    is not so at the end.

    Args:
        steps: of the anchors, [K].
        seen: mean change of loss over batches trained before, [K].
        held_out: that over held-out rows, [K].

    Example:
        >>> generalized(np.array([0, 4, 8]), np.array([np.nan, -1.0, -1.0]), np.array([0.0, -0.1, -0.6]))
        8
    """
    known = np.isfinite(seen) & (seen < 0)
    enough = known & (held_out <= HALF * np.where(known, seen, 0.0))
    first: int | None = None
    for step, fine, told in zip(steps.tolist(), enough, known, strict=True):
        if told:
            first = (step if first is None else first) if fine else None
    return first


def layer_norms(window: Window, parameters: list[dict], indices: Tensor | None) -> np.ndarray:
    """Root mean square gradient by anchor of the reference and probes' shared states, parameter, and main group of the
    batch, [K, parameters, groups].

    Args:
        window: the run, ready to be replayed.
        parameters: descriptions with `shape`, in layout order.
        indices: carried coordinates, ascending; all if None.
    """
    offsets = np.cumsum([0, *(int(np.prod(p["shape"])) for p in parameters)])
    place = np.arange(offsets[-1]) if indices is None else indices.numpy()
    cuts = np.searchsorted(place, offsets)
    codes = window.fractions.argmax(1)
    shared, groups = window.anchors.shared, window.fractions.shape[1]
    out = np.full((shared, len(parameters), groups), np.nan)
    for layer in range(len(parameters)):
        part = window.table[:, :shared, cuts[layer] : cuts[layer + 1]]
        if not part.shape[2]:
            continue
        square = part.double().pow(2).mean(2)  # [batches, K]
        for group in range(groups):
            mine = codes == group
            if mine.any():
                out[:, layer, group] = square[mine].mean(0).sqrt().numpy()
    return out


def _masked_mean(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    count = mask.sum(1)
    total = np.where(mask, values, 0.0).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
