"""What a proposal shows of the orders that were found: the best of every strategy, and the nearest simple forms."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from orderscope.search.confirm import PartGain
from orderscope.search.readable import Schedule, Sort
from orderscope.search.strategy import Scores

OWN = "reference"


@dataclass(frozen=True)
class Row:
    """The best order of one strategy, or a point of a front.

    Args:
        name, source: the strategy's.
        predicted, error: estimated metric on all held-out rows and half-width of its 90 % interval, by the search's own
            scores.
        confirmed: true metric from retraining, on all rows, or None.
        order: int64 [steps, batch].
        metrics: estimated values by metric, on the searched rows.
        true: true values by metric, where it was retrained.
        parts: gain over the reference on the confirming rows, which the search never saw, and on the searched ones.
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
    """The proposed order in a few words, and what those alone are worth.

    Args:
        order: the simple form played on the recorded samples, int64 [steps, batch].
        predicted: metric on all rows.
        kept: its gain over the reference, by that of the proposal; both as trained where both were, else as predicted.
            Not a number where the proposal gains nothing.
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
        by: the number that it sorts by.
    """

    by: Sort = field(kw_only=True)


def rank(row: Row, sign: float) -> float:
    """What rows are sorted by: the true value where it is known, else the bound; lower is better.

    Args:
        row: an order's scores.
        sign: 1 where lower is better, -1 where higher is.
    """
    if row.confirmed is not None:
        return sign * row.confirmed
    return float(Scores(np.array(sign * row.predicted), np.array(row.error)).bound)
