"""The objective as a search sees it: values, errors and gradients on the searched rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from orderscope.engine import Expansion, HeldOut
from orderscope.engine.calibration import Bearing
from orderscope.engine.curvature import Curvature
from orderscope.engine.row_spread import RowSpread
from orderscope.engine.threads import one_thread
from orderscope.search import strategy
from orderscope.search.ledger import Estimates
from orderscope.search.objective import Objective
from orderscope.search.parts import Part, Parts
from orderscope.simulation.simulator import Simulator


@dataclass(frozen=True)
class View:
    """The objective as a search sees it, for orders and for final weights.

    Args:
        sim: the simulator that replays orders.
        objective: the quantity that is minimised.
        parts: searched and confirming rows; without it the search sees all rows, and no standard error over rows.
    """

    sim: Simulator
    objective: Objective
    parts: Parts | None = None

    def __call__(self, orders: np.ndarray) -> Estimates:
        """Estimates for orders [n, steps, batch]."""
        replayed = self.sim.replay_of(orders, more=True)
        with one_thread():
            at, spread = self.sim.bearing(replayed), self.spread(replayed.theta)
            values, errors = self._estimates(replayed.theta, at, self.searched)
            confirming, confirming_errors = values, errors
            if self.parts is not None:
                confirming, confirming_errors = self._estimates(replayed.theta, at, self.parts.confirming, values)
        return Estimates(
            value=self.objective.value(values),
            error=self.objective.error(errors),
            spread=spread,
            metrics=np.stack([values[name] for name in self.objective.names], axis=1),
            confirming=self.objective.value(confirming),
            confirming_error=self.objective.error(confirming_errors),
        )

    @property
    def searched(self) -> Part | None:
        """The searched rows, or None if the rows are not split."""
        return None if self.parts is None else self.parts.searched

    def _estimates(
        self, theta: Tensor, at: Bearing, part: Part | None, known: Mapping[str, np.ndarray] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Metrics and errors by name.

        Args:
            theta: final weights, [n, m].
            at: the bearing of the orders, for the calibration.
            part: the rows, or None for all.
            known: metrics computed before, used for those that are not means over rows.
        """
        names = self.objective.names
        with_rows = [name for name in names if part is not None and name in part.held_out.names]
        raw = part.held_out(theta, with_rows) if part is not None and with_rows else {}
        rest = [name for name in names if name not in with_rows]
        if rest:
            raw |= self.sim.metric_model(theta, rest) if known is None else {name: known[name] for name in rest}
        values, errors = {}, {}
        for name in names:
            if part is not None and name in with_rows:
                calibration, pushed = part.calibration[name], part.pushed(theta, name)
            else:
                calibration, pushed = self.sim.calibration[name], self.sim.pushed(theta, name)
            values[name], errors[name] = calibration.apply(raw[name], at, pushed)
        return values, errors

    def spread(self, theta: Tensor) -> np.ndarray:
        """Standard error over the rows of the objective's difference to the reference, [n]. For several metrics an
        upper bound: their errors are added.

        Args:
            theta: final weights, [n, m].
        """
        total = np.zeros(len(theta))
        for weight, row_error in self._spreads:
            total += abs(weight) * row_error(theta).numpy()
        return total

    @cached_property
    def _spreads(self) -> list[tuple[float, RowSpread]]:
        known = {} if self.parts is None else self.parts.searched.spread
        return [(weight, known[name]) for name, weight in self.objective.weights.items() if name in known]

    @property
    def held_out(self) -> HeldOut | None:
        """The model of the held-out losses on the searched rows."""
        return self.sim.held_out if self.parts is None else self.parts.searched.held_out

    def expansion(self) -> Expansion | None:
        """Second-order expansion of the reported objective plus `PENALTY` standard errors, around the end of the
        reference run; None if no metric is a held-out loss.

        The standard error is a norm |B d|, which has no expansion at d = 0. It is replaced by its upper bound
        (|B d|^2 / c + c) / 2, which is tight at |B d| = c, the median over the recorded runs.
        """
        expansion = self.objective.expansion(self.held_out)
        if expansion is None or self.objective.sign < 0 or not strategy.PENALTY:
            return expansion
        parts = [(1.0, expansion.curvature)]
        for weight, each in self._spreads:
            typical = float(each(self.sim.left_out.theta).median()) if len(self.sim.runs) else 0.0
            if typical > 0:
                parts.append((strategy.PENALTY * abs(weight) / typical, Curvature.of(each.factor)))
        return replace(expansion, curvature=Curvature.joined(parts, len(expansion.center)))

    def slope(self, theta: Tensor) -> tuple[float, Tensor]:
        """Value and gradient [m] of the reported objective plus `PENALTY` standard errors.

        Args:
            theta: weights on the carried coordinates, [m].
        """
        value, gradient = self.objective.slope(self.held_out)(theta)
        sign, scale = self.objective.sign, self.sim.window.dynamics.weight
        for weight, each in self._spreads:
            size, slope = each.slope(theta)
            charge = sign * strategy.PENALTY * abs(weight)
            value, gradient = value + charge * size, gradient + charge / scale * slope.to(gradient.dtype)
        return value, gradient
