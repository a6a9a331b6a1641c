"""The seed method, FUT and FUT++: the estimators `fut` and `fut2`, kept to be compared with.

Gamma(theta_t, B_l), the optimizer's update with the reference run's own moments at step t, is tabled for all T x T
pairs of a reference state and a recorded batch, together with its first (FUT) and second (FUT++) derivative. A new
order o is replayed by a Taylor expansion around the reference state of the same step,

    theta'_{t+1} = theta'_t - lr_t [ Gamma + dGamma d + 1/2 d2Gamma d d ](theta_t, B_o(t)),    d = theta'_t - theta_t.

As in the paper: the table of all pairs, moments that stay the reference run's, derivatives of the loss by differences
along the reference path (so that they are vectors, one entry a coordinate, and cost no further gradients),

    d2L_i ~ (g_i(theta_t) - g_i(theta_{t-1})) / (theta_t,i - theta_{t-1},i),

the third derivative by differences of these, the table randomly projected, 32 to 1, and metrics of the real model.

Added, because without it nothing finite comes out: the divisions are damped for coordinates that hardly moved, and
derivatives count only as far as training with the recorded learning rate would be stable with them. The update is
expanded as a difference to the reference's own, which without projection changes nothing and makes the reference order
exact.

Known weaknesses: the moments are not the new order's own, and under Adam that is the leading effect of order; P^T P x
is not x: what the projection gives back is off by sqrt(size / k) |x|, so that parameters rebuilt from it are mostly
noise; a diagonal of differences is a poor Hessian. `SeedOptions(derivative="exact")` has neither of the last two:
Jacobian-vector products at every step of every order, dearer than retraining, so that what is left is the method's own.

Source: Yang et al., "Estimating the Effects of Sample Training Orders for Large Language Models without Retraining",
arXiv 2505.22042.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from orderscope.baselines.direction import Direction, direction_at
from orderscope.engine.optimizers import Dynamics
from orderscope.sketching.gradients import set_parameters
from orderscope.sketching.projection import Projection
from orderscope.task import Task
from orderscope.task.functional import frozen_and_buffers, functional_loss
from orderscope.task.hyper import group_rates
from orderscope.task.layout import ParameterLayout
from orderscope.task.per_sample import filled
from orderscope.task.rng import seeded
from orderscope.training.loop import start, train
from orderscope.training.state import TrainingState, capture


@dataclass(frozen=True)
class SeedOptions:
    """Choices of the seed method.

    Args:
        order: 1 for FUT, 2 for FUT++, 0 for the table without derivatives.
        share: rank of the projection as a share of P; 1 keeps the table whole.
        derivative: "difference", as the paper, or "exact", by Jacobian-vector products. With order 2 not for models
            with torch's own layer_norm, whose third derivative torch 2.13 gets wrong.
        damping: coordinates that moved less than this many root mean squares of a step count less in a difference.
        projection: kind of the projection.
        seed: of the projection.
    """

    order: int = 1
    share: float = 1 / 32
    derivative: str = "difference"
    damping: float = 1.0
    projection: str = "sparse"
    seed: int = 0


def expand(function: Callable[[Tensor], Tensor], at: Tensor, along: Tensor, order: int) -> list[Tensor]:
    """[f(x), Df(x) d, D2f(x) d d][: order + 1]: a function and its directional derivatives, by forward mode.

    Args:
        function: tensor -> tensor, smooth at `at`.
        at: x.
        along: d, in the shape of x.
        order: 0, 1 or 2.

    Example:
        >>> expand(lambda x: x**3, torch.tensor(2.0), torch.tensor(1.0), 2)
        [tensor(8.), tensor(12.), tensor(12.)]
    """
    if order == 0:
        return [function(at)]
    if order == 1:
        return list(jvp(function, (at,), (along,)))
    inner, outer = jvp(lambda x: jvp(function, (x,), (along,)), (at,), (along,))[:2]
    return [*inner, outer[1]]


class ReferencePath:
    """Every state of the reference run, trained again, and gradients there.

    Args:
        task: what was recorded.
        dynamics: its optimizer and hyper-parameters.
    """

    def __init__(self, task: Task, dynamics: Dynamics) -> None:
        self.task, self.dynamics = task, dynamics
        self.evaluations = task.steps  # batch gradients so far
        self.states: list[TrainingState] = []
        with seeded(0):
            session = start(task)
            for t in range(task.steps):
                self.states.append(capture(session))
                train(task, session, task.order, t, t + 1)
            self.states.append(capture(session))
        self._model = task.build_model()

    @property
    def layout(self) -> ParameterLayout:
        return self.task.layout

    @cached_property
    def steps(self) -> Tensor:
        """theta_{t+1} - theta_t, [T, P]."""
        return torch.stack([b.theta - a.theta for a, b in pairwise(self.states)])

    @cached_property
    def updates(self) -> Tensor:
        """The reference run's own Gamma, [T, P]."""
        rows = []
        for t, ids in enumerate(self.task.order):
            gradient, moved = self.gradient(t, ids)
            rows.append(moved * self.direction(t)(gradient, self.states[t].theta))
        return torch.stack(rows)

    def rate(self, t: int) -> float:
        """The largest learning rate of a step."""
        return max(float(self.dynamics.hyper["lr"][t].max()), 1e-30)

    def direction(self, t: int) -> Direction:
        return direction_at(self.layout, self.dynamics.optimizer, self.dynamics.hyper, t, self.states[t])

    def gradient(self, t: int, ids: Any) -> tuple[Tensor, Tensor | float]:
        """Gradient of a batch's mean loss at theta_t, clipped as in the run.

        Args:
            t: step of the reference run.
            ids: sample ids of the batch, [batch].

        Returns:
            The gradient, [P], and a mask [P], zero where a coordinate has no gradient and the optimizer leaves it
            alone; the number 1 where there are no such coordinates.
        """
        self.evaluations += 1
        self._set(t)
        parameters = self.layout.of_model(self._model)
        loss = self.task.loss(self._model, self.task.batch(ids)).mean()
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        got = torch.tensor([g is not None for g in grads])
        moved = 1.0 if bool(got.all()) else got.repeat_interleave(torch.tensor(self.layout.sizes)).to(self.layout.dtype)
        return self._clipped(self.layout.flatten(filled(grads, parameters)).cpu()), moved

    def update_function(self, t: int, ids: Any) -> Callable[[Tensor], Tensor]:
        """theta -> Gamma(theta, B) with the moments of step t, for exact derivatives.

        Args:
            t: step of the reference run.
            ids: sample ids of the batch B, [batch].
        """
        gamma, (_, moved) = self.direction(t), self.gradient(t, ids)
        loss, batch = functional_loss(self.task, self._model), self.task.batch(ids)
        rest = frozen_and_buffers(self._model, self.layout)

        def mean_loss(theta: Tensor) -> Tensor:
            return loss(self.layout.unflatten(theta), rest, batch).mean()

        return lambda theta: moved * gamma(self._clipped(grad(mean_loss)(theta)), theta)

    def _set(self, t: int) -> None:
        set_parameters(self._model, self.layout, self.states[t].theta)
        with torch.no_grad():
            for name, buffer in self._model.named_buffers():
                buffer.copy_(self.states[t].buffers[name])

    def _clipped(self, gradient: Tensor) -> Tensor:
        if not self.dynamics.max_grad_norm:
            return gradient
        return gradient * (self.dynamics.max_grad_norm / (gradient.norm() + 1e-6)).clamp_max(1.0)


