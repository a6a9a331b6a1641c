"""What a search sees of its objective: values, errors and slopes, on the rows that it may look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from orderscope.engine import Expansion, HeldOut
from orderscope.engine.calibration import Calibration
from orderscope.engine.row_spread import RowSpread
from orderscope.engine.threads import one_thread
from orderscope.search import strategy
from orderscope.search.objective import Objective
from orderscope.search.parts import Part
from orderscope.simulation.simulator import Simulator


@dataclass(frozen=True)
class View:
    """The objective as a search is told it, for orders and for final weights.

    Args:
        sim: where orders are replayed.
        objective: what is to be lowered.
        part: the held-out rows that are looked at; all of them, and no standard error over rows, if not given.
    """

    sim: Simulator
    objective: Objective
    part: Part | None = None

    def __call__(self, orders: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Orders [n, steps, batch] -> objective, its error, its standard error over rows, [n] each, and the metrics
        [n, metrics]."""
        replayed = self.sim.replay_of(orders, more=True)
        names, values, errors = self.objective.names, {}, {}
        with one_thread():
            raw, at = self.raw(replayed.theta), self.sim.bearing(replayed)
            spread = self.spread(replayed.theta)
        for name in names:
            values[name], errors[name] = self.calibration(name).apply(raw[name], at)
        metrics = np.stack([values[name] for name in names], axis=1)
        return self.objective.value(values), self.objective.error(errors), spread, metrics

    def raw(self, theta: Tensor) -> dict[str, np.ndarray]:
        """Metrics at final weights [n, m], before calibration."""
        own = [name for name in self.objective.names if self.part is not None and name in self.part.held_out.names]
        rest = [name for name in self.objective.names if name not in own]
        found = self.part.held_out(theta, own) if self.part is not None and own else {}
        return found | (self.sim.metric_model(theta, rest) if rest else {})

    def calibration(self, name: str) -> Calibration:
        own: Mapping[str, Calibration] = {} if self.part is None else self.part.calibration
        return own[name] if name in own else self.sim.calibration[name]

    def spread(self, theta: Tensor) -> np.ndarray:
        """Standard error over the rows of the objective's difference to the reference, [n]; of several metrics at most
        that much: how their rows go together is not used."""
        total = np.zeros(len(theta))
        for weight, found in self._spreads:
            total += abs(weight) * found(theta).numpy()
        return total

    @cached_property
    def _spreads(self) -> list[tuple[float, RowSpread]]:
        known = {} if self.part is None else self.part.spread
        return [(weight, known[name]) for name, weight in self.objective.weights.items() if name in known]

    @property
    def held_out(self) -> HeldOut | None:
        return self.sim.held_out if self.part is None else self.part.held_out

    def expansion(self) -> Expansion | None:
        """Second-order expansion of what is told of the objective, `PENALTY` standard errors included, around the end
        of the reference run; None where no metric is a held-out loss.

        A norm |B d| has no expansion at d = 0; it is bounded by (|B d|^2 / c + c) / 2, which touches it at |B d| = c,
        the typical one of the recorded runs.
        """
        found = self.objective.expansion(self.held_out)
        if found is None or self.objective.sign < 0 or not strategy.PENALTY:
            return found
        factors = [found.factor]
        for weight, each in self._spreads:
            typical = float(each(self.sim.left_out.theta).median()) if len(self.sim.runs) else 0.0
            if typical > 0:
                factors.append(each.factor * (strategy.PENALTY * abs(weight) / typical) ** 0.5)
        return replace(found, factor=torch.cat(factors))

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
