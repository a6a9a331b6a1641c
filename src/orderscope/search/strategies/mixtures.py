"""Curricula over groups of samples: sources, domains, difficulty bins, diffusion time steps, or any other label."""

from __future__ import annotations

from itertools import permutations
from math import factorial

import numpy as np

from orderscope.orders import in_blocks
from orderscope.search.setting import Setting
from orderscope.search.strategy import Orders, Strategy

SEQUENCES = 24  # most sequences of groups
GROUPS = 6  # most groups that are tried one by one
RATIOS = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # shares of a group that are kept for the second stage
DECAYS = (0.1, 0.2, 0.3)  # shares of the batches that are moved to the end or repeated
STAGES, ROUNDS, ARMS, RATE = 4, 6, 8, 0.5  # of the bandit: parts of the run, rounds, orders in each, learning rate


class Blocks(Strategy):
    """Groups in blocks, in every sequence of the groups; in random sequences if there are more than `SEQUENCES`."""

    name, source = "blocks", "curriculum by group, all sequences up to 24"

    def orders(self, setting: Setting) -> Orders:
        names = setting.groups(self.name)
        if not names:
            return
        if factorial(min(len(names), 5)) <= SEQUENCES:
            sequences = list(permutations(names))
        else:
            sequences = [tuple(setting.rng.permutation(names)) for _ in range(SEQUENCES)]
        yield setting.order[np.stack([in_blocks(setting.labels, sequence) for sequence in sequences])]


class EasyGroupsFirst(Strategy):
    """Whole groups from easy to hard, and from hard to easy."""

    name, source = "easy groups first", "groups in blocks by mean loss; diffusion time steps, arXiv 2403.10348"

    def orders(self, setting: Setting) -> Orders:
        names = setting.groups(self.name)
        if not names:
            return
        losses, labels = setting.samples.loss()[setting.order].mean(1), np.array(setting.labels)
        ranked = sorted(names, key=lambda name: float(losses[labels == name].mean()))
        yield setting.order[np.stack([in_blocks(setting.labels, way) for way in (ranked, ranked[::-1])])]


class DualStage(Strategy):
    """One group first, except for a share that is mixed into the other groups that follow; for every group and
    share."""

    name, source = "dual stage", "special data, then general data with a share of it; arXiv 2310.05492"

    def orders(self, setting: Setting) -> Orders:
        if setting.groups(self.name):
            labels, names = np.array(setting.labels), setting.best_groups()[:GROUPS]
            yield setting.order[np.stack([two_stages(labels == name, ratio) for name in names for ratio in RATIOS])]


class DecayOnTheBest(Strategy):
    """The batches with the best influence at the end, where the learning rate decays; the others as recorded."""

    name, source = "best data last", "two-stage mid-training: decay on the best data, arXiv 2404.06395"

    def orders(self, setting: Setting) -> Orders:
        if setting.influence is not None:
            good = np.argsort(setting.influence, kind="stable")
            yield setting.order[np.stack([_at_the_end(good, share) for share in DECAYS])]


class RepeatedBest(Strategy):
    """The batches with the best influence a second time in place of the worst; only if other samples are allowed."""

    name, source = (
        "repeated best",
        "up-sampling of the best, arXiv 2406.03476; where asked for",
    )

    def orders(self, setting: Setting) -> Orders:
        if not setting.ledger.any_samples:
            setting.note(f"{self.name}: needs allow_other_samples=True, since it repeats and omits samples")
        elif setting.influence is not None:
            good = np.argsort(setting.influence, kind="stable")
            yield setting.order[np.stack([_repeated(good, share) for share in DECAYS])]


class Valley(Strategy):
    """One group's batches around the position whose recorded batches the final model has learned best; for every group.

    How well a position is learned is the decrease of its batch's loss from start to end of the recorded run, averaged
    over neighbouring positions.
    """

    name, source = "valley of the average", "good data where AdamW's average remembers best; TREC, arXiv 2509.25380"

    def orders(self, setting: Setting) -> Orders:
        learned = setting.signal("learnability", self.name)
        names = setting.best_groups()[:GROUPS]
        if learned is None or len(names) < 2:
            return
        center = valley(-learned[setting.order].mean(1))
        labels = np.array(setting.labels)
        yield setting.order[np.stack([_centered(labels == name, center) for name in names])]


