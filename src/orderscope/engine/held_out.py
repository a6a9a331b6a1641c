"""Held-out losses at estimated weights from losses and gradients at the ends of the recorded runs, without the model.

At the last state theta_k of every recorded run the loss L_k and its gradient g_k are known. For other weights theta,
with affine weights w between the known states and remainder r = theta - sum_k w_k theta_k,

    g(theta)  =  sum_k w_k g_k + C r,
    L(theta)  ~  sum_k v_k [ L_k + 1/2 (g_k + g(theta)) . (theta - theta_k) ],

the trapezoidal rule along the line from each known state: exact for quadratics, of third order otherwise. w is found
as between anchors (`orderscope_kernels.reference.affine_weights`); v is w but for a share `NEAREST` that goes to the
nearest state, where the rule is most exact. C is the Gauss-Newton matrix of the held-out rows at the end of the
reference run, sampled by pseudo-gradients.

Products among known states are exact, of all weights, and computed once. Where some coordinates are carried, only what
the known states leave of theta is estimated from those, times P / m.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.anchors import RIDGE
from orderscope.engine.curvature import Curvature
from orderscope_kernels.reference import affine_weights
from orderscope_kernels.shapes import Bool, Float, Float64

NEAREST = 0.5
Without = str | None | Collection[str]
PRIOR = 0.3  # weight of a factor of one beside what the known states say of the curvature's


@dataclass(frozen=True)
class Expansion:
    """Second-order expansion of a held-out loss around the end of the reference run,

        L(theta) ~ L + g . d + 1/2 |A d|^2,    d = theta - theta_ref.

    Args:
        center: theta_ref, [m].
        value: L.
        gradient: g times P / m, [m].
        curvature: A^T A, with A times P / m: the products A d are sums over coordinates too.
    """

    center: Float[Tensor, " coords"]
    value: float
    gradient: Float[Tensor, " coords"]
    curvature: Curvature

    def __call__(self, theta: Float[Tensor, "*rows coords"]) -> Float64[Tensor, "*rows"]:
        """[..., m] -> [...] float64."""
        d = theta - self.center
        return self.value + (d @ self.gradient).double() + 0.5 * self.curvature.square(d)


@dataclass(frozen=True)
class Missed:
    """Errors of the weights of left-out runs, projected on what a loss depends on.

    Args:
        along: inner products of gradients at the known states and the errors, float64 [names, K, runs].
        bent: products of the pseudo-gradients and the errors, float64 [n, runs].
    """

    along: Float64[Tensor, "names known runs"]
    bent: Float64[Tensor, "n runs"]


@dataclass(frozen=True)
class HeldOut:
    """The model of the held-out losses, from K known states and n pseudo-gradients.

    Args:
        names: of the losses.
        runs: name of the run that ends in each known state, the reference first.
        center: the first state, [m].
        spread: displacements of the states from it, [K, m].
        weight: P / m.
        gram: inner products of the displacements, float64 [K, K].
        values: losses at the states, float64 [names, K].
        slopes: their gradients there, [names, K, m].
        along: inner products of gradients and displacements, float64 [names, K, K].
        factor: pseudo-gradients of the distinct held-out rows, [n, m].
        shares: what each counts in the curvature of each loss, [names, n].
        crossed: products of the factor and the displacements, float64 [n, K].
    """

    names: tuple[str, ...]
    runs: tuple[str, ...]
    center: Float[Tensor, " coords"]
    spread: Float[Tensor, "known coords"]
    weight: float
    gram: Float64[Tensor, "known known"]
    values: Float64[Tensor, "names known"]
    slopes: Float[Tensor, "names known coords"]
    along: Float64[Tensor, "names known known"]
    factor: Float[Tensor, "n coords"]
    shares: Float[Tensor, "names n"]
    crossed: Float64[Tensor, "n known"]

    @cached_property
    def _factor(self) -> Tensor:
        """In the states' type."""
        return self.factor.to(self.center.dtype)

    def __call__(
        self, theta: Float[Tensor, "rows coords"], names: Sequence[str], without: Sequence[Without] | None = None
    ) -> dict[str, Float64[np.ndarray, " rows"]]:
        """Losses at weights.

        Args:
            theta: [rows, m].
            names: which.
            without: for each row a run whose last state is not to be used, or several.

        Returns:
            name -> float64 [rows].
        """
        place = self._placed(theta, without)
        return {name: place.value(self.names.index(name)).numpy() for name in names}

    def drawn(
        self, theta: Float[Tensor, "rows coords"], kept: float, without: Sequence[Without] | None = None
    ) -> Float[Tensor, "rows coords"]:
        """Weights drawn towards what the known states span, sum_k w_k theta_k + kept * r; known states as they are.

        Args:
            theta: weights on the carried coordinates, [rows, m].
            kept: share of the remainder that is kept.
            without: for each row a run whose last state is not to be used, or several.
        """
        if kept == 1:
            return theta
        weights, distance = self._weighed(theta, without)
        found = torch.lerp(self.center + weights.to(theta.dtype) @ self.spread, theta, kept)
        return torch.where(self._alike(theta, distance)[:, None], theta, found)

    def is_known(self, theta: Float[Tensor, "rows coords"]) -> Bool[Tensor, " rows"]:
        """Whether weights are one of the known states, up to rounding, bool [rows].

        Args:
            theta: weights on the carried coordinates, [rows, m].
        """
        return self._alike(theta, self._weighed(theta, None)[1])

    def _alike(
        self, theta: Float[Tensor, "rows coords"], distance: Float64[Tensor, "rows known"]
    ) -> Bool[Tensor, " rows"]:
        nearest = self.spread[distance.argmin(1)]
        rounding = 8 * torch.finfo(theta.dtype).eps * (self.center.abs() + nearest.abs())
        return ((theta - self.center - nearest).abs() <= rounding).all(1)

    def slope(self, theta: Float[Tensor, " coords"], name: str) -> tuple[float, Float[Tensor, " coords"]]:
        """A loss and its gradient on the carried coordinates, [m].

        Args:
            theta: weights, [m].
            name: of the loss.
        """
        place, i = self._placed(theta[None], None), self.names.index(name)
        curved = (place.bent * self.shares[i]) @ self._factor.double()
        gradient = place.weights[0] @ self.slopes[i].double() + curved[0]  # P / m is in `bent` already
        return float(place.value(i)[0]), gradient.to(theta.dtype)

    def known_rows(self, runs: Sequence[str]) -> list[int]:
        """Which of these runs end in a known state: their places in the sequence."""
        return [row for row, run in enumerate(runs) if run in self.runs]

    def ends(self, runs: Sequence[str]) -> Float[Tensor, "runs coords"]:
        """The known states that runs end in, [runs, m].

        Args:
            runs: their names, each of `self.runs`.
        """
        return self.center + self.spread[[self.runs.index(run) for run in runs]]

    def missed(self, runs: Sequence[str], theta: Float[Tensor, "runs coords"]) -> Missed:
        """Errors of the weights predicted for left-out runs, as the losses see them.

        Args:
            runs: names of the runs.
            theta: weights predicted for them without their own states, [runs, m].
        """
        away, rows = torch.full_like(theta, torch.nan), self.known_rows(runs)
        away[rows] = theta[rows] - self.ends([runs[row] for row in rows])
        along = torch.stack([slopes @ away.T for slopes in self.slopes]).double() * self.weight
        return Missed(along, (self._factor @ away.T).double() * self.weight)

    def pushed(
        self,
        theta: Float[Tensor, "rows coords"],
        name: str,
        missed: Missed,
        without: Sequence[Without] | None = None,
    ) -> Float64[np.ndarray, "rows runs"]:
        """The first-order change of a loss at other weights [rows, m] by the errors of left-out runs' weights,
        float64 [rows, runs]; not a number for a run whose last state is not known.

        Args:
            theta: weights on the carried coordinates, [n, m].
            name: of the loss.
            missed: the errors, as a loss sees them.
            without: for each row a run whose states are not to be used, or several.
        """
        place, i = self._placed(theta, without), self.names.index(name)
        return (place.weights @ missed.along[i] + (place.bent * self.shares[i]) @ missed.bent).numpy()

    def expansion(self, name: str) -> Expansion:
        """The second-order expansion of a loss around the end of the reference run."""
        i = self.names.index(name)
        used = self.shares[i] > 0
        return Expansion(
            center=self.center,
            value=float(self.values[i, 0]),
            gradient=self.slopes[i, 0] * self.weight,
            curvature=Curvature.of(self._factor[used] * (self.weight * self.shares[i][used].sqrt()[:, None])),
        )

    def _weighed(self, theta: Tensor, without: Sequence[Without] | None) -> tuple[Tensor, Tensor]:
        """Affine weights among the states, and squared distances from them, float64 [rows, K] each."""
        d, count = theta - self.center, len(self.runs)
        allowed = torch.ones(len(theta), count, dtype=torch.bool)
        for row, runs in enumerate(without or ()):
            left = {runs} if isinstance(runs, str) or runs is None else runs
            allowed[row] = torch.tensor([name not in left for name in self.runs])
        square, along = (d * d).sum(1).double() * self.weight, (d @ self.spread.T).double() * self.weight
        scale = float(self.gram.diagonal().sum()) / max(1, count - 1) or float(square.mean()) or 1.0
        unit = torch.zeros(len(theta), dtype=torch.int64)
        weights, distance, _ = affine_weights(square, along, self.gram[None], unit, allowed, RIDGE, scale)
        return weights, distance

    def _placed(self, theta: Tensor, without: Sequence[Without] | None) -> _Placed:
        weights, distance = self._weighed(theta, without)
        rest = theta - self.center - weights.to(theta.dtype) @ self.spread
        bent = (rest @ self._factor.T).double() * self.weight
        return _Placed(self, weights, distance, rest, bent)


