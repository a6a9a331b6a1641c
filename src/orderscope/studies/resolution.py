"""How far must something move in time before a prediction tells that it moved? One batch, or all batches of a group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from orderscope.errors import OrderscopeError, unknown_metric
from orderscope.orders import mixes_groups, step_groups
from orderscope.recording.costs import cpu_seconds, training_seconds
from orderscope.simulation.simulator import Simulator

BATCH = "one batch"
PLACES = 6  # batches that are moved, one an order, spread over the run
AT_ONCE = 16  # orders of one prediction, between two calls of `progress`


@dataclass(frozen=True)
class Shifted:
    """Orders in which the same thing comes later by the same number of steps.

    Args:
        what: a group, all of whose batches are moved, or `BATCH`.
        steps: by how many steps they come later.
        effect: root mean square of the predicted differences to the recorded order.
        error: mean half-width of their 90 % intervals.
        apart: in how many of the orders the difference is larger than its error.
        orders: how many orders there are.
    """

    what: str
    steps: int
    effect: float
    error: float
    apart: int
    orders: int

    @property
    def told_apart(self) -> bool:
        """Whether at least half of the orders are told apart from the recorded one."""
        return 2 * self.apart >= self.orders


@dataclass(frozen=True)
class Resolution:
    """Which shifts in time a recording can tell apart.

    Args:
        metric: that the differences are of.
        rows: one a thing and shift, the smallest shift first.
        cost: of the predictions, in runs.
    """

    metric: str
    rows: tuple[Shifted, ...]
    cost: float

    @property
    def smallest(self) -> dict[str, int | None]:
        """The smallest shift, in steps, from which on all shifts are told apart, for each thing that is moved; None
        where the largest is not."""
        found: dict[str, int | None] = {}
        for what in dict.fromkeys(row.what for row in self.rows):
            mine = [row for row in self.rows if row.what == what]
            first = 1 + max((i for i, row in enumerate(mine) if not row.told_apart), default=-1)
            found[what] = mine[first].steps if first < len(mine) else None
        return found


def resolution(
    sim: Simulator, metric: str | None = None, *, progress: Callable[[str, int, int], None] | None = None
) -> Resolution:
    """Find how far one batch, or all batches of a group, must be moved in time for a prediction to tell the order apart
    from the recorded one: the predicted difference is then larger than the half-width of its 90 % interval.

    Shifts are by 1, 2, 4, ... steps, up to half of the window. What is moved comes later, the others keep their
    sequence. Groups are moved only where batches do not mix them.

    Args:
        sim: of the run; it needs its task only for a metric that is no held-out loss.
        metric: the first by default.
        progress: called as `progress(stage, done, total)`.

    Raises:
        OrderscopeError: for an unknown metric, or a window of fewer than four steps.
    """
    name = metric or sim.metric_names[0]
    if name not in sim.reference:
        raise unknown_metric(name, sim.reference)
    order = sim.order
    count = len(order)
    if count < 4:
        raise OrderscopeError(f"a window of {count} steps", "four or more, to shift batches in", "record a longer one")
    moved: list[tuple[str, int, np.ndarray]] = []
    shifts = [1 << k for k in range(count.bit_length()) if 1 << k <= count // 2]
    for shift in shifts:
        places = np.unique(np.linspace(0, count - 1 - shift, PLACES).round().astype(int))
        moved += [(BATCH, shift, later(np.arange(count) == place, shift)) for place in places]
    labels = np.array(step_groups(order, sim.sample_groups))
    groups = np.unique(labels).tolist()
    if len(groups) > 1 and not mixes_groups(order, sim.sample_groups):
        moved += [(group, shift, later(labels == group, shift)) for group in groups for shift in shifts]
    began, found = cpu_seconds(), []
    for first in range(0, len(moved), AT_ONCE):
        part = moved[first : first + AT_ONCE]
        found.append(sim.predict(order[np.stack([steps for *_, steps in part])], metrics=[name]))
        if progress is not None:
            progress("predict shifted orders", min(first + AT_ONCE, len(moved)), len(moved))
    difference = np.concatenate([p.metrics[name] for p in found]) - sim.reference[name]
    error, apart = (np.concatenate(x) for x in ([p.error[name] for p in found], [p.detectable(name) for p in found]))
    rows = []
    for what, shift in dict.fromkeys((what, shift) for what, shift, _ in moved):
        its = np.array([(w, s) == (what, shift) for w, s, _ in moved])
        effect = float(np.sqrt(np.mean(difference[its] ** 2)))
        rows.append(Shifted(what, shift, effect, float(error[its].mean()), int(apart[its].sum()), int(its.sum())))
    run = training_seconds(sim.store)
    return Resolution(name, tuple(rows), (cpu_seconds() - began) / run if run else float("nan"))


def later(which: np.ndarray, shift: int) -> np.ndarray:
    """Places of the steps, int64 [steps], with some of them later by a number of steps and the others in sequence.

    Args:
        which: the steps that are moved, bool [steps].
        shift: by how many steps, 1 or more.

    Example:
        >>> later(np.array([True, False, False, True, False]), 2)
        array([1, 2, 0, 4, 3])
    """
    return np.argsort(np.arange(len(which)) + which * (shift + 0.5), kind="stable")
