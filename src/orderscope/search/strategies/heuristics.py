"""Orders from simple rules, with a few scores each: the baselines that a search must beat."""

from __future__ import annotations

import numpy as np

from orderscope.orders import resolve
from orderscope.search.setting import Setting
from orderscope.search.strategy import Orders, Strategy

RANDOM = 24  # most random orders


class Reference(Strategy):
    name, source = "reference", "as recorded"

    def orders(self, setting: Setting) -> Orders:
        yield setting.order[None]


class Reverse(Strategy):
    name, source = "reverse", "last step first"

    def orders(self, setting: Setting) -> Orders:
        yield setting.order[::-1][None]


class Interleave(Strategy):
    name, source = "interleave", "stratified: every group spread evenly"

    def orders(self, setting: Setting) -> Orders:
        yield resolve("interleave", setting.order, _sample_labels(setting), regroup=setting.regroup)[None]


class Random(Strategy):
    """Random permutations of the steps, the simplest baseline."""

    name, source = "random", "shuffled steps"

    def orders(self, setting: Setting) -> Orders:
        count = int(np.clip(setting.share // 4, 1, RANDOM))
        yield setting.order[np.stack([setting.rng.permutation(setting.steps) for _ in range(count)])]


def _sample_labels(setting: Setting) -> list[str]:
    names = setting.sim.description["group_names"]
    return [names[code] for code in setting.sim.window.group_codes]
