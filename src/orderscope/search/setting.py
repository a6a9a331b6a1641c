"""The setting of a strategy: everything that it may read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from orderscope.engine import Expansion
from orderscope.engine.adjoint import Sensitivity, sample_effects, sensitivity, step_effects
from orderscope.engine.threads import one_thread
from orderscope.orders import step_groups
from orderscope.search.constraints import Rules
from orderscope.search.ledger import Ledger
from orderscope.search.linear import Effects
from orderscope.search.objective import Objective
from orderscope.search.sample_signals import Samples
from orderscope.search.scores import View
from orderscope.search.step_signals import influences
from orderscope.simulation.simulator import Simulator


@dataclass
class Setting:
    """The run, the objective, and the orders scored so far.

    Args:
        sim: the simulator.
        objective: the quantity that is minimised.
        regroup: whether samples may leave their recorded batches.
        ledger: every order scored so far.
        rules: constraints on orders, or None.
        view: the objective as the search sees it; by default on all held-out rows.
        rng: random numbers of the running strategy.
        judged: whether regrouped orders must be significantly better on the confirming rows to be proposed.
        share: number of orders that the running strategy may still have scored.
        notes: remarks for the reader of the proposal.
    """

    sim: Simulator
    objective: Objective
    regroup: bool
    ledger: Ledger
    rules: Rules | None = None
    view: View = None  # pyright: ignore[reportAssignmentType]  # made in __post_init__
    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    judged: bool = False
    share: int = 0
    notes: list[str] = field(default_factory=list)
    _sweeps: dict[bytes, Sensitivity] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.view = self.view or View(self.sim, self.objective)

    @property
    def order(self) -> np.ndarray:
        """The reference order, int64 [steps, batch]."""
        return self.sim.order

    @property
    def sign(self) -> float:
        """-1 if a single metric is maximised, else 1; `expansion` is of the metric with its own sign."""
        return self.objective.sign

    @property
    def steps(self) -> int:
        """Number of steps of the order."""
        return len(self.sim.order)

    @cached_property
    def labels(self) -> list[str]:
        """Group of each reference step; the same name for all if the task has no groups."""
        return step_groups(self.order, self.sim.sample_groups)

    @cached_property
    def expansion(self) -> Expansion | None:
        """Second-order expansion of the reported objective around the end of the reference run; None if no metric is a
        held-out loss."""
        return self.view.expansion()

    def fitted(self, orders: np.ndarray) -> np.ndarray:
        """Orders [n, steps, batch], changed where necessary to meet the constraints."""
        return orders if self.rules is None else self.rules.repaired(orders)

    @cached_property
    def samples(self) -> Samples:
        """Numbers about single samples."""
        return Samples(self.sim)

    def signal(self, name: str, by: str) -> np.ndarray | None:
        """A number about every sample, [samples]. If the task's samples do not have it, or all have the same, None, and
        a note is added.

        Args:
            name: name of the signal, a method of `Samples`.
            by: name of the strategy that uses it, for the note.
        """
        values = getattr(self.samples, name)()
        if values is None:
            self.note(f"{by}: this task's samples have no {name.replace('_', ' ')}")
        elif np.ptp(values[self.samples.used]) == 0:
            self.note(f"{by}: all samples have the same {name.replace('_', ' ')}")
            values = None
        return values

    def note(self, text: str) -> None:
        """Add a remark for the reader of the proposal, unless it is there already."""
        if text not in self.notes:
            self.notes.append(text)

    def groups(self, by: str) -> list[str]:
        """Names of the groups of steps. If all steps are of one group, none, and a note is added.

        Args:
            by: name of the strategy that uses them, for the note.
        """
        names = sorted(set(self.labels))
        if len(names) > 1:
            return names
        self.note(f"{by}: all steps are of one group")
        return []

    @cached_property
    def influence(self) -> np.ndarray | None:
        """First-order change of the objective by training on each recorded step, [steps]; negative is better. None if
        the metric has no gradient."""
        return None if self.expansion is None else self.sign * influences(self.sim.window, self.expansion)

    def best_groups(self) -> list[str]:
        """Groups of steps, the one with the best mean influence first; by name if the metric has no gradient."""
        names, labels = sorted(set(self.labels)), np.array(self.labels)
        influence = self.influence
        if influence is None:
            return names
        return sorted(names, key=lambda name: float(influence[labels == name].mean()))

    def best(self, *, whole: bool = True) -> np.ndarray:
        """The order with the best bound so far, [steps, batch]; without one, the reference, changed to meet the
        constraints.

        Args:
            whole: consider only orders that keep the recorded batches together.
        """
        entries = self.ledger.ranked()
        orders = (e.order for e in entries if not whole or self.steps_of(e.order) is not None)
        return next(orders, self.fitted(self.order[None])[0])

    def steps_of(self, order: np.ndarray) -> np.ndarray | None:
        """The recorded step of each batch of an order, [steps]; None if samples were regrouped."""
        return self.ledger.steps_of(order)

    def regrouping_vanishes(self) -> bool:
        """Whether the best order regroups samples, and its predicted advantage on the confirming rows over the best
        order of whole batches is below one standard error over those rows, so that training could not confirm it. This
        is all that a strategy learns about the confirming rows."""
        parts, entries = self.view.parts, self.ledger.ranked()
        if not self.judged or parts is None or not entries or self.steps_of(entries[0].order) is not None:
            return False
        whole = next((e for e in entries if self.steps_of(e.order) is not None), None)
        searched, confirming = (max(part.rows.values()) for part in (parts.searched, parts.confirming))
        width = entries[0].spread * (searched / confirming) ** 0.5
        vanishes = whole is not None and whole.confirming - entries[0].confirming < width
        if vanishes:
            self.note("regrouping samples was given up: on the rows set aside its predicted gain is below its error")
        return vanishes

    def step_effects(self, steps: np.ndarray) -> Effects:
        """The local model around a permutation of recorded steps [steps]; its items are recorded steps."""
        sweep = self._sweep(self.order[steps])
        return self._effects(sweep.value, step_effects(self.sim.window, sweep), steps)

    def sample_effects(self, order: np.ndarray) -> tuple[Effects, np.ndarray]:
        """The local model around an order of samples [steps, batch], and the sample id of each of its items,
        [items]."""
        sweep = self._sweep(order)
        ids, items = np.unique(order, return_inverse=True)
        return self._effects(sweep.value, sample_effects(self.sim.window, sweep, ids), items.reshape(-1)), ids

    def _sweep(self, order: np.ndarray) -> Sensitivity:
        key = order.tobytes()
        if key not in self._sweeps:
            assert self.expansion is not None
            with one_thread():
                self._sweeps[key] = sensitivity(self.sim.window, self.expansion, order, self.view.slope)
        return self._sweeps[key]

    def _effects(self, value: float, effects: np.ndarray, base: np.ndarray) -> Effects:
        return Effects(self.sign * value, effects[..., 0], effects[..., 1:], base, self.sign)