class Derivatives:
    """Gamma and its elementwise derivatives of one batch at reference states, by differences along the path.

    Args:
        path: the reference run.
        ids: samples of the batch.
        options: order and damping.
    """

    def __init__(self, path: ReferencePath, ids: Any, options: SeedOptions) -> None:
        self._path, self._ids, self._options = path, ids, options
        self._gradients: dict[int, Tensor] = {}
        self._moved: Tensor | float = 1.0

    def at(self, t: int) -> Tensor:
        """[order + 1, P] at theta_t: Gamma and what multiplies d and d^2 / 2, entry by entry."""
        order, path = self._options.order, self._path
        gamma, theta, gradient = path.direction(t), path.states[t].theta, self._gradient(t)
        slope = self._slope(max(t, 1)) if order >= 1 else torch.zeros_like(theta)
        bend = self._bend(max(t, 2)) if order >= 2 else torch.zeros_like(theta)
        zero = torch.zeros((), dtype=theta.dtype)

        def along(s: Tensor) -> Tensor:  # entry by entry, so one number moves all coordinates at once
            return gamma(gradient + s * slope + s * s * bend / 2, theta + s)

        terms = torch.stack(expand(along, zero, torch.ones_like(zero), order)) * self._moved
        return self._limited(t, terms)

    def _gradient(self, t: int) -> Tensor:
        if t not in self._gradients:
            self._gradients[t], self._moved = self._path.gradient(t, self._ids)
            self._gradients.pop(t - 4, None)
        return self._gradients[t]

    def _slope(self, t: int) -> Tensor:
        """Second derivative of the loss between theta_{t-1} and theta_t."""
        if t >= len(self._path.states):
            return torch.zeros_like(self._path.states[0].theta)
        return (self._gradient(t) - self._gradient(t - 1)) * self._inverse_step(t)

    def _bend(self, t: int) -> Tensor:
        """Third derivative between theta_{t-2} and theta_t."""
        if t >= len(self._path.states):
            return torch.zeros_like(self._path.states[0].theta)
        return (self._slope(t) - self._slope(t - 1)) * self._inverse_step(t)

    def _inverse_step(self, t: int) -> Tensor:
        step = self._path.steps[t - 1]
        floor = (self._options.damping**2 * step.square().mean()).clamp_min(torch.finfo(step.dtype).tiny)
        return step / (step.square() + floor)

    def _limited(self, t: int, terms: Tensor) -> Tensor:
        """Derivatives as far as the learning rate is stable with them: |lr dGamma| <= 1, |lr d2Gamma| rms step <= 1."""
        size = float(self._path.steps[t].square().mean().sqrt().clamp_min(1e-30))
        for n in range(1, len(terms)):
            limit = min(1 / self._path.rate(t) / size ** (n - 1), torch.finfo(terms.dtype).max)
            terms[n] = terms[n].nan_to_num(0.0, limit, -limit).clamp(-limit, limit)
        return terms


