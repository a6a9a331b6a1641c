"""Orders made of several passes over the same samples, where each pass uses information from the one before."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from orderscope.search.setting import Setting
from orderscope.search.strategy import Orders, Strategy

BALANCES = 3  # most rounds of balancing


class Herding(Strategy):
    """Each pass in a sequence that keeps the running sum of centred gradients small, by the gradients of the pass
    before.

    The first pass uses the gradients at the anchor where it starts.
    """

    name, source = "herding", "gradient balancing, GraB, arXiv 2205.10733"

    def orders(self, setting: Setting) -> Orders:
        count, window = epochs(setting.order), setting.sim.window
        each = setting.steps // count
        at = np.array([a.step for a in setting.sim.plan.anchors])
        orders = []
        for rounds in range(1, BALANCES + 1):
            steps = np.arange(setting.steps)
            for epoch in range(count):
                first = epoch * each
                anchor = int(np.abs(at - max(0, first - each // 2)).argmin())
                epoch_steps = slice(first, first + each)
                steps[epoch_steps] = first + herded(window.table[epoch_steps, anchor].to(window.dtype), rounds)
            orders.append(steps)
        yield setting.order[np.stack(orders)]


class PairedReversal(Strategy):
    """Every second pass goes through the batches of the pass before in reverse."""

    name, source = "paired reversal", "every second epoch reversed; flip-flop, arXiv 2102.09718"

    def orders(self, setting: Setting) -> Orders:
        count = epochs(setting.order)
        if count < 2:
            setting.note(f"{self.name}: the order is not made of several passes over the same samples")
            return
        passes = setting.order.reshape(count, -1, setting.order.shape[1]).copy()
        passes[1::2] = passes[: len(passes[1::2]) * 2 : 2, ::-1]
        yield passes.reshape(1, *setting.order.shape)


def epochs(order: np.ndarray) -> int:
    """The number of passes in an order [steps, batch]: the largest number of equal parts that hold the same samples.

    Example:
        >>> epochs(np.array([[0, 1], [2, 3], [3, 1], [0, 2]]))
        2
    """
    steps = len(order)
    for count in range(steps, 1, -1):
        if steps % count == 0:
            parts = np.sort(order.reshape(count, -1), axis=1)
            if (parts == parts[0]).all():
                return count
    return 1


def herded(gradients: Tensor, rounds: int) -> np.ndarray:
    """Steps arranged so that partial sums of their centred gradients stay small, int64 [n].

    In each round every gradient gets the sign that keeps the running sum small; steps with a plus go to the front,
    those with a minus to the back in reverse.

    Source: Lu, Guo and De Sa, "GraB: finding provably better data permutations than random reshuffling", 2022.

    Args:
        gradients: gradients of the steps' batches, [n, m].
        rounds: number of rounds.
    """
    centred = (gradients - gradients.mean(0)).double()
    gram = (centred @ centred.T).numpy()
    order = np.arange(len(gram))
    for _ in range(rounds):
        sign, running = np.zeros(len(gram)), np.zeros(len(gram))  # running: the sum's product with every gradient
        for i in order:
            sign[i] = 1.0 if running[i] <= 0 else -1.0
            running += sign[i] * gram[i]
        order = np.concatenate([order[sign[order] > 0], order[sign[order] < 0][::-1]])
    return order
