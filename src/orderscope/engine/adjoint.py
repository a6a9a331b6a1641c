"""The effect of each sample or batch on the metric at each position, from one backward sweep of the replay.

The sweep linearises the replay of a base order. A gradient moves the final weights, theta_T(dg_t) = theta_T + S_t dg_t,
and the metric is L + g . d + 1/2 |A d|^2 in their displacement d. So having gradient g_u instead of g_o at t counts
l_t . (g_u - g_o) and moves the curved directions by c_t (g_u - g_o), with l_t = S_t^T g and c_t = B A S_t; B keeps the
directions in which gradients of recorded batches differ most. All are swept together, one row each.

Adam's second moment is held fixed: its derivative is 1 / v where v is next to nothing, while the true response there is
bounded, so a plain adjoint explodes (tried: useless after ten steps). Held at no less than what a typical gradient
makes of it, the sweep has the finite responses of the replay itself, with a correlation above 0.99.

Metagradients of a whole training run: Engstrom et al., "Optimizing ML training with metagradient descent", 2025.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orderscope.engine import Batches, Units, Window, units_of
from orderscope.engine.held_out import Expansion
from orderscope.engine.optimizers import Dynamics, Slice, clip, start_states, step
from orderscope.engine.replay import HOMES
from orderscope.engine.units import regrouped_gradients, some_of
from orderscope_kernels.reference import affine_weights
from orderscope_kernels.shapes import Float, Float64, Int

RANK = 12  # directions of curvature of the final loss that are followed, besides the gradient
PLACES = 8  # steps at which the adjoint is kept; between them effects are interpolated
NUDGE = 1e-3  # share of the way from start to end by which weights are moved to measure a derivative along it
CHUNK_BYTES = 1 << 28  # bytes of single samples' gradients that are converted to the longer type at once
Slope = Callable[[Tensor], tuple[float, Tensor]]


@dataclass(frozen=True)
class Passed:
    """The quantities of one step that the backward sweep needs.

    Args:
        theta: weights before it, [m].
        gradient: mean gradient before clipping, [m].
        second: Adam's second moment after it (the largest so far with amsgrad), [m], or None.
        taken: optimizer steps of each parameter before it, [n_params], or None.
        unit: index of the unit trained on.
    """

    theta: Tensor
    gradient: Tensor
    second: Tensor | None
    taken: Tensor | None
    unit: int


@dataclass(frozen=True)
class Sensitivity:
    """Derivatives of metric and curved directions with respect to the gradient at some positions.

    Args:
        value: the metric at the base.
        places: those positions, ascending.
        rows: [places, 1 + rank, m]; row 0 is of the metric, the others of the curved directions.
        states: weights there, [places, m].
    """

    value: float
    places: Int[np.ndarray, " places"]
    rows: Float[Tensor, "places rows coords"]
    states: Float[Tensor, "places coords"]


def sensitivity(
    window: Window,
    expansion: Expansion | None,
    order: Int[np.ndarray, "steps batch"],
    slope: Slope,
    *,
    rank: int = RANK,
    places: int = PLACES,
) -> Sensitivity:
    """Sweep once forward and once backward around an order.

    Args:
        window: the run, ready to be replayed.
        expansion: of the metric, for the directions it is curved in; None to follow none.
        order: the base, [steps, batch].
        slope: value and gradient of the metric at final weights; the gradient on the carried coordinates.
        rank: curved directions to follow, at most as many as the expansion has; 0 for the metric alone.
        places: at how many positions, evenly spaced, derivatives are kept.
    """
    units = units_of(window, Batches(window.order), order[None])
    passed, final = _forward(window, units)
    typical = typical_square(window)
    directions = window.final[None][:0]
    if rank and expansion is not None:
        directions = _directions(window, expansion, typical, rank)
    value, gradient = slope(final)
    rows = torch.cat([gradient[None] * window.dynamics.weight, directions])
    kept = np.unique(np.linspace(0, window.steps - 1, min(places, window.steps)).round().astype(int))
    moment = torch.zeros_like(rows)
    found: list[Tensor] = []
    states: list[Tensor] = []
    for t in range(window.steps - 1, -1, -1):
        at = passed[t]
        to_gradient = torch.zeros_like(rows)
        for part in window.dynamics.slices:
            if units.has_grad is None or bool(units.has_grad[at.unit, part.parameter]):
                _step_back(window.dynamics, part, t, at, typical, rows, moment, to_gradient)
        to_gradient = _clip_back(window.dynamics, at.gradient, to_gradient)
        if t in kept:
            found.append(to_gradient)
            states.append(at.theta)
        rows = rows + _gradient_back(window, units, at, to_gradient)
    return Sensitivity(value, kept, torch.stack(found[::-1]), torch.stack(states[::-1]))


def step_effects(window: Window, found: Sensitivity) -> Float64[np.ndarray, "steps units rows"]:
    """Effect of each recorded batch at each position, [steps, units, 1 + rank].

    Args:
        window: the run, ready to be replayed.
        found: adjoint rows at some steps, from `sensitivity`.
    """
    return _all_steps(found.places, _unit_effects(window, found).double().numpy(), window.steps)


def sample_effects(
    window: Window, found: Sensitivity, ids: Int[np.ndarray, " ids"]
) -> Float64[np.ndarray, "steps ids rows"]:
    """Effect of each of these samples in a batch at each position, [steps, ids, 1 + rank].

    As in a replay a sample counts as the recorded batch it comes from, and by what sets it apart from that batch at the
    shared anchors and in the curvature of its group.

    Args:
        window: the run, ready to be replayed.
        found: adjoint rows at some steps, from `sensitivity`.
        ids: sample ids, int64 [ids]; their own gradients were kept.
    """
    places, count, coords = found.rows.shape
    units = _unit_effects(window, found)
    home = torch.from_numpy(window.home[ids])
    effect = units[:, home]  # [places, ids, rows]
    apart = [_affine(window, theta, 0, window.sampled) for theta in found.states]
    shares, remainders = (torch.stack(parts) for parts in zip(*apart, strict=True))
    group = torch.from_numpy(window.group_codes[ids]).long()
    for code, curvature in enumerate(window.curvatures):
        beyond = (group == code).to(effect.dtype) - window.fractions[home, code].to(effect.dtype)
        bent = torch.stack(
            [curvature.products(left[None], rows)[0] for left, rows in zip(remainders, found.rows, strict=True)]
        )
        effect += beyond[:, None] * bent[:, None]
    flat = found.rows.flatten(0, 1)
    chunk = max(1, CHUNK_BYTES // (4 * coords))
    for anchor, samples in zip(window.sample_anchors, window.sample_rows, strict=True):
        share = shares[:, anchor, None, None]
        own = torch.stack([row.to(flat.dtype) @ flat.T for row in window.table[:, anchor]])
        effect -= share * own.view(-1, places, count)[home].transpose(0, 1)
        for start in range(0, len(ids), chunk):
            part = samples[torch.from_numpy(window.sample_place[ids[start : start + chunk]])].to(flat.dtype)
            products = (part @ flat.T).view(len(part), places, count)
            effect[:, start : start + chunk] += share * products.transpose(0, 1)
    return _all_steps(found.places, effect.double().numpy() / window.order.shape[1], window.steps)


def _unit_effects(window: Window, found: Sensitivity) -> Tensor:
    """Effect of each recorded batch at the places of the sweep, [places, units, 1 + rank]."""
    units = torch.arange(window.units)
    out = []
    for rows, theta in zip(found.rows, found.states, strict=True):
        weights, remainder, _ = window.anchors.weights(theta.expand(len(units), -1), units, window.known)
        products = torch.stack([window.gradients(unit) @ rows.T for unit in range(window.units)])
        effect = torch.einsum("uk,ukr->ur", weights.to(rows.dtype), products)
        for group, curvature in enumerate(window.curvatures):
            effect += window.fractions[:, group, None] * curvature.products(remainder, rows)
        out.append(effect)
    return torch.stack(out)


@dataclass(frozen=True)
class _Part:
    """A summand of a batch's gradient, share * (w(theta)^T G + C (theta - w^T T)).

    Args:
        place: the recorded unit whose anchors T serve.
        table: gradients G there, [anchors, m].
        usable: which of them weigh in, bool [anchors].
        share: what the summand counts.
        groups: share of each group in the curvature C, [groups]; in a difference it may be negative.
    """

    place: int
    table: Tensor
    usable: Tensor
    share: float
    groups: Tensor


def _parts(window: Window, units: Units, unit: int) -> list[_Part]:
    """The summands of a batch's gradient, as in `orderscope.engine.replay`.

    A recorded batch has one. A regrouped one has the recorded batches of `HOMES` of its samples, and what sets all of
    its samples apart from these: at the shared anchors, and by the curvature of their groups.
    """
    if unit < window.units:
        return [_Part(unit, window.gradients(unit), window.known[unit], 1.0, window.fractions[unit])]
    ids = units.new[unit - window.units]
    some = some_of(ids, HOMES)
    parts = [
        _Part(u, window.gradients(u), window.known[u], 1 / len(some), window.fractions[u])
        for u in window.home[some].tolist()
    ]
    apart = torch.zeros(window.anchors.count, window.coords, dtype=window.dtype)
    for anchor in window.sample_anchors:
        own = torch.stack([part.table[anchor] for part in parts]).mean(0)
        apart[anchor] = regrouped_gradients(window, ids[None], anchor)[0] - own
    bent = units.fractions[unit] - torch.stack([part.groups for part in parts]).mean(0)
    return [*parts, _Part(parts[0].place, apart, window.sampled, 1.0, bent)]


def _affine(window: Window, theta: Tensor, place: int, usable: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [anchors] and remainder [m] of one state."""
    weights, remainder, _ = window.anchors.weights(theta[None], torch.tensor([place]), usable[None])
    return weights[0].to(theta.dtype), remainder[0]


