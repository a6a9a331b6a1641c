"""The effect of errors of predicted gradients on the final metric, from a sweep between a replay and the true run.

Where the truth is known, a replay need not be linearised around itself. Between two trajectories every map has a
secant, whose product with the difference of its arguments is the difference of its values to the last digit:

    1/d' - 1/d = s (v' - v),    s = -1 / (c (a + a') d d'),    a = sqrt(v / c), d = a + eps, c = 1 - beta2^n,
    m'/d' - m/d = (m' - m) (1/d + 1/d') / 2  +  (1/d' - 1/d) (m + m') / 2,
    g'^2 - g^2 = (g' - g) (g' + g).

Swept backwards they tell how much each gradient's error counts, exactly where predicted gradients are affine in the
weights; where they are not, their Jacobian at the middle of the two states has an error of third order. So Adam's
second moment moves here, which `orderscope.engine.adjoint` has to hold fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.adjoint import Slope, gradient_back, predicted_gradient, typical_square
from orderscope.engine.batches import Batches
from orderscope.engine.optimizers import Dynamics, Slice, clip, start_states, step
from orderscope.engine.units import Units, units_of
from orderscope.engine.window import Window
from orderscope_kernels.shapes import Float, Int

# Least root of a second moment, in units of what a typical gradient leaves there. Coordinates with next to no gradient
# take steps as large as others do, and the sweep divides by their roots at every step: without a floor it explodes. On
# the tutorial's recording, norm over left-out runs of what effects do not explain of the errors of two losses, over
# those errors' norm: 0.20 and 0.62 with 0.5, 0.14 and 0.11 with 0.1, 0.06 and 0.11 with 0.01, 0.02 and 0.05 with 0.001;
# 0.73 and 1.28 by the sweep around the replay alone.
FLOOR = 0.01
KINDS = ("SGD", "Adam", "AdamW")  # optimizers whose secants these are


@dataclass(frozen=True)
class Between:
    """The quantities of one step of the two trajectories that the backward sweep needs.

    Args:
        middle: mean of the weights before it, [m].
        raw: sum of the gradients before clipping, [m].
        used: sum of what the moments take up: clipped, with coupled weight decay, turned where it is maximized, [m].
        norms: of the gradients before clipping, as clipping sees them.
        first: mean of the first moments after it, [m]; of Adam, else None.
        second: the second moments after it that divide, (2, m); of Adam, else None.
        fresh: share in which these are this step's, not the largest before, [m]; None without amsgrad.
        taken: steps of each parameter before it, [n_params], or None.
        unit: index of its unit.
    """

    middle: Tensor
    raw: Tensor
    used: Tensor
    norms: tuple[float, float]
    first: Tensor | None
    second: Tensor | None
    fresh: Tensor | None
    taken: Tensor | None
    unit: int


def secant_sweep(
    window: Window, order: Int[np.ndarray, "steps batch"], gradients: Float[Tensor, "steps coords"], slope: Slope
) -> Float[Tensor, "steps coords"]:
    """Weights of the errors of the predicted gradients at each step, [steps, m]: their products with the errors add up
    to the error of the metric.

    Args:
        window: what the replay knows, without what the run left behind.
        order: the run's, of recorded batches, int64 [steps, batch].
        gradients: the run's true ones, before clipping, [steps, m].
        slope: value and gradient of the metric at the replay's final weights; the gradient is the mean of those of
            both ends.
    """
    dynamics, units = window.dynamics, units_of(window, Batches(window.order), order[None])
    passed, final = _forward(window, units, gradients)
    typical = typical_square(window)
    rows = (slope(final)[1] * dynamics.weight)[None]
    first, second, largest = torch.zeros_like(rows), torch.zeros_like(rows), torch.zeros_like(rows)
    found = torch.empty(window.steps, window.coords, dtype=window.dtype)
    for t in range(window.steps - 1, -1, -1):
        at = passed[t]
        to_gradient = torch.zeros_like(rows)
        for part in dynamics.slices:
            if units.has_grad is None or bool(units.has_grad[at.unit, part.parameter]):
                _step_back(dynamics, part, t, at, typical, rows, first, second, largest, to_gradient)
        to_gradient = _clip_back(dynamics, at, to_gradient)
        found[t] = to_gradient[0]
        rows = rows + gradient_back(window, units, at.unit, at.middle, to_gradient)
    return found


def _forward(window: Window, units: Units, gradients: Tensor) -> tuple[list[Between], Tensor]:
    """The replay and the run side by side, row 0 and row 1."""
    dynamics = window.dynamics
    states = start_states(dynamics, 2)
    passed = []
    for t in range(window.steps):
        unit = int(units.index[0, t])
        both = torch.stack([predicted_gradient(window, units, unit, states.theta[0]), gradients[t]])
        before, moments = states.theta.clone(), {key: x.clone() for key, x in states.moments.items()}
        taken = None if states.taken is None else states.taken[0].clone()
        clipped = clip(dynamics, both)
        active = None if units.has_grad is None else units.has_grad[torch.tensor([unit, unit])]
        step(dynamics, states, clipped, t, None, active)
        passed.append(
            Between(
                middle=before.mean(0),
                raw=both.sum(0),
                used=_used(dynamics, t, clipped, before).sum(0),
                norms=tuple((both.double().norm(dim=1) * dynamics.weight**0.5).tolist()),
                **_adams(states.moments, moments),
                taken=taken,
                unit=unit,
            )
        )
    return passed, states.theta[0]


def _used(dynamics: Dynamics, t: int, clipped: Tensor, theta: Tensor) -> Tensor:
    used = clipped.clone()
    for part in dynamics.slices:
        h, on = dynamics.options(t, part.group), part.coords
        if h.get("maximize"):
            used[:, on] = -used[:, on]
        if not h.get("decoupled"):
            used[:, on] += h["weight_decay"] * theta[:, on]
    return used


def _adams(after: dict[str, Tensor], before: dict[str, Tensor]) -> dict[str, Tensor | None]:
    if "exp_avg" not in after:
        return {"first": None, "second": None, "fresh": None}
    largest = after.get("max_exp_avg_sq")
    fresh = None if largest is None else (after["exp_avg_sq"] > before["max_exp_avg_sq"]).to(largest.dtype).mean(0)
    return {
        "first": after["exp_avg"].mean(0),
        "second": (after["exp_avg_sq"] if largest is None else largest).clone(),
        "fresh": fresh,
    }


def _step_back(
    dynamics: Dynamics, part: Slice, t: int, at: Between, typical: Tensor,
    rows: Tensor, first: Tensor, second: Tensor, largest: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """Adjoint of the secants of one optimizer step on a slice: `rows` and those of the moments are updated, `out` gets
    that of the gradient."""
    h, on = dynamics.options(t, part.group), part.coords
    weights = rows[:, on]
    taken = t if at.taken is None else float(at.taken[part.parameter])
    if not dynamics.kind.seconds:
        gradient, rows[:, on], first[:, on] = dynamics.kind.back(
            h, weights, first[:, on], None, count=part.count + taken + 1, first=not part.present and taken == 0
        )
    else:
        assert at.first is not None
        assert at.second is not None
        count = part.count + taken + 1
        roots = (at.second[:, on] / (1 - h["beta2"] ** count)).sqrt()
        roots = torch.maximum(roots, FLOOR * (typical[on] * (1 - h["beta2"]) / (1 - h["beta2"] ** count)).sqrt())
        inverse = 1 / (roots + h["eps"])
        secant = -inverse.prod(0) / ((1 - h["beta2"] ** count) * roots.sum(0))
        secant = torch.where(roots.sum(0) > 0, secant, 0.0)
        moved = -h["lr"] / (1 - h["beta1"] ** count) * weights
        moment = first[:, on] + moved * inverse.mean(0)
        divided = moved * at.first[on] * secant
        if at.fresh is None:
            square = second[:, on] + divided
        else:
            divided = divided + largest[:, on]
            square = second[:, on] + at.fresh[on] * divided
            largest[:, on] = (1 - at.fresh[on]) * divided
        gradient = (1 - h["beta1"]) * moment + (1 - h["beta2"]) * at.used[on] * square
        first[:, on], second[:, on] = h["beta1"] * moment, h["beta2"] * square
        decayed = weights * (1 - h["lr"] * h["weight_decay"]) if h["decoupled"] else weights
        rows[:, on] = decayed if h["decoupled"] else decayed + h["weight_decay"] * gradient
    out[:, on] = -gradient if h.get("maximize") else gradient


def _clip_back(dynamics: Dynamics, at: Between, rows: Tensor) -> Tensor:
    """Adjoint of the secant of clipping by the norm, c' g' - c g = (c + c')/2 (g' - g) + (g + g')/2 (c' - c)."""
    bound = dynamics.max_grad_norm
    if not bound:
        return rows
    one, other = at.norms
    factors = [min(1.0, bound / (norm + 1e-6)) for norm in at.norms]
    if min(factors) == 1:
        return rows
    if max(factors) < 1 or one == other:
        steep = -bound / ((one + 1e-6) * (other + 1e-6))
    else:
        steep = (factors[1] - factors[0]) / (other - one)
    along = (rows @ at.raw)[:, None] * at.raw * (steep * dynamics.weight / (2 * (one + other)))
    return sum(factors) / 2 * rows + along