class SeedTable:
    """The projected table of Gamma and its derivatives at all pairs of a reference state and a recorded batch.

    Args:
        path: the reference run.
        options: what to table.
    """

    def __init__(self, path: ReferencePath, options: SeedOptions) -> None:
        self.path, self.options = path, options
        size = path.layout.size
        rank = round(options.share * size)
        self.projection = Projection(size, max(1, rank), options.projection, options.seed) if rank < size else None
        steps = path.task.steps
        kept = size if self.projection is None else self.projection.rank
        self.values = torch.empty(steps, steps, options.order + 1, kept, dtype=path.layout.dtype)
        batches = [Derivatives(path, ids, options) for ids in path.task.order]
        before = path.evaluations
        for t in range(steps):
            self.values[t] = self.projected(torch.stack([b.at(t) for b in batches]))
        self.cost = 1 + (path.evaluations - before) / steps

    def projected(self, rows: Tensor) -> Tensor:
        return rows if self.projection is None else self.projection.project(rows)

    def rebuilt(self, rows: Tensor) -> Tensor:
        """P^T P x from P x; x itself where the table is whole."""
        return rows if self.projection is None else self.projection.back(rows)


class ExactUpdates:
    """Gamma and its directional derivatives by Jacobian-vector products: no table, a few gradients for every step.

    Args:
        path: the reference run, step by step.
        options: choices of the method.
    """

    cost = 1.0

    def __init__(self, path: ReferencePath, options: SeedOptions) -> None:
        self.path, self.options = path, options


def replay_seed(
    made: SeedTable | ExactUpdates, index: np.ndarray, new: np.ndarray, lr: np.ndarray | None
) -> tuple[Tensor, float]:
    """Final weights of many orders, and the gradient evaluations that they cost in addition to the table, in runs.

    Args:
        made: the table, or what stands for it.
        index: batches of each order, [orders, steps]: u < T is the recorded batch u, T + x the batch `new[x]`.
        new: sample ids of batches that were not recorded, [x, batch]; they are in no table and are evaluated on demand.
        lr: learning rates instead of the recorded ones, as `orderscope.task.hyper.group_rates` reads them.

    Returns:
        weights [orders, P], cost.
    """
    path = made.path
    steps, before = path.task.steps, path.evaluations
    recorded = path.dynamics.hyper["lr"]
    given = None if lr is None else group_rates(lr, recorded, len(index))
    d = torch.zeros(len(index), path.layout.size, dtype=path.layout.dtype)
    late = [Derivatives(path, ids, made.options) for ids in new]
    for t in range(steps):
        if isinstance(made, SeedTable):
            change = _tabled(made, late, t, index[:, t], d)
        else:
            batches = [path.task.order[u] if u < steps else new[u - steps] for u in index[:, t]]
            rows = zip(batches, d, strict=True)
            change = torch.stack([_exact(path, t, ids, row, made.options.order) for ids, row in rows])
        own = _of_weights(path.layout, recorded[t])
        rate = own if given is None else _of_weights(path.layout, given[:, t])
        d = d - rate * change
        if given is not None:
            d = d - (rate - own) * path.updates[t]
    return path.states[-1].theta + d, (path.evaluations - before) / steps


def _tabled(table: SeedTable, late: Sequence[Derivatives], t: int, units: np.ndarray, d: Tensor) -> Tensor:
    """Expanded updates less the reference's own, [orders, P]."""
    steps = table.path.task.steps
    distinct, which = np.unique(units, return_inverse=True)
    rows = torch.stack([
        table.values[t, u] if u < steps else table.projected(late[u - steps].at(t)) for u in distinct.tolist()
    ])  # fmt: skip
    rows[:, 0] -= table.values[t, t, 0]
    terms = table.rebuilt(rows)[torch.from_numpy(which)]
    change = terms[:, 0]
    if table.options.order >= 1:
        slope = terms[:, 1] if table.options.order == 1 else terms[:, 1] + terms[:, 2] * d / 2
        limit = 1 / table.path.rate(t)
        change = change + slope.clamp(-limit, limit) * d
    return change


def _exact(path: ReferencePath, t: int, ids: Any, d: Tensor, order: int) -> Tensor:
    path.evaluations += 3**order  # a forward derivative costs at most three times the function
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have none
        terms = expand(path.update_function(t, ids), path.states[t].theta, d, order)
    return sum(term / max(1, n) for n, term in enumerate(terms)) - path.updates[t]


def _of_weights(layout: ParameterLayout, rates: np.ndarray) -> Any:
    """Rates [..., groups] of each weight, [..., P], or [..., 1] where all groups have the same."""
    every = torch.from_numpy(np.ascontiguousarray(rates)).to(layout.dtype)
    if bool((every == every[..., :1]).all()):
        return every[..., :1]
    return every[..., torch.tensor(layout.group).repeat_interleave(torch.tensor(layout.sizes))]
