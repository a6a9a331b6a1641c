"""Orders from a rule: no search, a few scores each. Anything that searches must beat them."""

from __future__ import annotations

from itertools import islice, permutations
from math import factorial

import numpy as np

from orderscope.orders import resolve
from orderscope.search import signals
from orderscope.search.setting import Setting
from orderscope.search.strategy import Orders, Strategy, register

SEQUENCES = 24
RANDOM = 24


@register
class Reference(Strategy):
    name, source = "reference", "as recorded"

    def orders(self, setting: Setting) -> Orders:
        yield setting.order[None]


@register
class Reverse(Strategy):
    name, source = "reverse", "last step first"

    def orders(self, setting: Setting) -> Orders:
        yield setting.order[::-1][None]


@register
class Interleave(Strategy):
    name, source = "interleave", "stratified: every group spread evenly"

    def orders(self, setting: Setting) -> Orders:
        yield resolve("interleave", setting.order, _sample_labels(setting))[None]


@register
class Blocks(Strategy):
    """Groups in blocks, one after the other, in every sequence, or in some where there are more than `SEQUENCES`."""

    name, source = "blocks", "curriculum by group, all sequences up to 24"

    def orders(self, setting: Setting) -> Orders:
        names = sorted(set(setting.labels))
        if len(names) < 2:
            return
        if factorial(min(len(names), 5)) <= SEQUENCES:
            sequences = list(permutations(names))
        else:
            sequences = [tuple(setting.rng.permutation(names)) for _ in range(SEQUENCES)]
        labels = np.array(setting.labels)
        steps = [np.concatenate([np.flatnonzero(labels == name) for name in sequence]) for sequence in sequences]
        yield setting.order[np.stack(list(islice(steps, SEQUENCES)))]


@register
class EasyFirst(Strategy):
    """Perplexity sorts the same way: it is the exponential of the loss."""

    name, source = "easy first", "loss (perplexity) on the starting weights, rising"

    def orders(self, setting: Setting) -> Orders:
        yield setting.order[np.argsort(signals.start_losses(setting.sim), kind="stable")][None]


@register
class HardFirst(Strategy):
    name, source = "hard first", "loss (perplexity) on the starting weights, falling"

    def orders(self, setting: Setting) -> Orders:
        yield setting.order[np.argsort(-signals.start_losses(setting.sim), kind="stable")][None]


@register
class SmallGradientsFirst(Strategy):
    name, source = "small gradients first", "gradient norm at the first anchor, rising"

    def orders(self, setting: Setting) -> Orders:
        yield setting.order[np.argsort(signals.gradient_norms(setting.sim.window), kind="stable")][None]


@register
class LargeGradientsFirst(Strategy):
    name, source = "large gradients first", "gradient norm at the first anchor, falling"

    def orders(self, setting: Setting) -> Orders:
        yield setting.order[np.argsort(-signals.gradient_norms(setting.sim.window), kind="stable")][None]


@register
class ImpulseSort(Strategy):
    """The best order to first order in the learning rate, curvature left out: a sort."""

    name, source = "impulse sort", "influence against the optimizer's impulse weight of each position"

    def orders(self, setting: Setting) -> Orders:
        if setting.expansion is not None:
            steps = signals.impulse_order(setting.sim.window, setting.expansion)
            yield setting.order[steps if setting.sign > 0 else steps[::-1]][None]


@register
class Random(Strategy):
    """The honest floor: steps shuffled. Also what a gain is measured in."""

    name, source = "random", "shuffled steps"

    def orders(self, setting: Setting) -> Orders:
        count = int(np.clip(setting.share // 4, 1, RANDOM))
        yield setting.order[np.stack([setting.rng.permutation(setting.steps) for _ in range(count)])]


def _sample_labels(setting: Setting) -> list[str]:
    names = setting.sim.description["group_names"]
    return [names[code] for code in setting.sim.window.group_codes]
