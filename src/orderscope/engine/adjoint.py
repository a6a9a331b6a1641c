"""What each sample or batch does to the metric at each position: one backward sweep of the replay.

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
from orderscope.engine.units import regrouped_gradients
from orderscope_kernels.shapes import Float, Float64, Int

RANK = 12
PLACES = 8
NUDGE = 1e-3
CHUNK_BYTES = 1 << 28
Slope = Callable[[Tensor], tuple[float, Tensor]]


@dataclass(frozen=True)
class Passed:
    """What the forward pass leaves behind of one step.

    Args:
        theta: weights before it, [m].
        gradient: mean gradient before clipping, [m].
        second: Adam's second moment after it (the largest so far with amsgrad), [m], or None.
        taken: optimizer steps of each parameter before it, [n_params], or None.
        unit: index of its unit.
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
    expansion: Expansion,
    order: Int[np.ndarray, "steps batch"],
    slope: Slope,
    *,
    rank: int = RANK,
    places: int = PLACES,
) -> Sensitivity:
    """Sweep once forward and once backward around an order.

    Args:
        window: the run, ready to be replayed.
        expansion: of the metric, for the directions it is curved in.
        order: the base, [steps, batch].
        slope: value and gradient of the metric at final weights; the gradient on the carried coordinates.
        rank: curved directions to follow, at most as many as the expansion has.
        places: at how many positions, evenly spaced, derivatives are kept.
    """
    units = units_of(window, Batches(window.order), order[None])
    passed, final = _forward(window, units)
    typical = _typical_square(window)
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
    """Effect of each recorded batch at each position, [steps, units, 1 + rank]."""
    units = torch.arange(window.units)
    out = []
    for rows, theta in zip(found.rows, found.states, strict=True):
        weights, remainder, _ = window.anchors.weights(theta.expand(len(units), -1), units, window.known)
        products = torch.stack([window.gradients(unit) @ rows.T for unit in range(window.units)])
        effect = torch.einsum("uk,ukr->ur", weights.to(rows.dtype), products)
        for group, curvature in enumerate(window.curvatures):
            effect += window.fractions[:, group, None] * curvature.products(remainder, rows)
        out.append(effect.double().numpy())
    return _all_steps(found.places, np.stack(out), window.steps)


def sample_effects(
    window: Window, found: Sensitivity, ids: Int[np.ndarray, " ids"]
) -> Float64[np.ndarray, "steps ids rows"]:
    """Effect of each of these samples in a batch at each position, [steps, ids, 1 + rank]."""
    places, count, coords = found.rows.shape
    allowed = window.sampled[None]
    group = torch.from_numpy(window.group_codes[ids])
    shares, bent = [], found.rows.new_empty(places, len(window.curvatures), count)
    for p, (rows, theta) in enumerate(zip(found.rows, found.states, strict=True)):
        weights, remainder, _ = window.anchors.weights(theta[None], torch.zeros(1, dtype=torch.int64), allowed)
        shares.append(weights[0].to(rows.dtype))
        for g, curvature in enumerate(window.curvatures):
            bent[p, g] = curvature.products(remainder, rows)[0]
    share = torch.stack(shares)  # [places, anchors]
    flat = found.rows.flatten(0, 1)
    effect = bent[:, group]  # [places, ids, rows]
    chunk = max(1, CHUNK_BYTES // (4 * coords))
    for anchor, samples in zip(window.sample_anchors, window.sample_rows, strict=True):
        for start in range(0, len(ids), chunk):
            part = samples[torch.from_numpy(window.sample_place[ids[start : start + chunk]])].to(flat.dtype)
            products = (part @ flat.T).view(len(part), places, count)
            effect[:, start : start + chunk] += share[:, anchor, None, None] * products.transpose(0, 1)
    return _all_steps(found.places, effect.double().numpy() / window.order.shape[1], window.steps)


def _forward(window: Window, units: Units) -> tuple[list[Passed], Tensor]:
    """Replay one order with the whole curvature, keeping what the way back needs."""
    states = start_states(window.dynamics, 1)
    passed = []
    for t in range(window.steps):
        unit = torch.from_numpy(units.index[:, t])
        place, rows = _table(window, units, int(unit))
        usable = _usable(window, unit)
        weights, remainder, _ = window.anchors.weights(states.theta, torch.tensor([place]), usable)
        gradient = weights.to(rows.dtype) @ rows + remainder @ window.curvature(units.fractions[int(unit)])
        before, taken = states.theta[0].clone(), None if states.taken is None else states.taken[0].clone()
        active = None if units.has_grad is None else units.has_grad[unit]
        step(window.dynamics, states, clip(window.dynamics, gradient), t, None, active)
        second = window.dynamics.kind.second(states.moments)
        passed.append(Passed(before, gradient[0], None if second is None else second[0].clone(), taken, int(unit)))
    return passed, states.theta[0]


def _table(window: Window, units: Units, unit: int) -> tuple[int, Tensor]:
    """The recorded unit whose anchors serve for a unit, and the unit's gradients there, [anchors, m]."""
    recorded = window.units
    if unit < recorded:
        return unit, window.gradients(unit)
    rows = torch.zeros(window.anchors.count, window.coords, dtype=window.dtype)
    for anchor in window.sample_anchors:
        rows[anchor] = regrouped_gradients(window, units.new[unit - recorded : unit - recorded + 1], anchor)[0]
    return 0, rows


def _typical_square(window: Window) -> Tensor:
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
    """Transposed Jacobian of a unit's predicted gradient: secants along its anchors, curvature outside them.

    With anchor weights w(theta), W = dw / dtheta and anchor states T, g = G^T w + C (theta - T^T w), so that
    J^T x = C x + W^T (G x - T C x).
    """
    place, table = _table(window, units, at.unit)
    states = window.anchors.states(place)
    usable = _usable(window, torch.tensor([at.unit]))
    count = len(states)
    # On an anchor the weights do not move at all; what is wanted is how they move around it.
    near = at.theta + NUDGE * (window.final - window.dynamics.start.theta)
    theta = near.expand(count, -1).clone().requires_grad_()
    with torch.enable_grad():
        weights = window.anchors.weights(theta, torch.full((count,), place), usable.expand(count, -1))[0]
        (along,) = torch.autograd.grad(weights.diagonal().sum(), theta)
    bent = rows @ window.curvature(units.fractions[at.unit])
    return bent + (rows @ table.T - bent @ states.T) @ along.to(rows.dtype)


def _all_steps(places: np.ndarray, values: np.ndarray, steps: int) -> np.ndarray:
    """Linear interpolation over positions, [places, ...] -> [steps, ...]."""
    if len(places) == steps:
        return values
    at = np.arange(steps)
    low = np.clip(np.searchsorted(places, at, side="right") - 1, 0, len(places) - 2)
    share = (at - places[low]) / (places[low + 1] - places[low])
    share = share.reshape(-1, *[1] * (values.ndim - 1))
    return (1 - share) * values[low] + share * values[low + 1]


def _usable(window: Window, unit: Tensor) -> Tensor:
    """Which anchors each row may use, bool [rows, anchors]: those its unit has, or, of a regrouped batch, those with
    samples."""
    new = unit >= window.units
    return torch.where(new[:, None], window.sampled, window.known[unit.masked_fill(new, 0)])
