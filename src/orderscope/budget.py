"""What a recording buys for its cost: anchors, probes and passes of the sampled curvature."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orderscope.errors import OrderscopeError

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
