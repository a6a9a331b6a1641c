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

from orderscope.search.confirm import standard_error
from orderscope.search.objective import Objective

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
