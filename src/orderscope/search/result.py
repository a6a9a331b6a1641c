"""The result of a search for a better order, and why its gain may not be distinguishable from chance."""

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

CLEAR_GAIN = 1.645  # required gain on the confirming rows in standard errors: one-sided, 95 %


class Elsewhere(NamedTuple):
    """Expected gain on other rows, and half-width of its 90 % interval by Student's t."""

    gain: float
    error: float


@dataclass(frozen=True)
class Proposal:
    """The best order found.

    Args:
        order: int64 [steps, batch]; the reference if nothing better was found.
        predicted, error: estimated metric and half-width of its 90 % interval, by `Simulator.predict`.
        confirmed: true metric from retraining, or None if it was not retrained.
        metric, maximize: the objective, and whether it is maximised; for several metrics their weighted sum, such as
            `eval + 0.5 code`.
        table: the best order of every strategy, best first.
        reference: the metric of the recorded order.
        random: predicted mean and standard deviation under random permutations of the recorded steps.
        gain_sigma: improvement of the proposal over that mean, in those standard deviations; from the true value if it
            was confirmed.
        scored: number of orders scored.
        cost: total cost in runs: recording, sketching, searching, confirming.
        best_of_n: expected metric of the best of as many random orders as `cost` could train.
        undetectable: whether the gain is not distinguishable from chance. If the order was confirmed: its true value is
            not better, beyond rounding, than the reference or `best_of_n`, or its gain on the confirming rows is below
            `CLEAR_GAIN` standard errors. Otherwise: the predicted gain is within its error, or estimates are no better
            than a constant.
        true: true values of all metrics, if it was confirmed; `NAME:confirming` and `NAME:searched` are those of the
            objective on each part of the rows.
        front: for several metrics, the Pareto front of the scored orders, sorted by the first metric.
        notes: remarks for the reader.
        verdict: how much order matters, in words.
        effect: the numbers behind the verdict.
        parts: gain over the reference on the confirming rows, then on the searched rows. For a refined order these are
            the gains of the order that it was refined from, whose search saw the searched rows only.
        simple: the nearest schedule of groups and the share of the gain that it keeps; None without groups, or if the
            reference is proposed.
        sort: the nearest sort by a recorded signal, and the share of the gain that it keeps; None if no sort is close.
        searched: whether a search was made; False if the verdict is that order does not matter enough.
        refined: whether it was found on one part of the rows and then improved on all of them.
        why: the reason why it is undetectable, in words; empty if it is detectable.
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
        """The expected gain over the reference on other rows of the same source; None if the order was not trained, or
        no rows were set aside.

        It is the true gain on the rows that the search did not see. An order chosen on some rows gains less on others,
        so `predicted` and `confirmed` overstate it. For a refined order it is the gain of the order that it was refined
        from. Measured: the interval contained the gain on fresh rows for 25 of 28 proposals, made on eight windows and
        mostly refined.
        """
        part = next((part for part in self.parts if part.part == "confirming"), None)
        if part is None or part.confirmed is None or part.standard_error is None:
            return None
        return Elsewhere(part.gain, two_sided(max(1, part.rows - 1), COVERAGE) * part.standard_error)


def why_undetectable(
    best: Row, parts: Sequence[PartGain], gain: float, ahead: float, rounding: float, *, skilled: bool
) -> str:
    """Why an order's gain is not distinguishable from chance, in words; empty if it is.

    The comparison on the confirming rows comes first. The one with random orders of equal cost depends on the speed of
    the machine.

    Args:
        best: the order.
        parts: its gains, those on the confirming rows first.
        gain: gain over the reference on all rows, the true one if the order was trained.
        ahead: gain over the expected best of random orders of equal cost.
        rounding: change of the metric that rounding alone causes.
        skilled: whether estimates are better than a constant.
    """
    if best.confirmed is None:
        if not skilled:
            return "estimates are no better than a constant"
        return "" if gain > best.error else "the predicted gain is inside its error"
    if not gain > rounding:
        return "it is no better than the recorded order"
    if any(p.standard_error is not None and p.gain <= CLEAR_GAIN * p.standard_error for p in parts[:1]):
        return f"on rows that the search never saw the gain is below {CLEAR_GAIN:.1f} standard errors"
    return "" if ahead > rounding else "the best of as many random orders is expected to be as good"
