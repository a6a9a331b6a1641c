"""What a recording buys for its cost: anchors, probes and passes of the sampled curvature.

Either in fixed shares, or by measurement. The error of left-out runs is taken to be a sum with one part for each
ingredient, which falls as there is more of it,

    E(n) = E_0 + sum_i c_i / n_i,

n_i counting the runs (the reference is one), the shared anchors (the reference's own states count as one), and the
passes of the sampled curvature. That is how the error of a learner whose teacher is without noise falls with the number
of examples, whatever the learner: Amari, Fujita and Shinomoto, "Four types of learning curves", 1992; and what a
quadratic form makes of a sampled matrix's noise falls so with the rows too. c_i follows from how much the error grows
without a part of the ingredient, and from c_i what one more of it would gain.

Few runs measure growths badly, so each c_i is a mean of what was measured and of what `PRIOR` says, with the weights
of as many runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from orderscope.errors import OrderscopeError

RUNS, RUNS_OF_QUICK, QUICK = 12.0, 20.0, 1.0  # most honest runs by default; more where one takes less than so many s
# Shares of the error that the ingredients hold until measured. Another pass takes text_96 from 0.36 to 0.27 and
# text_mixed from 0.26 to 0.20 (mae, three probes) and leaves digits and text_24; five probes instead of three take
# text_24 from 0.12 to 0.08, six text_96 from 0.27 to 0.17, twelve instead of five digits from 0.66 to 0.24.
# Three probes also calibrate badly: coverage 0.44 to 0.81 on text_24, so a fourth comes before a second pass.
PRIOR = {"probes": 0.7, "anchors": 0.1, "curvature": 0.2}
PRIOR_RUNS = 3  # with three runs digits shows a growth of 0.006 without half of the other probes, with six 0.5
LEAST = 5  # the run itself, an anchor, two probes, a pass


@dataclass(frozen=True)
class Allotment:
    """Each costs about one run of gradient evaluations.

    Args:
        anchors: states of the reference run at which gradients are taken.
        probes: true runs under other orders.
        passes: pseudo-gradients a sample.
    """

    anchors: int
    probes: int
    passes: int

    @property
    def runs(self) -> int:
        """All of it, the reference run included."""
        return 1 + self.anchors + self.probes + self.passes


DEFAULT = Allotment(anchors=2, probes=8, passes=4)
MIXED = Allotment(anchors=2, probes=6, passes=6)  # the curvature's spectrum is broad where groups mix in a batch
# Few directions of the curvature stand out from the noise where few of many weights are carried.
PARTIAL = Allotment(anchors=2, probes=12, passes=1)


def shares(*, mixed: bool, partial: bool) -> Allotment:
    """What is bought by default.

    Args:
        mixed: whether batches mix groups.
        partial: whether only some of the weights are carried.
    """
    return MIXED if mixed else PARTIAL if partial else DEFAULT


def allot(budget: float, like: Allotment, *, most_passes: int) -> Allotment:
    """Spend a budget in the proportions of another; what passes cannot use is spent on probes.

    Args:
        budget: in runs.
        most_passes: more pseudo-gradients than so many a sample are not drawn.

    Raises:
        OrderscopeError: fewer runs than the least recording takes.

    Example:
        >>> allot(20, DEFAULT, most_passes=9)
        Allotment(anchors=3, probes=11, passes=5)
        >>> allot(20, DEFAULT, most_passes=1)
        Allotment(anchors=3, probes=15, passes=1)
    """
    if not LEAST <= budget < math.inf:
        raise OrderscopeError(f"budget={budget!r} runs", f"at least {LEAST}", "raise budget=, or leave it out")
    share = (int(budget) - 1) / (like.runs - 1)
    anchors = max(1, round(like.anchors * share))
    passes = max(1, min(round(like.passes * share), most_passes))
    return Allotment(anchors, max(2, int(budget) - 1 - anchors - passes), passes)


@dataclass(frozen=True)
class Held:
    """What a recording has."""

    probes: int
    anchors: int
    curvature: int

    def count(self, part: str) -> int:
        """n_i."""
        return getattr(self, part) + (part != "curvature")


def falling(error: float, growth: Mapping[str, float] | None, held: Held, left: float = 1.0) -> dict[str, float]:
    """The c_i of the law.

    Args:
        error: of the left-out runs.
        growth: of the error without half of the curvature or `left` of the other probes; None where it could not be
            measured.
        held: with which it was measured.

    Anchors are left to the prior: left-out runs do not see what they are worth. On text_96 with two passes the left-out
    error is 0.324 with one anchor and 0.323 with two, that of unseen orders 0.348 and 0.272: an anchor at the end of
    the reference is near orders that end where it does, which probes do not.

    Example:
        >>> falling(0.6, {"probes": 0.3, "anchors": 0.0, "curvature": -0.1}, Held(3, 1, 1))
        {'probes': 1.74, 'anchors': 0.12, 'curvature': 0.06}
    """
    found = {}
    for part in ("probes", "anchors", "curvature"):
        n = held.count(part)
        prior = PRIOR[part] * error * n
        if growth is None or part == "anchors":
            found[part] = prior
            continue
        # A left-out run has one run fewer to be told by.
        more, fewer = (n - 1, n - 1 - left) if part == "probes" else (n, n / 2)
        measured = max(0.0, growth[part]) / (1 / fewer - 1 / more)
        weight = held.probes / (held.probes + PRIOR_RUNS)
        found[part] = round(weight * measured + (1 - weight) * prior, 12)
    return found


def purchase(
    error: float,
    falls: Mapping[str, float],
    held: Held,
    prices: Mapping[str, float],
    allowance: float,
    *,
    most: Mapping[str, int],
    spent: float | None = None,
) -> Held:
    """What to have next: one after the other, what gains most per honest run.

    Args:
        error: of the left-out runs, with what is held.
        falls: the c_i.
        prices: of one more, in honest runs.
        allowance: honest runs that may be spent.
        most: how many of each there can be.
        spent: honest runs spent so far; then nothing is bought that would narrow the error by a smaller share than what
            it adds to the cost: the product of both is least there.

    Example:
        >>> prices = {"probes": 1.5, "anchors": 1.0, "curvature": 1.0}
        >>> most = {"probes": 99, "anchors": 2, "curvature": 8}
        >>> purchase(0.6, {"probes": 1.6, "anchors": 0.06, "curvature": 0.09}, Held(3, 1, 1), prices, 5.0, most=most)
        Held(probes=5, anchors=1, curvature=3)
    """
    while True:
        worth = {}
        for part, price in prices.items():
            n = held.count(part)
            if getattr(held, part) < most[part] and price <= allowance:
                worth[part] = falls[part] * (1 / n - 1 / (n + 1)) / price
        if not worth:
            return held
        best = max(worth, key=lambda part: worth[part])
        if spent is not None:
            if worth[best] * spent < error:
                return held
            spent += prices[best]
        allowance -= prices[best]
        error = max(0.0, error - worth[best] * prices[best])
        held = replace(held, **{best: getattr(held, best) + 1})