def scaled_as_known(known: HeldOut, apart: Sequence[str] = ()) -> HeldOut:
    """The model with the curvature of each loss multiplied by the factor that predicts the known states best, each from
    the others, by ridge regression towards one: the sampled matrix is too large or too small along all remainders
    alike, by chance and because it stands for the Hessian.

    Args:
        known: the model.
        apart: runs that are not asked. One that ends ten times as far away as the others would decide alone.
    """
    asked = [k for k, run in enumerate(known.runs) if k and run not in apart]
    if len(asked) < 3:
        return known
    states, runs = known.center + known.spread[asked], tuple(known.runs[k] for k in asked)
    flat = replace(known, shares=torch.zeros_like(known.shares))
    bent, plain = (each(states, known.names, runs) for each in (known, flat))
    factors = []
    for i, name in enumerate(known.names):
        gain, missing = bent[name] - plain[name], known.values[i, asked].numpy() - plain[name]
        square = float(gain @ gain)
        factors.append((float(gain @ missing) / square + PRIOR) / (1 + PRIOR) if square > 0 else 1.0)
    shares = known.shares * torch.tensor(factors, dtype=known.shares.dtype).clamp_min(0)[:, None]
    return replace(known, shares=shares)


@dataclass(frozen=True)
class _Placed:
    """The position of some weights relative to the known states.

    Args:
        weights: affine weights, float64 [rows, K].
        distance: squared distances from the states, infinite where not allowed, [rows, K].
        rest: what the states leave, [rows, m].
        bent: products of the factor with that, [rows, n].
    """

    known: HeldOut
    weights: Tensor
    distance: Tensor
    rest: Tensor
    bent: Tensor

    def value(self, i: int) -> Tensor:
        """The i-th loss, float64 [rows]."""
        known, w = self.known, self.weights
        slopes = (
            w @ known.along[i].T + (self.rest @ known.slopes[i].T).double() * known.weight
        )  # g_k . (theta - theta_0)
        from_each = slopes - known.along[i].diagonal()
        between = (w * slopes).sum(1, keepdim=True) - w @ known.along[i]  # sum_j w_j g_j . (theta - theta_k)
        shares, curved = known.shares[i].double(), w @ known.crossed.T + self.bent
        bent = ((self.bent * curved) @ shares)[:, None] - (
            self.bent * shares
        ) @ known.crossed  # C r . (theta - theta_k)
        each = known.values[i] + 0.5 * (from_each + between + bent)
        nearest = torch.zeros_like(w)
        nearest[torch.arange(len(w)), self.distance.argmin(1)] = 1
        return (torch.lerp(w, nearest, NEAREST) * each.masked_fill(self.distance.isinf(), 0)).sum(1)
