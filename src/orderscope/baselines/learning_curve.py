"""A learning curve with an asymptote, fitted to one run: what a longer run would reach, whatever its order or rates.

    L(s) = L_inf + A (s0 + s)^-alpha

with s the steps taken in the window and s0 what was trained before. It is the annealing law without annealing, and the
baseline for carrying anything over to a longer run.

Source: Hestness et al., "Deep learning scaling is predictable, empirically", arXiv 1712.00409.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orderscope.baselines.annealing import ALPHAS, BEFORE, FEWEST, fitted


@dataclass(frozen=True)
class PowerLaw:
    """The fitted curve.

    Args:
        floor, scale, alpha: L_inf, A and alpha.
        before: s0, steps.
        residual: root mean square of what it leaves of the losses.
    """

    floor: float
    scale: float
    alpha: float
    before: float
    residual: float

    def losses(self, steps: np.ndarray) -> np.ndarray:
        """L after these numbers of steps, [n] -> [n]."""
        return self.floor + self.scale * (self.before + np.asarray(steps, dtype=np.float64)) ** -self.alpha


def fit_power_law(losses: np.ndarray) -> PowerLaw | None:
    """Least squares with A >= 0, over a grid of alpha and of s0.

    Args:
        losses: training loss at each step, [steps]; the loss at step s is what the s steps before it led to.

    Returns:
        None for fewer than 8 steps, losses that are not finite, or losses that do not fall.
    """
    losses = np.asarray(losses, dtype=np.float64)
    if len(losses) < FEWEST or not np.isfinite(losses).all():
        return None
    steps = np.arange(len(losses))
    best: PowerLaw | None = None
    for alpha in ALPHAS:
        for before in BEFORE:
            floor, (scale,), residual = fitted(losses, (before + steps) ** -alpha)
            if best is None or residual < best.residual - 1e-12:
                best = PowerLaw(floor, scale, alpha, before, residual)
    return best if best is not None and best.scale else None
