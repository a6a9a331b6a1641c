"""The scaling law with learning-rate annealing: a curve fitted to one run, as a baseline for schedule what-ifs.

    L(s) = L0 + A S1(s)^-alpha - C S2(s),
    S1(s) = sum of the rates up to s,    S2(s) = sum of the momenta m_i = decay m_(i-1) + lr_(i-1) - lr_i.

Rates are taken in units of their largest, so that coefficients do not depend on it; S1 is counted from `before`, what
was trained before the window.

Source: Tissue, Wang and Wang, "Scaling law with learning rate annealing", arXiv 2408.11029.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

DECAY = 0.99  # of the momenta m_i
ALPHAS = (0.25, 0.5, 1.0)  # exponents that are tried
BEFORE = (1.0, 4.0, 16.0, 64.0)  # values of S1 at the start of the window that are tried, in steps at the largest rate
FEWEST = 8  # losses that a fit takes at least


@dataclass(frozen=True)
class AnnealingLaw:
    """The fitted curve.

    Args:
        floor, scale, alpha, annealing: L0, A, alpha and C.
        before: what S1 starts at, in steps at the largest rate.
        unit: the largest rate.
        residual: root mean square of what it leaves of the losses.
    """

    floor: float
    scale: float
    alpha: float
    annealing: float
    before: float
    unit: float
    residual: float

    def losses(self, rates: np.ndarray) -> np.ndarray:
        """L after each step under these rates, [steps]."""
        area, momentum = areas(rates / self.unit, self.before)
        return self.floor + self.scale * area**-self.alpha - self.annealing * momentum


def fit_annealing_law(losses: np.ndarray, rates: np.ndarray) -> AnnealingLaw | None:
    """Least squares with A, C >= 0, over a grid of alpha and of what was trained before.

    Args:
        losses: training loss at each step, [steps]; the loss at step s is what the rates before it led to.
        rates: [steps].

    Returns:
        None for too few steps, rates that are all zero, or losses in which neither term is seen.
    """
    losses, rates = np.asarray(losses, dtype=np.float64), np.asarray(rates, dtype=np.float64)
    unit = float(rates.max(initial=0.0))
    if len(losses) < FEWEST or unit <= 0 or not np.isfinite(losses).all():
        return None
    best: AnnealingLaw | None = None
    for alpha in ALPHAS:
        for before in BEFORE:
            area, momentum = areas(rates / unit, before)
            floor, (scale, annealing), residual = fitted(losses[1:], area[:-1] ** -alpha, -momentum[:-1])
            if best is None or residual < best.residual - 1e-12:
                best = AnnealingLaw(floor, scale, alpha, annealing, before, unit, residual)
    return best if best is not None and (best.scale or best.annealing) else None


def fitted(losses: np.ndarray, *columns: np.ndarray) -> tuple[float, list[float], float]:
    """Least squares of losses by a constant and columns with coefficients from 0.

    Args:
        losses: [n].
        columns: [n] each.

    Returns:
        the constant, the coefficients, and the root mean square of what is left.
    """
    terms = np.stack(columns, axis=1)
    centred = terms - terms.mean(0)
    found, left = nnls(centred, losses - losses.mean())
    return float(losses.mean() - terms.mean(0) @ found), found.tolist(), float(left / len(losses) ** 0.5)


def areas(rates: np.ndarray, before: float) -> tuple[np.ndarray, np.ndarray]:
    """Areas under a schedule of learning rates, S1 and S2 of the law above, after each step, [steps] each.

    Args:
        rates: learning rates, [steps].
        before: the area S1 of what was trained before the window.
    """
    momentum, m, last = np.empty(len(rates)), 0.0, rates[0]
    for i, rate in enumerate(rates):
        m = DECAY * m + (last - rate)
        momentum[i], last = m, rate
    return before + np.cumsum(rates), np.cumsum(momentum)