class Bandit(Strategy):
    """A bandit draws the group of each step, with preferences for each quarter of the run; the reward is the predicted
    gain of the order."""

    name, source = "group bandit", "non-stationary bandit over groups; self-evolving curriculum, arXiv 2505.14970"

    def orders(self, setting: Setting) -> Orders:
        names, codes = np.unique(setting.labels, return_inverse=True)
        if not setting.groups(self.name):
            return
        stage = np.arange(setting.steps) * STAGES // setting.steps
        preference = np.zeros((STAGES, len(names)))
        for _ in range(ROUNDS):
            steps = np.stack([picked(codes, preference[stage], setting.rng) for _ in range(ARMS)])
            value = (yield setting.order[steps]).value
            if not np.isfinite(value).all() or value.std() == 0:
                return
            reward = (value.mean() - value) / value.std()
            for s in range(STAGES):
                share = np.stack([np.bincount(codes[row[stage == s]], minlength=len(names)) for row in steps])
                share = share / max(1, (stage == s).sum())
                preference[s] += RATE * reward @ (share - share.mean(0))


def two_stages(special: np.ndarray, ratio: float) -> np.ndarray:
    """Special steps first, except for a share of them that is spread evenly over the others that follow, int64 [steps].

    Args:
        special: whether a step is special, bool [steps].
        ratio: share of the special steps that is kept for the second stage.

    Example:
        >>> two_stages(np.array([False, True, False, True]), 0.5)
        array([1, 0, 3, 2])
    """
    mine, others = np.flatnonzero(special), np.flatnonzero(~special)
    kept = round(ratio * len(mine))
    first, second = mine[: len(mine) - kept], mine[len(mine) - kept :]
    at = np.concatenate([(np.arange(len(part)) + 0.5) / max(1, len(part)) for part in (others, second)])
    return np.concatenate([first, np.concatenate([others, second])[np.argsort(at, kind="stable")]])


def valley(values: np.ndarray) -> int:
    """The position where the running mean over a sixth of the positions is least.

    Args:
        values: a number for each position, [steps].
    """
    width = max(1, len(values) // 6)
    return int(np.convolve(values, np.ones(width) / width, mode="valid").argmin()) + width // 2


def picked(codes: np.ndarray, preference: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At each position the next recorded step of a group that is drawn with probability softmax(preference) among the
    groups with steps left, int64 [steps].

    Args:
        codes: group of each step, [steps].
        preference: preference for each group at each position, [steps, groups].
        rng: random numbers.
    """
    queues = [np.flatnonzero(codes == g).tolist() for g in range(preference.shape[1])]
    out = []
    for row in preference:
        open_ = np.array([len(queue) for queue in queues])
        chance = open_ * np.exp(row - row.max())
        out.append(queues[int(rng.choice(len(queues), p=chance / chance.sum()))].pop(0))
    return np.array(out)


def _at_the_end(good: np.ndarray, share: float) -> np.ndarray:
    kept = good[: max(1, round(share * len(good)))]
    return np.concatenate([np.setdiff1d(np.arange(len(good)), kept), kept[::-1]])


def _repeated(good: np.ndarray, share: float) -> np.ndarray:
    """Steps as recorded, the worst replaced by the best."""
    count, steps = max(1, round(share * len(good))), np.arange(len(good))
    steps[good[len(good) - count :]] = good[:count]
    return steps


def _centered(special: np.ndarray, center: int) -> np.ndarray:
    """Special steps in one block around a position, the others as they were."""
    mine, others = np.flatnonzero(special), np.flatnonzero(~special)
    before = int(np.clip(center - len(mine) // 2, 0, len(others)))
    return np.concatenate([others[:before], mine, others[before:]])
