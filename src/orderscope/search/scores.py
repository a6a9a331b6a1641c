"""What a search sees of its objective: values, errors and slopes, on the rows that it may look at."""

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
from orderscope.search.ledger import Told
from orderscope.search.objective import Objective
from orderscope.search.parts import Part, Parts
from orderscope.simulation.simulator import Simulator


@dataclass(frozen=True)
class View:
    """The objective as a search is told it, for orders and for final weights.

    Args:
        sim: where orders are replayed.
        objective: what is to be lowered.
        parts: held-out rows that the search looks at and others; all of them, and no standard error over rows, if not
            given.
    """

    sim: Simulator
    objective: Objective
    parts: Parts | None = None

    def __call__(self, orders: np.ndarray) -> Told:
        """What is told of orders [n, steps, batch]."""
        replayed = self.sim.replay_of(orders, more=True)
        with one_thread():
            at, spread = self.sim.bearing(replayed), self.spread(replayed.theta)
            values, errors = self._told(replayed.theta, at, self.searched)
            apart, apart_errors = values, errors
            if self.parts is not None:
                apart, apart_errors = self._told(replayed.theta, at, self.parts.confirming, values)
        return Told(
            value=self.objective.value(values),
            error=self.objective.error(errors),
            spread=spread,
            metrics=np.stack([values[name] for name in self.objective.names], axis=1),
            apart=self.objective.value(apart),
            apart_error=self.objective.error(apart_errors),
        )

    @property
    def searched(self) -> Part | None:
        return None if self.parts is None else self.parts.searched

    def _told(
        self, theta: Tensor, at: Bearing, part: Part | None, known: Mapping[str, np.ndarray] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Metrics and errors by name; those that have no parts are `known` where they were told already."""
        names = self.objective.names
        own = [name for name in names if part is not None and name in part.held_out.names]
        raw = part.held_out(theta, own) if part is not None and own else {}
        rest = [name for name in names if name not in own]
        if rest:
            raw |= self.sim.metric_model(theta, rest) if known is None else {name: known[name] for name in rest}
        values, errors = {}, {}
        for name in names:
            if part is not None and name in own:
                calibration, pushed = part.calibration[name], part.pushed(theta, name)
            else:
                calibration, pushed = self.sim.calibration[name], self.sim.pushed(theta, name)
            values[name], errors[name] = calibration.apply(raw[name], at, pushed)
        return values, errors

    def spread(self, theta: Tensor) -> np.ndarray:
        """Standard error over the rows of the objective's difference to the reference, [n]; of several metrics at most
        that much: how their rows go together is not used."""
        total = np.zeros(len(theta))
        for weight, found in self._spreads:
            total += abs(weight) * found(theta).numpy()
        return total

    @cached_property
    def _spreads(self) -> list[tuple[float, RowSpread]]:
        known = {} if self.parts is None else self.parts.searched.spread
        return [(weight, known[name]) for name, weight in self.objective.weights.items() if name in known]

    @property
    def held_out(self) -> HeldOut | None:
        return self.sim.held_out if self.parts is None else self.parts.searched.held_out

    def expansion(self) -> Expansion | None:
        """Second-order expansion of what is told of the objective, `PENALTY` standard errors included, around the end
        of the reference run; None where no metric is a held-out loss.

        A norm |B d| has no expansion at d = 0; it is bounded by (|B d|^2 / c + c) / 2, which touches it at |B d| = c,
        the typical one of the recorded runs.
        """
        found = self.objective.expansion(self.held_out)
        if found is None or self.objective.sign < 0 or not strategy.PENALTY:
            return found
        parts = [(1.0, found.curvature)]
        for weight, each in self._spreads:
            typical = float(each(self.sim.left_out.theta).median()) if len(self.sim.runs) else 0.0
            if typical > 0:
                parts.append((strategy.PENALTY * abs(weight) / typical, Curvature.of(each.factor)))
        return replace(found, curvature=Curvature.joined(parts, len(found.center)))

    def slope(self, theta: Tensor) -> tuple[float, Tensor]:
        """Value of what is told of the objective at weights [m], `PENALTY` standard errors included, and its gradient
        on the coordinates, [m]."""
        value, gradient = self.objective.slope(self.held_out)(theta)
        sign, scale = self.objective.sign, self.sim.window.dynamics.weight
        for weight, each in self._spreads:
            size, slope = each.slope(theta)
            charge = sign * strategy.PENALTY * abs(weight)
            value, gradient = value + charge * size, gradient + charge / scale * slope.to(gradient.dtype)
        return value, gradient