def _forward(window: Window, units: Units) -> tuple[list[Passed], Tensor]:
    """Replay one order with the whole curvature, keeping what the backward sweep needs."""
    states = start_states(window.dynamics, 1)
    passed = []
    for t in range(window.steps):
        unit = torch.from_numpy(units.index[:, t])
        gradient = predicted_gradient(window, units, int(unit), states.theta[0])[None]
        before, taken = states.theta[0].clone(), None if states.taken is None else states.taken[0].clone()
        active = None if units.has_grad is None else units.has_grad[unit]
        step(window.dynamics, states, clip(window.dynamics, gradient), t, None, active)
        second = window.dynamics.kind.second(states.moments)
        passed.append(Passed(before, gradient[0], None if second is None else second[0].clone(), taken, int(unit)))
    return passed, states.theta[0]


def predicted_gradient(
    window: Window, units: Units, unit: int, theta: Float[Tensor, " coords"]
) -> Float[Tensor, " coords"]:
    """The predicted gradient of one batch in one state, with the whole curvature, [m].

    Args:
        window: the run, ready to be replayed.
        units: of the order.
        unit: the batch's.
        theta: the state, [m].
    """
    gradient, left = torch.zeros_like(theta), theta.new_zeros(len(window.curvatures), window.coords)
    for part in _parts(window, units, unit):
        weights, remainder = _affine(window, theta, part.place, part.usable)
        gradient += part.share * (weights @ part.table)
        left += part.share * part.groups[:, None].to(left.dtype) * remainder  # C is linear: one product a group
    for rows, curvature in zip(left[:, None], window.curvatures, strict=True):
        if bool(rows.any()):
            gradient += (rows @ curvature)[0]
    return gradient


