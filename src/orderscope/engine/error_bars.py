"""Error bars from residuals of left-out runs, averaged over models of what an error is in proportion to.

A model m = (usual, floor, share, wider) takes a prediction's error as normal, with a standard deviation of a scale a
times

    u_m^2 = [ (1 - share) own^2 + share push^2 ] far^2 [1 + (wider^2 - 1) new],
    own = usual (min(effect, sigma) + floor sigma) / (1 + floor),

effect the predicted change of the metric, sigma the spread of its true values, push what the left-out runs' errors of
the weights would do to the metric where the prediction ends, far the length of what the anchors do not span over its
mean on the left-out runs, new the share of batches that are regrouped. Eight residuals do not decide between the
models, so all are averaged by prior p and evidence from n residuals r, with an inverse-gamma prior of nu degrees of
freedom and mean square one on a,

    w_m  ~  p_m prod_p u_m,p^-1 * (nu + S_m)^(-(nu + n) / 2),    S_m = sum_p (r_p / u_m,p)^2,
    variance  =  sum_m w_m a_m^2 u_m^2,    a_m^2 = (nu + S_m) / (nu + n),    error = k(nu + n) * sqrt(variance).

k(n) is the larger of Student's t for an interval that holds 90 % and the factor of a tolerance interval: n residuals
determine the scale of normal ones only roughly, and were the model known, the interval would hold 80 % in 95 of 100
recordings,

    k(n) = max( t_n(0.9), z(0.8) sqrt(n / chi2_n(0.05)) ).

Source of model averaging: Hoeting et al., "Bayesian model averaging: a tutorial", 1999. Of the scale's prior: Gelman et
al., "Bayesian data analysis", 2013, chapter 3. Of tolerance intervals: Krishnamoorthy and Mathew, "Statistical
tolerance regions", 2009.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

from orderscope.engine.student_t import chi_square, two_sided
from orderscope_kernels.shapes import Float

COVERAGE = 0.9
# What intervals hold at least, and in which share of recordings.
AT_LEAST, SURE = 0.8, 0.95
# The models. On 21 recordings of windows intervals score 7 % better than with one fixed unit, on 212 tiny tasks of
# benchmarks/family.py as well as that; neither depends much on which there are, see the log.
USUAL = (0.5, 0.05)  # errors, in effects of one sigma. With 0.5 alone an exact estimator is not known for one;
# how often it is one, beforehand. Of 192 tasks 18 hold fewer than 80 % with 1, 16 with this, 16 with 0 (after a shift).
EXACT = 0.1
FLOORS = (0.1, 1.0, 10.0)
SHARES = (0.0, 0.5, 1.0)
WIDER = (1.0, 1.7)
NU = 2  # runs that the prior counts for
LEAST = 0.03  # least error, in sigma; without it a task predicted to 1 % of sigma holds 0.69
TINY = 1e-12
MODELS = np.array(list(itertools.product(USUAL, FLOORS, SHARES, WIDER)))
PRIOR = np.where(MODELS[:, 0] == min(USUAL), EXACT, 1.0)


@dataclass(frozen=True)
class Covariates:
    """What the errors of n predictions depend on.

    Args:
        effect: size of the predicted change of the metric, [n].
        far: distance of their states from the anchors' span over the runs' mean, [n].
        push: root mean square of what the left-out runs' errors of the weights do to the metric there, [n]; not a
            number where that is not known.
        regrouped: share of their steps that trained batches which were not recorded, [n].
    """

    effect: Float[np.ndarray, " n"]
    far: Float[np.ndarray, " n"]
    push: Float[np.ndarray, " n"]
    regrouped: Float[np.ndarray, " n"]

    def units(self, sigma: float) -> Float[np.ndarray, "models n"]:
        """u_m, [models, n]; away from zero, where a prediction without effect or distance has none.

        Args:
            sigma: spread of the metric's true values.
        """
        usual, floor, share, wider = MODELS.T[:, :, None]
        own = usual * (np.minimum(self.effect, sigma) + floor * sigma) / (1 + floor)
        push = np.where(np.isfinite(self.push), self.push, own)
        square = (1 - share) * own**2 + share * push**2
        unit = np.sqrt(square * (1 + (wider**2 - 1) * self.regrouped)) * self.far
        return np.hypot(unit, LEAST / 3 * sigma + TINY)


@dataclass(frozen=True)
class ErrorBars:
    """Half-widths of intervals, as a function of covariates.

    Args:
        sigma: spread of the metric's true values.
        square: w_m a_m^2, [models].
        factor: k, from a root mean square to an interval.
    """

    sigma: float
    square: Float[np.ndarray, " models"]
    factor: float

    def __call__(self, of: Covariates) -> Float[np.ndarray, " n"]:
        """Half-widths, [n].

        Args:
            of: covariates of the predictions.
        """
        error = self.factor * np.sqrt(self.square @ of.units(self.sigma) ** 2)
        return np.maximum(error, LEAST * self.sigma)


def fit_error_bars(residuals: Float[np.ndarray, " runs"], of: Covariates, sigma: float) -> ErrorBars:
    """Fit error bars to left-out runs.

    Args:
        residuals: the runs' errors, before any shift, [runs]; two or more.
        of: their covariates.
        sigma: spread of the metric's true values.
    """
    units, freedom = of.units(sigma), NU + len(residuals)
    total = NU + np.square(residuals / units).sum(1)
    if not np.isfinite(total).all():
        return ErrorBars(sigma, np.full(len(MODELS), np.inf), interval_factor(freedom))
    evidence = np.log(PRIOR) - np.log(units).sum(1) - freedom / 2 * np.log(total)
    weight = np.exp(evidence - evidence.max())
    return ErrorBars(sigma, weight / weight.sum() * total / freedom, interval_factor(freedom))


@cache
def interval_factor(count: int) -> float:
    """k(n): from the root mean square of n normal residuals to the half-width of an interval.

    Args:
        count: n.

    Example:
        >>> round(interval_factor(8), 3), round(interval_factor(24), 3)
        (2.193, 1.711)
    """
    chance = NormalDist().inv_cdf(0.5 + AT_LEAST / 2) * (count / chi_square(count, 1 - SURE)) ** 0.5
    return max(two_sided(count, COVERAGE), chance)
