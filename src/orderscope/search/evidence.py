"""Whether an order that regroups samples is better than one that keeps batches whole, on rows that no search used.

There are far more orders that regroup samples than orders of whole batches. A search among them therefore overfits the
searched rows more. Such an order is proposed only if it is significantly better on the confirming rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

from orderscope.search.confirm import losses_on, standard_error
from orderscope.search.objective import Objective
from orderscope.search.rows import Row
from orderscope.search.work import Work
from orderscope.text import number

CLEAR = 2.0  # required gain in standard errors, for a single comparison on many rows


@dataclass(frozen=True)
class Compared:
    """One order compared with another on the same rows.

    Args:
        gain: by how much the objective is lower.
        standard_error: of the gain under resampling of the rows (paired); NaN where losses of single rows are not
            known.
        needed: number of standard errors that the gain has to exceed.
    """

    gain: float
    standard_error: float
    needed: float

    @property
    def clear(self) -> bool:
        """Whether the gain is significant."""
        return self.gain > self.needed * self.standard_error


def compared(
    objective: Objective, mine: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], comparisons: int = 1
) -> Compared:
    """Compare an order with another.

    Args:
        objective: the quantity that is minimised.
        mine: losses of the rows under the order, metric -> [rows].
        other: losses of the same rows under the other.
        comparisons: number of comparisons of which the best is taken, for Bonferroni's correction.
    """
    value = objective.value({name: (other[name] - mine[name]).mean() for name in objective.names})
    width = standard_error(objective, other, mine)
    rows = max(len(mine[name]) for name in objective.names)
    return Compared(float(value), math.nan if width is None else width, standard_errors(comparisons, rows))


def standard_errors(comparisons: int, rows: int) -> float:
    """Threshold, in standard errors, for the best of several comparisons, at the significance level at which a single
    standard normal variable exceeds `CLEAR`: Student's t with Bonferroni's correction.

    Args:
        comparisons: number of comparisons.
        rows: number of rows in each.

    Example:
        >>> [round(standard_errors(n, 96), 2) for n in (1, 2, 8)]
        [2.03, 2.32, 2.83]
    """
    return float(t.isf(norm.sf(CLEAR) / max(1, comparisons), max(1, rows - 1)))


def settled(work: Work, rows: list[Row]) -> list[Row]:
    """The orders that may be proposed: those that regroup samples only if the best of them is significantly better than
    all others on the confirming rows. If it is not, later searches keep the recorded batches too.

    All orders may be proposed if no rows were set aside, or if the user requested regrouping explicitly.

    Args:
        work: the state of the search; its `regroup` is set to False if regrouping is rejected.
        rows: the orders found.
    """
    parts, objective = work.parts, work.request.objective
    regrouped = [row for row in rows if row.regroups]
    if parts is None or not work.request.judged or not regrouped:
        return rows
    kept = [row for row in rows if not row.regroups]
    losses = {key: losses_on(objective, parts, trained, "confirming") for key, trained in work.true.items()}
    ours = [losses[key] for key in dict.fromkeys(row.order.tobytes() for row in regrouped) if key in losses]
    others = [losses[row.order.tobytes()] for row in kept if row.order.tobytes() in losses]
    others.append(losses[work.sim.order.tobytes()])
    best = min(others, key=lambda each: float(objective.value({n: x.mean() for n, x in each.items()})))
    judged = [compared(objective, each, best, len(ours)) for each in ours]
    if any(each.clear for each in judged):
        return rows
    work.regroup = False
    if judged:
        most = max(judged, key=lambda each: each.gain)
        work.note(
            f"batches are kept together: on rows that the search never saw, the best order that regroups samples gains "
            f"{number(most.gain, 2, sign=True)} over the best that does not; more than "
            f"{number(most.needed * most.standard_error, 2)} is required, {most.needed:.1f} standard errors"
        )
    return kept
