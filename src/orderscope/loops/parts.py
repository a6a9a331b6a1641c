"""Check the parts of a task against the recorded loop: whether they give its gradients, and under which averaging."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from orderscope.errors import OrderscopeError
from orderscope.loops.first_step import own_copy
from orderscope.loops.legs import Rows
from orderscope.loops.notices import NoGroupsWarning, RecorderWarning, ScaledWarning, SlowPathWarning, TaskWarning
from orderscope.loops.scaling import (
    CLIPPED,
    Compared,
    Scaling,
    Seen,
    clips_at,
    compared,
    found_scaling,
    scaled_parts,
    token_counts,
    ways_to_weigh,
)
from orderscope.task import Task
from orderscope.task.rng import seeded
from orderscope.training.loop import Session
from orderscope.training.setup import describe_optimizer, model_factory, optimizer_factory
from orderscope.training.state import TrainingState

NO_GROUPS = (
    "the task has no groups, so orders like groups:a,b cannot be predicted; to predict them, pass "
    "groups=[label of sample 0, label of sample 1, ...]"
)
STATES = 4  # most kept states at which the gradient of the documented loss is compared with the recorded one


def scaling_of(task: Task, steps: list[tuple[Seen, Any]]) -> tuple[Scaling | None, Compared | None]:
    """How the loop averaged, None where the task's loss does not explain its gradients; and the plain comparison at
    the first step.

    Args:
        task: made of the parts beside the loop.
        steps: each step with `() -> model` in the state before it; the first decides.
    """
    found = []
    for seen, build in steps[:STATES]:
        with seeded(0):
            model, batch = build(), task.batch(seen.ids)
            ways = ways_to_weigh(token_counts(batch), len(seen.ids))
            found.append((seen, compared(model, task.layout, task.loss, batch, seen, ways)))
        early = found_scaling(found, task.max_grad_norm)
        clipped = task.max_grad_norm is not None and seen.norm >= CLIPPED * task.max_grad_norm
        if early is not None and early.plain and len(ways) == 1 and not clipped:
            break
    return found_scaling(found, task.max_grad_norm), found[0][1][0]


def seen_at(rows: Rows, index: int) -> Seen:
    """What was recorded of one step.

    Args:
        rows: the recorded steps.
        index: of the step among them.
    """
    return Seen(rows.batches[index], rows.probe[index], float(rows.norm[index]), float(rows.loss[index]))


def with_scaling(parts: Mapping[str, Any], task: Task, scaling: Scaling) -> dict[str, Any]:
    """The parts of a task, with its losses weighed as the loop weighed them.

    Args:
        parts: keyword arguments of the task.
        task: the task without weights.
        scaling: how the loop weighed samples.
    """
    counts = None
    if scaling.micro_batches:
        counts = np.zeros(task.samples, dtype=np.int64)
        for i in np.unique(task.order):
            found = token_counts(task.batch([i]))
            counts[i] = 0 if found is None else found[0]
    return scaled_parts(parts, scaling, scaling.weights(task.order, counts, task.samples))


def scaled_text(scaling: Scaling, order: np.ndarray) -> str:
    """The message about a scaling that was found.

    Args:
        scaling: what `scaling_of` found.
        order: of the task, [steps, batch].
    """
    again = len(np.unique(order)) < order.size and scaling.micro_batches
    return (
        f"the loop's gradient is {scaling.words}, of the loss given; that is applied in the training, metrics keep the "
        f"loss's own scale; to say it yourself pass scaling={scaling}"
        + ("; samples that come more than once get the mean of their weights: where the task is refused, ask about one "
           "epoch (last=)" if again else "")
    )  # fmt: skip


def part_notices(
    parts: Mapping[str, Any], session: Session, start: TrainingState, rows: Rows
) -> list[tuple[type[RecorderWarning], str]]:
    """Compare the task made of the parts with the gradient that the loop applied in its first step.

    Args:
        parts: arguments of `Task` by name.
        session: of the loop that is recorded.
        start: the state before the step.
        rows: that step alone.
    """
    header = describe_optimizer(session)
    names = [n for n, _ in header["parameters"]]
    found: list[tuple[type[RecorderWarning], str]] = []
    given = {k: v for k, v in parts.items() if k not in ("optimizer", "scheduler", "first", "last", "scaling")}
    try:
        with seeded(0):
            model = given.pop("model", session.model)
            build = model_factory(own_copy(model) if isinstance(model, nn.Module) else model, names, start)
            task = Task(
                model=build, optimizer=optimizer_factory(header), order=rows.batches[0][None],
                **{k: v for k, v in given.items() if k != "remember"},
            )  # fmt: skip
        scaling, plain = scaling_of(task, [(seen_at(rows, 0), build)])
    except OrderscopeError as error:
        return [(TaskWarning, f"orders of the given task cannot be predicted: {error}")]
    except Exception as error:  # it is the user's code
        return [(TaskWarning, f"the task given fails at the first step: {type(error).__name__}: {error}")]
    if scaling is None:
        assert plain is not None
        clip = clips_at([float(rows.norm[0])]) if task.max_grad_norm is None else None
        clipped = "" if clip is None else f"; it seems to clip, at {clip:g}: pass max_grad_norm={clip:g}"
        told = (
            ""
            if np.isnan(rows.loss[0])
            else f", and its loss {plain.loss:.5g} where the loop reported {rows.loss[0]:.5g}"
        )
        found.append((
            TaskWarning,
            f"the task given is not what the loop does at its first step: its gradient has norm {plain.norm:.4g} and "
            f"the recorded one {rows.norm[0]:.4g}, {plain.error:.2g} of it in another direction{told}; compare loss=, "
            "data=, collate=, max_grad_norm= and dropout with the loop" + clipped,
        ))  # fmt: skip
    elif not scaling.plain and "scaling" not in parts:
        found.append((ScaledWarning, scaled_text(scaling, task.order)))
    if not task.mapped:
        found.append((
            SlowPathWarning,
            "gradients of single samples will be taken one after the other, since torch.func cannot take them in this "
            "model: recording takes some times as long; nothing has to be changed, give osc.record a small budget= or "
            "fewer samples to keep it short",
        ))  # fmt: skip
    if task.groups is None:
        found.append((NoGroupsWarning, NO_GROUPS))
    return found
