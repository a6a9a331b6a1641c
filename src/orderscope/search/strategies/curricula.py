"""Curricula that depend on what the model has learned at each position."""

from __future__ import annotations

import numpy as np

from orderscope.search.setting import Setting
from orderscope.search.strategy import Orders, Strategy

SHARPNESS = (2.0, 8.0, 32.0)  # initial preferences for easy batches of the annealed weights


class AbilityGate(Strategy):
    """Batches in their recorded sequence, each as soon as the model's ability reaches its difficulty."""

    name, source = "ability gate", "IRT difficulty against the anchors' ability; PUDF, arXiv 2408.05326"

    def orders(self, setting: Setting) -> Orders:
        difficulty = setting.signal("difficulty", self.name)
        ability = setting.samples.abilities()
        if difficulty is not None and ability is not None:
            along = np.interp(np.arange(setting.steps), setting.samples.anchors, ability)
            yield setting.order[gated(difficulty[setting.order].mean(1), along)][None]


class ReRanked(Strategy):
    """Block after block the easiest of the remaining batches, by their losses at the anchor where the block starts."""

    name, source = "re-ranked difficulty", "loss at the anchor each block starts from, rising; ADCL, arXiv 2505.08364"

    def orders(self, setting: Setting) -> Orders:
        rows = [setting.samples.losses(k) for k in range(len(setting.samples.anchors))]
        losses = [row[setting.order].mean(1) for row in rows if row is not None]
        if not losses:
            setting.note(f"{self.name}: losses at the anchors need the task")
            return
        yield setting.order[re_ranked(np.stack(losses), setting.samples.anchors)][None]


class AnnealedWeights(Strategy):
    """Batches drawn at random with a preference for easy ones that decreases to zero over the run."""

    name, source = "annealed weights", "draws by exp(-sharpness * rank), the sharpness falling to 0; answer re-ranking"

    def orders(self, setting: Setting) -> Orders:
        losses = setting.samples.loss()[setting.order].mean(1)
        rank = np.argsort(np.argsort(losses, kind="stable")) / max(1, setting.steps - 1)
        yield setting.order[np.stack([drawn(rank, sharpness, setting.rng) for sharpness in SHARPNESS])]


def gated(difficulty: np.ndarray, ability: np.ndarray) -> np.ndarray:
    """At each position the first remaining step whose difficulty is at most the ability there; the easiest if none is.

    Args:
        difficulty: difficulty of each step, [steps].
        ability: ability of the model at each position, [steps].

    Example:
        >>> gated(np.array([3, 1, 0]), np.array([1, 1, 9]))
        array([1, 2, 0])
    """
    left, out = list(range(len(difficulty))), []
    for able in ability:
        step = next((s for s in left if difficulty[s] <= able), None)
        out.append(min(left, key=lambda s: difficulty[s]) if step is None else step)
        left.remove(out[-1])
    return np.array(out)


def re_ranked(losses: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Between two anchors the easiest remaining steps, by the losses at the first of the two, int64 [steps].

    Args:
        losses: loss of each step at each anchor, [K, steps].
        at: number of steps trained at each anchor, ascending, [K].
    """
    left, out = np.arange(losses.shape[1]), []
    ends = [*at[1:].tolist(), losses.shape[1]]
    for row, start, end in zip(losses, at.tolist(), ends, strict=True):
        ranked = left[np.argsort(row[left], kind="stable")]
        out.append(ranked[: max(0, end - start)])
        left = np.sort(ranked[max(0, end - start) :])
    return np.concatenate([*out, left])


def drawn(rank: np.ndarray, sharpness: float, rng: np.random.Generator) -> np.ndarray:
    """Steps drawn one after the other without replacement, at position t of T with weights
    exp(-sharpness (1 - t / T) rank), int64 [steps].

    Args:
        rank: rank of each step, from 0 to 1, [steps].
        sharpness: strength of the preference for low ranks; 0 draws uniformly.
        rng: random numbers.
    """
    steps, left, out = len(rank), np.arange(len(rank)), []
    for t in range(steps):
        weight = np.exp(-sharpness * (1 - t / steps) * rank[left])
        k = int(rng.choice(len(left), p=weight / weight.sum()))
        out.append(left[k])
        left = np.delete(left, k)
    return np.array(out)