def typical_square(window: Window) -> Tensor:
    """Mean square of the recorded batches' gradients, [m]."""
    total = torch.zeros_like(window.final)
    for unit in range(window.units):
        total += window.gradients(unit)[: window.anchors.shared].pow(2).mean(0)
    return total / window.units


def _directions(window: Window, expansion: Expansion, typical: Tensor, rank: int) -> Tensor:
    """B A, [rank, m]: the metric's curved directions that the recorded batches differ in most once preconditioned."""
    shared = window.table[:, : window.anchors.shared].to(window.dtype)
    apart = (shared - shared.mean(0)).flatten(0, 1)
    if window.dynamics.kind.seconds:
        apart = apart / (typical.sqrt() + 1e-8)
    factor = expansion.curvature.factor
    left = torch.linalg.svd(factor @ apart.T, full_matrices=False)[0]
    return left[:, :rank].T @ factor


def _step_back(
    dynamics: Dynamics, part: Slice, t: int, at: Passed, typical: Tensor, rows: Tensor, moment: Tensor, out: Tensor
) -> None:
    """Adjoint of one optimizer step on a slice: `rows` and `moment` are updated, `out` gets that of the gradient."""
    h, kind, on = dynamics.options(t, part.group), dynamics.kind, part.coords
    weights, first = rows[:, on], moment[:, on]
    taken = t if at.taken is None else float(at.taken[part.parameter])
    count, fresh, scale = part.count + taken + 1, not part.present and taken == 0, None
    if kind.preconditioner is not None:
        assert at.second is not None
        scale = kind.preconditioner(h, torch.maximum(at.second[on], (1 - h["beta2"]) * typical[on]), count)
    gradient, rows[:, on], moment[:, on] = kind.back(h, weights, first, scale, count=count, first=fresh)
    out[:, on] = -gradient if h.get("maximize") else gradient


