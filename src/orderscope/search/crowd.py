"""Item response theory: the difficulty of samples, estimated from which models solve them."""

from __future__ import annotations

import numpy as np

ROUNDS = 50
PRIOR = 1.0


def rasch(solved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Abilities and difficulties of the one-parameter logistic model, P(solved) = 1 / (1 + exp(difficulty - ability)).

    Posterior mode with a standard normal prior on both, by alternating Newton steps. The prior keeps the difficulty of
    samples that every model or none solves finite.

    Args:
        solved: whether each model solves each sample, bool [crowd, samples].

    Returns:
        ability [crowd] and difficulty [samples].

    Source: Rasch, 1960; Lalor and Yu, "Dynamic data selection for curriculum learning via ability estimation", 2020,
    for models as the crowd.
    """
    ability, difficulty = np.zeros(len(solved)), np.zeros(solved.shape[1])
    for _ in range(ROUNDS):
        for axis, value, sign in ((1, ability, 1.0), (0, difficulty, -1.0)):
            chance = 1 / (1 + np.exp(difficulty[None] - ability[:, None]))
            slope = sign * (solved - chance).sum(axis) - PRIOR * value
            value += slope / ((chance * (1 - chance)).sum(axis) + PRIOR)
    return ability, difficulty
