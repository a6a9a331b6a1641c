"""The rows of a proposal's table, one for the best order of each strategy, and the simple forms of the proposed
order."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from orderscope.search.confirm import PartGain
from orderscope.search.readable import Schedule, Sort
from orderscope.search.strategy import Scores

REFERENCE_ROW = "reference"  # name of the row of the recorded order


@dataclass(frozen=True)
class Row:
    """The best order of one strategy, or a point of a front.

    Args:
        name, source: name and source of the strategy.
        predicted, error: estimated metric on all held-out rows and half-width of its 90 % interval, from the scores of
            the search.
        confirmed: true metric from retraining, on all rows, or None.
        order: int64 [steps, batch].
        metrics: estimated values by metric, on the searched rows.
        true: true values by metric, if it was retrained.
        parts: gain over the reference on the confirming rows, which the search did not see, and on the searched rows.
        regroups: whether samples leave their recorded batches.
    """

    name: str
    source: str
    predicted: float
    error: float
    confirmed: float | None
    order: np.ndarray
    metrics: dict[str, float] = field(default_factory=dict)
    true: dict[str, float] = field(default_factory=dict)
    parts: list[PartGain] = field(default_factory=list)
    regroups: bool = False


@dataclass(frozen=True)
class Form:
    """A simple order near the proposed one, and the share of its gain that it keeps.

    Args:
        order: the simple form applied to the recorded samples, int64 [steps, batch].
        predicted: predicted metric on all rows.
        kept: gain of the simple form over the reference divided by that of the proposal; true gains if both were
            trained, else predicted ones. NaN if the proposal gains nothing.
        confirmed: true metric from retraining, or None.
    """

    order: np.ndarray
    predicted: float
    kept: float
    confirmed: float | None = None


@dataclass(frozen=True)
class Simple(Form):
    """The nearest schedule of groups.

    Args:
        schedule: shares of groups over time.
    """

    schedule: Schedule = field(kw_only=True)


@dataclass(frozen=True)
class Sorted(Form):
    """The nearest sort.

    Args:
        by: the signal that it sorts by, and the direction.
    """

    by: Sort = field(kw_only=True)


def rank(row: Row, sign: float) -> float:
    """The value that rows are sorted by: the true value if it is known, else the bound; lower is better.

    Args:
        row: the row of an order.
        sign: 1 where lower is better, -1 where higher is.
    """
    if row.confirmed is not None:
        return sign * row.confirmed
    return float(Scores(np.array(sign * row.predicted), np.array(row.error)).bound)
