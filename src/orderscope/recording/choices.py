"""Defaults of a recording: which states are kept, how many coordinates, which orders
the probes train, how many pseudo-gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orderscope.engine.window import LONG
from orderscope.errors import OrderscopeError
from orderscope.orders import in_blocks, mixes_groups, step_groups
from orderscope.recording.budget import allot, shares
from orderscope.sketching import SketchPlan, make_plan
from orderscope.sketching.held_out import drawn_rows, held_out_rows
from orderscope.task import Task

COORDS, LEAST_COORDS, MOST_COORDS = 1 << 14, 1 << 13, 1 << 17
MIXED_COORDS = 1 << 15  # where batches mix groups effects are small: twice as many rank by 0.87 what half rank by 0.80
COORDS_SHARE = 256  # of a large model's weights one in so many is carried
LEAST_ROWS, MOST_ROWS = 512, 4096  # pseudo-gradients of training samples
MIXED_ROWS = 4608  # the most where batches mix groups
HELD_OUT_PASSES, LEAST_HELD_OUT, MOST_HELD_OUT = 1.5, 512, 1152  # pseudo-gradients of held-out rows
SAMPLE_BYTES = 1 << 27  # of single samples' gradients in all
ANCHORS = 2  # shared ones of a budget: see `orderscope.recording.budget`
LEAST_TO_REGROUP = 6  # probes, of which one then regroups samples
# The last two probes in blocks are blurred by so many places of a group, in windows of more steps than that: orders
# between blocks and shuffles are then predicted with half to nine tenths of the error, see the log.
BLURRED, BLUR, UNBLURRED = 2, 0.7, 64


def spaced(steps: int, count: int) -> list[int]:
    """0 and `count` boundaries up to `steps`, fewer where there are fewer steps: odd multiples of `steps` / (2 count -
    1). What leads there is then known as well as what leads on, and the start, where nothing is trained yet, is none of
    them.

    Args:
        steps: of the window.
        count: how many boundaries after the start.

    Example:
        >>> spaced(24, 2)
        [0, 8, 24]
        >>> spaced(24, 1)
        [0, 24]
    """
    return sorted({0, *(max(1, round((2 * i + 1) * steps / (2 * count - 1))) for i in range(count))})


def coordinates_of(task: Task) -> int:
    """How many coordinates are carried by default."""
    least = MIXED_COORDS if mixed_batches(task) else COORDS
    wanted = int(np.clip(task.layout.size // COORDS_SHARE, least, MOST_COORDS))
    fit = SAMPLE_BYTES // (2 * len(np.unique(task.order)))  # of single samples at one anchor
    return max(LEAST_COORDS, min(wanted, fit))


def probe_orders(task: Task, count: int, seed: int, *, regroup: bool = False) -> list[np.ndarray]:
    """Orders for the probes, spread over where queries go: the groups in blocks, and shuffled steps.

    Block orders are the farthest from a mixed reference, and what happens between two shuffles is easier to tell. They
    are rotations of one random sequence of the groups, then of the reversed sequence, so that with as many probes as
    groups each group is once in every place. In some the blocks run into each other, as in a curriculum of noisy
    scores: between blocks and shuffles lies most of what is asked. Where batches mix groups they do so anyhow. A
    quarter of the probes, rounded up, is kept for shuffles.

    With `regroup` the last of six or more probes has its samples in new batches: no batch learns of it, but how orders
    of that kind end is known then. On digits mae_ratio falls from 0.46 to 0.33 by it; text_96 and text_mixed stay.

    Args:
        task: what is trained.
        count: how many orders.
        seed: of the random numbers.
        regroup: whether samples may leave their batches.
    """
    rng = np.random.default_rng(seed)
    order, labels = _labelled(task)
    most = 3 * count // 4
    blocks = _blocks(task, labels, rng, most)[:most]
    orders = [
        order[_in_blocks(labels, *blocks[i], rng) if i < len(blocks) else rng.permutation(len(order))]
        for i in range(count)
    ]
    if regroup and count >= LEAST_TO_REGROUP and count - len(blocks) > 1:
        orders[-1] = rng.permutation(order.ravel()).reshape(order.shape)
    return orders


def growing_orders(task: Task, count: int, seed: int) -> list[np.ndarray]:
    """As `probe_orders`, but the first are the same however many there are: two in blocks and one shuffle, and on with
    three in blocks to each shuffle, as long as there are blocks.

    Args:
        task: what is trained.
        count: how many orders.
        seed: of the random numbers.
    """
    order, labels = _labelled(task)
    blocks = _blocks(task, labels, np.random.default_rng(seed))
    orders = []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        steps = _in_blocks(labels, *blocks.pop(0), rng) if i % 4 != 2 and blocks else rng.permutation(len(order))
        orders.append(order[steps])
    return orders


def _labelled(task: Task) -> tuple[np.ndarray, list[str]]:
    """The recorded order [steps, batch], and the group of each step, the empty one where there are no groups."""
    order = np.asarray(task.order)
    return order, step_groups(order, task.groups) if task.groups is not None else [""] * len(order)


def _blocks(
    task: Task, labels: Sequence[str], rng: np.random.Generator, count: int = 0
) -> list[tuple[list[str], float]]:
    """Sequences of the groups, each with the places that it is blurred by: a random sequence in every rotation, then
    each of these reversed where that is another rotation; none of a single group. The last of `count` are blurred,
    but none before each group was in every place and one sequence was reversed."""
    names = rng.permutation(sorted(set(labels))).tolist()
    forward = [names[i:] + names[:i] for i in range(len(names))] if len(names) > 1 else []
    rotations = forward + [rotation[::-1] for rotation in forward] if len(names) > 2 else forward
    if mixed_batches(task) or len(labels) <= UNBLURRED:
        return [(rotation, 0.0) for rotation in rotations]
    pure = max(len(names) + 1, count - BLURRED)
    return [(rotation, 0.0) for rotation in rotations[:pure]] + [(s, BLUR) for s in rotations[pure:] or rotations]


def _in_blocks(labels: Sequence[str], sequence: Sequence[str], blur: float, rng: np.random.Generator) -> np.ndarray:
    """Steps sorted by the place of their group in a sequence, with normal noise of `blur` places."""
    steps = rng.permutation(len(labels))
    noise = blur * rng.normal(size=len(steps)) if blur else 0.0
    return steps[in_blocks(np.array(labels)[steps].tolist(), sequence, noise)]


def sketch_plan(
    task: Task,
    boundaries: Sequence[int],
    sample_anchors: int | None,
    coords: int,
    curvature_rows: int,
    seed: int,
    probes: int,
) -> SketchPlan:
    """The plan of a sketch whose reference keeps its states at `boundaries`; the rest is as given to `record`.

    Args:
        task: what is trained.
        boundaries: steps after which the reference's states are kept.
        sample_anchors: as given to `record`.
        coords: as given to `record`.
        curvature_rows: as given to `record`.
        seed: as given to `record`.
        probes: how many runs under other orders.
    """
    used = len(np.unique(task.order))
    carried = min(coords, task.layout.size)
    if sample_anchors is None:
        fit = SAMPLE_BYTES // (2 * used * carried)
        sample_anchors = min(2, fit) or int(2 * used * carried <= 8 * SAMPLE_BYTES)
    rows = held_out_rows(task)
    wanted = int(np.clip(HELD_OUT_PASSES * task.order.size, LEAST_HELD_OUT, MOST_HELD_OUT))
    chosen = drawn_rows(rows, wanted) if rows.samples else np.zeros(0, dtype=np.int64)
    return make_plan(
        boundaries,
        coords=coords,
        seed=seed,
        curvature_rows=curvature_rows,
        sample_anchors=sample_anchors,
        group_codes=task.group_codes,
        order=np.asarray(task.order),
        size=task.layout.size,
        item_size=task.layout.dtype.itemsize,
        metrics={name: len(task.metrics[name]) for name in rows.names},
        held_out=chosen.tolist(),
        held_out_draws=max(1, round(wanted / max(1, len(chosen)))),
        probes=probes,
    )


def allotted(
    task: Task,
    anchors: int | None,
    probes: int | None,
    curvature_rows: int | None,
    budget: float | None,
) -> tuple[int, int, int]:
    """Anchors, probes and pseudo-gradients, by default or out of a budget.

    Args:
        task: what is trained.
        anchors: as given to `record`.
        probes: as given to `record`.
        curvature_rows: as given to `record`.
        budget: as given to `record`.
    """
    used = len(np.unique(task.order))
    mixed = mixed_batches(task)
    fixed = shares(mixed=mixed, partial=partially_carried(task), long=len(task.order) > LONG)
    if budget is not None:
        given = {"anchors": anchors, "probes": probes, "curvature_rows": curvature_rows}
        if both := [name for name, value in given.items() if value is not None]:
            raise OrderscopeError(f"budget= and {both[0]}=", "one or the other", f"leave out budget= or {both[0]}=")
        fixed = allot(budget, fixed, most_passes=max(1, MOST_ROWS // used))
    least = LEAST_ROWS if budget is None else 1
    rows = int(np.clip(fixed.passes * used, least, MIXED_ROWS if mixed else MOST_ROWS))
    return (
        fixed.anchors if anchors is None else anchors,
        fixed.probes if probes is None else probes,
        rows if curvature_rows is None else curvature_rows,
    )


def mixed_batches(task: Task) -> bool:
    """Whether batches mix groups."""
    return task.groups is None or mixes_groups(np.asarray(task.order), task.groups)


def partially_carried(task: Task) -> bool:
    """Whether only few of many weights are carried."""
    return task.layout.size > COORDS_SHARE * COORDS
