"""Orders in which every part of the run has batches of all difficulties."""

from __future__ import annotations

import numpy as np

from orderscope.search.setting import Setting
from orderscope.search.strategies.sorts import sorted_by, sorts
from orderscope.search.strategy import Orders, Strategy


class EvenLoss(Strategy):
    """Batches ranked by loss, in the van der Corput sequence: easy and hard ones are evenly mixed at every scale of
    time, as `interleave` does for groups."""

    name, source = "even losses", "loss on the starting weights, low-discrepancy sequence; Lu et al., ICLR 2022"

    def orders(self, setting: Setting) -> Orders:
        from scipy.stats.qmc import Halton  # takes half a second to import

        values = setting.signal("loss", self.name)
        if values is not None:
            place = Halton(1, scramble=False).random(setting.steps)[:, 0].argsort().argsort()

            def even(items: np.ndarray) -> np.ndarray:
                return sorted_by(items, values).reshape(setting.steps, -1)[place].reshape(items.shape)

            yield from sorts(setting, [even])
