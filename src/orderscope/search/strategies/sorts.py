"""Curricula that sort by a number about samples.

Each yields the recorded batches sorted by the mean of their samples. If that is better than the recorded order, and
samples may leave their batches, it also yields the sorted samples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import numpy as np

from orderscope.search import step_signals
from orderscope.search.setting import Setting
from orderscope.search.strategy import Orders, Strategy

FOLDS = (1, 2, 4)  # sweeps from small to large


class Sort(Strategy):
    """A sort by a number about samples.

    Attributes:
        signal: name of the number, a method of `Samples`.
        falling: sort from the largest to the smallest.
        both: yield the other direction as well.
    """

    signal: ClassVar[str]
    falling: ClassVar[bool] = False
    both: ClassVar[bool] = False

    def orders(self, setting: Setting) -> Orders:
        values = setting.signal(self.signal, self.name)
        if values is not None:
            ways = (self.falling, not self.falling) if self.both else (self.falling,)
            signed = {False: values, True: -values}
            yield from sorts(setting, [partial(sorted_by, values=signed[falling]) for falling in ways])


Sorted = Callable[[np.ndarray], np.ndarray]


def sorts(setting: Setting, ways: list[Sorted]) -> Orders:
    """Yield the recorded batches sorted; then, for each sort that is better than the recorded order, the samples sorted
    in the same way, if they may be regrouped.

    Args:
        setting: the setting, for the recorded order and whether samples may be regrouped.
        ways: functions that sort items [items, k].
    """
    bounds = (yield np.stack([way(setting.order) for way in ways])).bound
    recorded = setting.ledger.entry(setting.order)
    good = [way for way, bound in zip(ways, bounds, strict=True) if recorded is None or bound < recorded.bound]
    if setting.regroup and good:
        flat = setting.order.reshape(-1, 1)
        yield np.stack([way(flat).reshape(setting.order.shape) for way in good])


def sorted_by(items: np.ndarray, values: np.ndarray, *, folds: int = 1) -> np.ndarray:
    """Items sorted by the mean value of their samples, [n, k].

    Args:
        items: sample ids, [n, k]: batches, or single samples with k = 1.
        values: number of each sample id, [samples].
        folds: number of sweeps from small to large, each through every `folds`-th item.
    """
    return items[folded(np.argsort(values[items].mean(1), kind="stable"), folds)]


def folded(ranked: np.ndarray, folds: int) -> np.ndarray:
    """Every `folds`-th entry from the first on, then from the second on, and so on.

    Args:
        ranked: entries, [n].
        folds: number of sweeps.

    Example:
        >>> folded(np.arange(6), 2)
        array([0, 2, 4, 1, 3, 5])
    """
    return np.concatenate([ranked[start::folds] for start in range(folds)])


class ShortFirst(Sort):
    name, source = "short first", "length in tokens, rising; sequence-length warmup, arXiv 2108.06084"
    signal = "length"


class Compressible(Sort):
    name, source = "compression ratio", "zlib ratio, rising and falling; entropy law, arXiv 2407.06645"
    signal, both = "compression_ratio", True


class LexicalDiversity(Sort):
    name, source = "lexical diversity", "type-token ratio, rising and falling"
    signal, both = "lexical_diversity", True


class Readable(Sort):
    name, source = "readability", "automated readability index, rising and falling"
    signal, both = "readability", True


class EasyFirst(Sort):
    """A sort by loss. A sort by perplexity is the same, since it is the exponential of the loss."""

    name, source = "easy first", "loss (perplexity) on the starting weights, rising"
    signal = "loss"


class HardFirst(Sort):
    name, source = "hard first", "loss (perplexity) on the starting weights, falling"
    signal, falling = "loss", True


class WeakMinusStrong(Sort):
    name, source = "weak minus strong", "loss at the second anchor less that at the end, falling and rising"
    signal, falling, both = "weak_minus_strong", True, True


class UnsureFirst(Sort):
    name, source = "unsure first", "closeness to even odds half way through; prompt curriculum, arXiv 2510.01135"
    signal = "unsureness"


class ConcentratedFirst(Sort):
    name, source = "concentrated first", "angle concentration of hidden states, falling; GAIN-RL, arXiv 2506.02281"
    signal, falling = "concentration", True


class Learnability(Strategy):
    """A sort by the decrease of a sample's loss in training, in one sweep from little to much, in two, and in four."""

    name, source = "learnability", "loss at the start less that at the end, folded; DELT, arXiv 2506.21545"

    def orders(self, setting: Setting) -> Orders:
        values = setting.signal("learnability", self.name)
        if values is not None:
            yield from sorts(setting, [partial(sorted_by, values=values, folds=folds) for folds in FOLDS])


class SmallGradientsFirst(Strategy):
    name, source = "small gradients first", "gradient norm at the first anchor, rising"

    def orders(self, setting: Setting) -> Orders:
        yield setting.order[np.argsort(step_signals.gradient_norms(setting.sim.window), kind="stable")][None]


class LargeGradientsFirst(Strategy):
    name, source = "large gradients first", "gradient norm at the first anchor, falling"

    def orders(self, setting: Setting) -> Orders:
        yield setting.order[np.argsort(-step_signals.gradient_norms(setting.sim.window), kind="stable")][None]


class InfluenceSort(Strategy):
    """Sorts by influence: the best batches last, and first."""

    name, source = "influence sort", "alignment with the metric's gradient; TracIn, arXiv 2002.08484"

    def orders(self, setting: Setting) -> Orders:
        if setting.influence is not None:
            steps = np.argsort(-setting.influence, kind="stable")
            yield setting.order[np.stack([steps, steps[::-1]])]


class ImpulseSort(Strategy):
    """The best order to first order in the learning rate, without curvature."""

    name, source = "impulse sort", "influence against the optimizer's impulse weight of each position"

    def orders(self, setting: Setting) -> Orders:
        if setting.expansion is not None:
            steps = step_signals.impulse_order(setting.sim.window, setting.expansion)
            yield setting.order[steps if setting.sign > 0 else steps[::-1]][None]


class BracketBorda(Strategy):
    """Steps, and groups in blocks, sorted by pairwise comparison: the Lie bracket of two gradients gives which of two
    steps should come first."""

    name, source = "bracket tournament", "Borda count of Lie brackets, arXiv 2606.24993"

    def orders(self, setting: Setting) -> Orders:
        if setting.expansion is None:
            return
        duels = setting.sign * step_signals.brackets(setting.sim.window, setting.expansion)
        orders = [np.argsort(-step_signals.borda(duels), kind="stable")]
        names, codes = np.unique(setting.labels, return_inverse=True)
        if len(names) > 1:
            member = codes[None] == np.arange(len(names))[:, None]
            share = member / member.sum(1, keepdims=True)
            orders.append(np.argsort(-step_signals.borda(share @ duels @ share.T)[codes], kind="stable"))
        yield setting.order[np.stack(orders)]
