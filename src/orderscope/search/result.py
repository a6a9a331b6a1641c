"""What a search for a better order comes to: the proposal, and why there may be nothing to tell from chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from orderscope.engine.calibration import COVERAGE
from orderscope.engine.student_t import two_sided
from orderscope.search.confirm import PartGain
from orderscope.search.rows import Row, Simple, Sorted
from orderscope.simulation.verdict import Verdict

CLEAR_GAIN = 1.645  # standard errors: a gain beyond them is one in 19 of 20 draws of rows


class Elsewhere(NamedTuple):
    """Gain on other rows, and half-width of its 90 % interval by Student's t."""

    gain: float
    error: float


@dataclass(frozen=True)
class Proposal:
    """The best order found.

    Args:
        order: int64 [steps, batch]; the reference itself where nothing better was found.
        predicted, error: estimated metric and half-width of its 90 % interval, by `Simulator.predict`.
        confirmed: true metric from retraining, or None where it was not retrained.
        metric, maximize: what was improved, and which way; of several metrics their weighted sum, as `eval + 0.5 code`.
        table: the best order of every strategy, best first.
        reference: the metric of the recorded order.
        random: predicted mean and standard deviation under random permutations of the recorded steps.
        gain_sigma: how far the proposal is better than that mean, in those standard deviations; by the true value
            where it was confirmed.
        scored: orders that were scored.
        cost: all that was spent, in runs: recording, sketching, searching, confirming.
        best_of_n: metric to be expected of the best of as many random orders, all truly trained.
        undetectable: whether there is nothing to tell from chance. Where it was confirmed, whether the true value is no
            better than the reference's and `best_of_n`, but for rounding, or the gain on the confirming rows is below
            `CLEAR_GAIN` of its standard errors; else whether the predicted gain over the reference is inside its error,
            or estimates are no better than a constant.
        true: true values of all metrics, where it was confirmed; `NAME:confirming` and `NAME:searched` are those of the
            objective on either part of the rows.
        front: where several metrics were asked for, the orders that no other is better than in all of them, by the
            first metric.
        notes: what a reader should know.
        verdict: what there was to find, in words, and the numbers they rest on.
        parts: what it gains over the reference on the confirming rows, then on the searched ones. Of a refined one what
            the order gains that it was made from, and that was searched on the searched rows only.
        simple: the nearest schedule of groups and what of the gain it keeps; None where there are no groups, or nothing
            was found.
        sort: the nearest sort by a recorded signal, and what it keeps; None where the order is close to none.
        searched: whether a search was made; it is not where the verdict says that there is nothing to look for.
        refined: whether it was found on one part of the rows and then improved on all of them.
        why: what makes it undetectable, in words; empty where it is not.
    """

    order: np.ndarray
    predicted: float
    error: float
    confirmed: float | None
    metric: str
    maximize: bool
    table: list[Row]
    reference: float
    random: dict[str, float]
    gain_sigma: float
    scored: int
    cost: float
    best_of_n: float
    undetectable: bool
    true: dict[str, float] = field(default_factory=dict)
    front: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verdict: str = ""
    effect: Verdict | None = None
    parts: list[PartGain] = field(default_factory=list)
    simple: Simple | None = None
    sort: Sorted | None = None
    searched: bool = True
    refined: bool = False
    why: str = ""

    @property
    def elsewhere(self) -> Elsewhere | None:
        """What it may be expected to gain over the reference on other rows of the same source; None where it was not
        trained, or no rows were set aside.

        It is the true gain on the rows that the search never saw. An order chosen on some rows gains less on others, so
        neither `predicted` nor `confirmed` says it. Of a refined order it is the gain of the one it was made from. The
        interval held the gain on fresh rows of 25 of 28 proposals, made on eight windows and mostly refined.
        """
        part = next((part for part in self.parts if part.part == "confirming"), None)
        if part is None or part.confirmed is None or part.standard_error is None:
            return None
        return Elsewhere(part.gain, two_sided(max(1, part.rows - 1), COVERAGE) * part.standard_error)


def why_undetectable(
    best: Row, parts: Sequence[PartGain], gain: float, ahead: float, rounding: float, *, skilled: bool
) -> str:
    """Why an order is not to be told from the reference or from luck, in words; empty where it is.

    What the rows say comes before what as many random orders would be, which hangs on the speed of the machine.

    Args:
        best: the order.
        parts: its gains, those on the confirming rows first.
        gain: over the reference on all rows, true where it was trained.
        ahead: of the best of as many random orders.
        rounding: what rounding alone changes.
        skilled: whether estimates are better than a constant.
    """
    if best.confirmed is None:
        if not skilled:
            return "estimates are no better than a constant"
        return "" if gain > best.error else "the predicted gain is inside its error"
    if not gain > rounding:
        return "it is no better than the recorded order"
    if any(p.standard_error is not None and p.gain <= CLEAR_GAIN * p.standard_error for p in parts[:1]):
        return f"on rows that the search never saw the gain is below {CLEAR_GAIN:.1f} of its standard errors"
    return "" if ahead > rounding else "the best of as many random orders is expected to be as good"