def _clip_back(dynamics: Dynamics, gradient: Tensor, rows: Tensor) -> Tensor:
    """Adjoint of clipping by the norm, at a gradient [m]."""
    if not dynamics.max_grad_norm:
        return rows
    square = float(gradient.pow(2).sum()) * dynamics.weight
    scale = dynamics.max_grad_norm / (square**0.5 + 1e-6)
    if scale >= 1:
        return rows
    return scale * (rows - (rows @ gradient)[:, None] * gradient * (dynamics.weight / square))


def _gradient_back(window: Window, units: Units, at: Passed, rows: Tensor) -> Tensor:
    """As `gradient_back`, in the state of the forward pass."""
    return gradient_back(window, units, at.unit, at.theta, rows)


def gradient_back(
    window: Window, units: Units, unit: int, theta: Float[Tensor, " coords"], rows: Float[Tensor, "rows coords"]
) -> Float[Tensor, "rows coords"]:
    """Transposed Jacobian of a unit's predicted gradient: secants along its anchors, curvature outside them.

    With anchor weights w(theta), W = dw / dtheta and anchor states T, g = G^T w + C (theta - T^T w), so that
    J^T x = C x + W^T (G x - T C x).

    Args:
        window: the run, ready to be replayed.
        units: of the order.
        unit: the batch's.
        theta: the state, [m].
        rows: x, [rows, m].
    """
    # The weights are constant at an anchor itself, so their derivative is taken at a point near it.
    near = theta + NUDGE * (window.final - window.dynamics.start.theta)
    total, parts = torch.zeros_like(rows), _parts(window, units, unit)
    used = torch.stack([part.groups for part in parts]).any(0).tolist()
    every = [rows @ c if on else torch.zeros_like(rows) for on, c in zip(used, window.curvatures, strict=True)]
    for part in parts:
        states, jacobian = _weights_back(window, near, part.place, part.usable)
        bent = sum((float(f) * x for f, x in zip(part.groups, every, strict=True) if f), torch.zeros_like(rows))
        total += part.share * (bent + jacobian(rows @ part.table.T - bent @ states.T))
    return total


def _weights_back(
    window: Window, theta: Tensor, place: int, usable: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A unit's anchors [anchors, m], and x -> x^T dw / dtheta for x [rows, anchors].

    The weights depend on d = theta - start through the inner products d . d and d_j . d alone.
    """
    anchors, unit = window.anchors, torch.tensor([place])
    d = theta - anchors.start
    spread = anchors.spread[anchors.entries(unit)[0]].to(theta.dtype)
    square, along = (d @ d).reshape(1), (spread @ d)[None]

    def weights(square: Tensor, along: Tensor) -> Tensor:
        return affine_weights(square, along, anchors.gram, unit, usable[None], anchors.ridge, anchors.scale)[0][0]

    def back(x: Tensor) -> Tensor:
        with torch.enable_grad():
            if len(x) == 1:  # one product instead of one for each anchor
                _, parts = torch.autograd.functional.vjp(weights, (square, along), x[0].double())
                by_square, by_along = (part.to(theta.dtype) for part in parts)
                return by_along @ spread + by_square[:, None] * (2 * d)
            by_square, by_along = torch.autograd.functional.jacobian(weights, (square, along))
        by_square, by_along = by_square[:, 0].to(theta.dtype), by_along[:, 0].to(theta.dtype)
        return (x @ by_along) @ spread + (x @ by_square)[:, None] * (2 * d)

    return anchors.start + spread, back


def _all_steps(places: np.ndarray, values: np.ndarray, steps: int) -> np.ndarray:
    """Linear interpolation over positions, [places, ...] -> [steps, ...]."""
    if len(places) == steps:
        return values
    at = np.arange(steps)
    low = np.clip(np.searchsorted(places, at, side="right") - 1, 0, len(places) - 2)
    share = (at - places[low]) / (places[low + 1] - places[low])
    share = share.reshape(-1, *[1] * (values.ndim - 1))
    return (1 - share) * values[low] + share * values[low + 1]
