"""Whether an order that regroups samples is better than one of whole batches, on rows that no search saw.

Orders that regroup samples are many more than orders of whole batches, so a search among them learns its rows far
better, and its gains hold worse on others. They are therefore taken only where the rows set aside tell them apart.
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

CLEAR = 2.0  # standard errors by which one has to be better than the other, of a single comparison on many rows


@dataclass(frozen=True)
class Compared:
    """One order beside another on the same rows.

    Args:
        gain: how much better it is.
        standard_error: of that over another choice of as many rows, the rows being paired; not a number where losses
            of single rows are not known.
        needed: standard errors that the gain has to exceed.
    """

    gain: float
    standard_error: float
    needed: float

    @property
    def clear(self) -> bool:
        return self.gain > self.needed * self.standard_error


def compared(
    objective: Objective, mine: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], comparisons: int = 1
) -> Compared:
    """How clearly an order is better than another.

    Args:
        objective: what is to be lowered.
        mine: losses of the rows under the order, metric -> [rows].
        other: losses of the same rows under the other.
        comparisons: how many pairs are looked at in all, of which the best is taken: the more, the more one of them
            gains by chance.
    """
    value = objective.value({name: (other[name] - mine[name]).mean() for name in objective.names})
    width = standard_error(objective, other, mine)
    rows = max(len(mine[name]) for name in objective.names)
    return Compared(float(value), math.nan if width is None else width, standard_errors(comparisons, rows))


def standard_errors(comparisons: int, rows: int) -> float:
    """Standard errors that the best of some comparisons has to exceed so that chance does so as rarely as a single
    normal variable exceeds `CLEAR`: Student's t, Bonferroni's correction.

    Args:
        comparisons: how many.
        rows: in each.

    Example:
        >>> [round(standard_errors(n, 96), 2) for n in (1, 2, 8)]
        [2.03, 2.32, 2.83]
    """
    return float(t.isf(norm.sf(CLEAR) / max(1, comparisons), max(1, rows - 1)))


def settled(work: Work, rows: list[Row]) -> list[Row]:
    """Rows that may be proposed: those that regroup samples only if the best of them is clearly better than all others,
    on the rows that the search never saw. Otherwise later searches keep the recorded batches too.

    Where no rows were set aside there is nothing to judge by, and all may be; nor is it judged where it was asked for.

    Args:
        work: what was trained; whether later searches may regroup samples is noted there.
        rows: what was found.
    """
    parts, objective = work.parts, work.asked.objective
    regrouped = [row for row in rows if row.regroups]
    if parts is None or not work.asked.judged or not regrouped:
        return rows
    kept = [row for row in rows if not row.regroups]
    apart = {key: losses_on(objective, parts, own, "confirming") for key, own in work.true.items()}
    ours = [apart[key] for key in dict.fromkeys(row.order.tobytes() for row in regrouped) if key in apart]
    others = [apart[row.order.tobytes()] for row in kept if row.order.tobytes() in apart]
    others.append(apart[work.sim.order.tobytes()])
    best = min(others, key=lambda losses: float(objective.value({n: x.mean() for n, x in losses.items()})))
    judged = [compared(objective, own, best, len(ours)) for own in ours]
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
