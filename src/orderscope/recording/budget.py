"""What a recording buys for its cost: anchors, probes and passes of the sampled curvature.

In fixed shares as far as left-out runs are too few to tell more, and by measurement beyond. There the error of left-out
runs is taken to be a sum with one part for each ingredient, which falls as there is more of it,

    E(n) = E_0 + sum_i c_i / n_i,

n_i counting the runs (the reference is one), and the passes of the sampled curvature. That is how the error of a
learner whose teacher is without noise falls with the number of examples, whatever the learner: Amari, Fujita and
Shinomoto, "Four types of learning curves", 1992; and what a quadratic form makes of a sampled matrix's noise falls so
with the rows too. c_i follows from how much the error grows without a part of the ingredient, and from c_i what one
more of it would gain.

Few runs measure growths badly, so each c_i is a mean of what was measured and of what `PRIOR` says, with the weights
of as many runs.

Shared anchors are not bought so: left-out runs do not see what they are worth. On text_96, with two passes, the left-
out error is 0.324 with one anchor and 0.323 with two, that of unseen orders 0.348 and 0.272: an anchor at the end of
the reference is near orders that end where it does, which probes do not.
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
PRIOR = {"probes": 0.7, "curvature": 0.2}
PRIOR_RUNS = 3  # with three runs digits shows a growth of 0.006 without half of the other probes, with six 0.5
# What a recording with two anchors costs in honest runs beside probes and passes, and what each of those adds, its
# share of the table included. Four probes and two passes, six and three, eight and four have cost 21, 27, 34 on text_24
# (0.18 s a run), 19, 25, 28 on text_96 (0.7 s), 29, 45, 52 on digits (0.05 s); four and two, six and three, six and six
# 23, 31, 42 on text_mixed (0.4 s).
FIXED_RUNS, FIXED_SECONDS, PROBE, PASS, PASS_MIXED = 5.0, 0.4, 2.1, 2.2, 3.7
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
MIXED = Allotment(anchors=2, probes=8, passes=6)  # the curvature's spectrum is broad where groups mix in a batch
# Over hundreds of steps the errors of shuffled orders are alike, and one more shuffled probe tells them; two blurred
# ones beside six in pure blocks tell what lies between. Of eight probes there is one shuffled, and two blurred in
# place of blocks. What each is worth stands in the log.
LONGER = Allotment(anchors=2, probes=11, passes=4)
# Few directions of the curvature stand out from the noise where few of many weights are carried.
PARTIAL = Allotment(anchors=2, probes=12, passes=1)


def shares(*, mixed: bool, partial: bool, long: bool) -> Allotment:
    """What is bought by default.

    Args:
        mixed: whether batches mix groups.
        partial: whether only some of the weights are carried.
        long: whether the window is longer than `orderscope.engine.window.LONG`.
    """
    return MIXED if mixed else PARTIAL if partial else LONGER if long else DEFAULT


def allot(budget: float, like: Allotment, *, most_passes: int) -> Allotment:
    """Spend a budget in the proportions of another; what passes cannot use is spent on probes.

    Args:
        budget: in runs.
        like: whose proportions are kept.
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
    """What a recording has.

    Args:
        probes: runs under other orders.
        curvature: passes over the samples whose curvature was drawn, or a multiple of some.
    """

    probes: int
    curvature: int

    def cost(self, run: float, *, mixed: bool) -> float:
        """About what recording it costs, in trainings of the window.

        Args:
            run: CPU seconds of one training.
            mixed: whether batches mix groups.
        """
        fixed = FIXED_RUNS + FIXED_SECONDS / run
        return fixed + PROBE * self.probes + (PASS_MIXED if mixed else PASS) * self.curvature


def affordable(budget: float, run: float, *, mixed: bool, partial: bool, most_passes: int) -> Held:
    """Two probes to a pass, as many as fit in a budget, three and one at least.

    Args:
        budget: in honest runs.
        run: seconds of CPU of one.
        mixed: whether batches mix groups.
        partial: whether only some of the weights are carried: few directions of the curvature stand out from the noise
            there, and one pass shows them.
        most_passes: more are not drawn.

    Example:
        >>> affordable(20, 1.0, mixed=False, partial=False, most_passes=9)
        Held(probes=4, curvature=2)
        >>> affordable(30, 1.0, mixed=False, partial=False, most_passes=9)
        Held(probes=7, curvature=4)
    """
    held = Held(3, 1)
    while True:
        passes = held.curvature < (1 if partial else most_passes) and held.probes >= 2 * held.curvature
        more = replace(held, curvature=held.curvature + 1) if passes else replace(held, probes=held.probes + 1)
        if more.cost(run, mixed=mixed) > budget:
            return held
        held = more


def falling(error: float, growth: Mapping[str, float], held: Held, left: float = 1.0) -> dict[str, float]:
    """The c_i of the law.

    Args:
        error: of the left-out runs.
        growth: of the error without half of the curvature or `left` of the other probes.
        held: with which it was measured.
        left: probes that were left out, the mean over the runs.

    Example:
        >>> falling(0.6, {"probes": 0.3, "curvature": -0.1}, Held(3, 1))
        {'probes': 1.74, 'curvature': 0.06}
    """
    runs, passes = held.probes, held.curvature  # a left-out run is told by the reference and one probe fewer
    measured = {
        "probes": growth["probes"] / (1 / (runs - left) - 1 / runs),
        "curvature": growth["curvature"] * passes,
    }
    weight = held.probes / (held.probes + PRIOR_RUNS)
    priors = {"probes": PRIOR["probes"] * error * (runs + 1), "curvature": PRIOR["curvature"] * error * passes}
    return {part: round(weight * max(0.0, measured[part]) + (1 - weight) * priors[part], 12) for part in measured}


def purchase(
    error: float,
    falls: Mapping[str, float],
    held: Held,
    prices: Mapping[str, float],
    allowance: float,
    *,
    most_curvature: int,
    spent: float | None = None,
) -> Held:
    """What to have next: one after the other, what gains most per honest run.

    Args:
        error: of the left-out runs, with what is held.
        falls: the c_i.
        held: what there is already.
        prices: of one more, in honest runs.
        allowance: honest runs that may be spent.
        most_curvature: passes of curvature beyond which none is bought.
        spent: honest runs spent so far; then nothing is bought that would narrow the error by a smaller share than what
            it adds to the cost: the product of both is least there.

    Example:
        >>> prices = {"probes": 1.5, "curvature": 1.0}
        >>> purchase(0.6, {"probes": 1.6, "curvature": 0.09}, Held(3, 1), prices, 5.0, most_curvature=8)
        Held(probes=5, curvature=3)
    """
    while True:
        gains = {
            "probes": falls["probes"] * (1 / (held.probes + 1) - 1 / (held.probes + 2)),
            "curvature": falls["curvature"] * (1 / held.curvature - 1 / (held.curvature + 1)),
        }
        possible = [part for part in gains if prices[part] <= allowance]
        if held.curvature >= most_curvature and "curvature" in possible:
            possible.remove("curvature")
        if not possible:
            return held
        best = max(possible, key=lambda part: gains[part] / prices[part])
        if spent is not None:
            if gains[best] / prices[best] * spent < error:
                return held
            spent += prices[best]
        allowance -= prices[best]
        error = max(0.0, error - gains[best])
        held = replace(held, **{best: getattr(held, best) + 1})
