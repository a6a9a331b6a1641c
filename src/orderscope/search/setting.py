"""What a strategy may look at."""

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
    """The run, what is to be improved, and what was found so far.

    Args:
        sim: the simulator.
        objective: what is to be lowered.
        regroup: whether samples may leave their recorded batches.
        ledger: every order scored so far.
        view: what the search sees of the objective; all held-out rows if not given.
        rules: what orders must keep to, if anything.
        rng: random numbers of the strategy that is running.
        judged: whether regrouping has to show on the rows set aside that it pays.
        share: how many orders it may still have scored.
        notes: what a reader of the proposal should know.
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
        """-1 where more of the single metric is better; `expansion` is of that metric itself."""
        return self.objective.sign

    @property
    def steps(self) -> int:
        return len(self.sim.order)

    @cached_property
    def labels(self) -> list[str]:
        """Group of each reference step; one name for all where the task has no groups."""
        names = self.sim.description["group_names"]
        return step_groups(self.order, [names[code] for code in self.sim.window.group_codes])

    @cached_property
    def expansion(self) -> Expansion | None:
        """Second-order expansion of what is told of the objective around the end of the reference run; None for metrics
        that are no losses."""
        return self.view.expansion()

    def fitted(self, orders: np.ndarray) -> np.ndarray:
        """Orders [n, steps, batch] changed as little as need be to keep to the rules."""
        return orders if self.rules is None else self.rules.repaired(orders)

    @cached_property
    def samples(self) -> Samples:
        """What is known of single samples."""
        return Samples(self.sim)

    def signal(self, name: str, by: str) -> np.ndarray | None:
        """A number about every sample, [samples]; None, and a note, where this task has no such number or all samples
        have the same.

        Args:
            name: of the signal.
            by: strategy that uses it, for the note.
        """
        values = getattr(self.samples, name)()
        if values is None:
            self.note(f"{by}: this task's samples have no {name.replace('_', ' ')}")
        elif np.ptp(values[self.samples.used]) == 0:
            self.note(f"{by}: all samples have the same {name.replace('_', ' ')}")
            values = None
        return values

    def note(self, text: str) -> None:
        """Tell the reader of the proposal, once."""
        if text not in self.notes:
            self.notes.append(text)

    def groups(self, by: str) -> list[str]:
        """Names of the groups of steps for strategy `by`; none, and a note, where all steps are of one."""
        names = sorted(set(self.labels))
        if len(names) > 1:
            return names
        self.note(f"{by}: all steps are of one group")
        return []

    @cached_property
    def influence(self) -> np.ndarray | None:
        """What training on each recorded step changes the objective by, [steps]: less is better. None where the metric
        has no gradient."""
        return None if self.expansion is None else self.sign * influences(self.sim.window, self.expansion)

    def best_groups(self) -> list[str]:
        """Groups of steps, the most helpful first by its mean influence; by name where the metric has no gradient."""
        names, labels = sorted(set(self.labels)), np.array(self.labels)
        influence = self.influence
        if influence is None:
            return names
        return sorted(names, key=lambda name: float(influence[labels == name].mean()))

    def best(self, *, whole: bool = True) -> np.ndarray:
        """The best order so far by its bound, the reference at least, or what the rules make of it.

        Args:
            whole: only of those that keep the recorded batches together.
        """
        entries = self.ledger.ranked()
        found = (e.order for e in entries if not whole or self.steps_of(e.order) is not None)
        return next(found, self.fitted(self.order[None])[0])

    def steps_of(self, order: np.ndarray) -> np.ndarray | None:
        """The recorded step of each batch of an order, [steps]; None where samples were regrouped."""
        return self.ledger.steps_of(order)

    def regrouping_vanishes(self) -> bool:
        """Whether the best order that regroups samples gains so much less on the rows set aside than on the searched
        ones that it could not be shown to be better than the best that keeps the batches: as predicted, by less than a
        standard error over those rows. It is the one thing that a search is shown of these rows."""
        parts, entries = self.view.parts, self.ledger.ranked()
        if not self.judged or parts is None or not entries or self.steps_of(entries[0].order) is not None:
            return False
        whole = next((e for e in entries if self.steps_of(e.order) is not None), None)
        searched, apart = (max(part.rows.values()) for part in (parts.searched, parts.confirming))
        width = entries[0].spread * (searched / apart) ** 0.5
        vanishes = whole is not None and whole.apart - entries[0].apart < width
        if vanishes:
            self.note("regrouping samples is predicted to gain next to nothing on the rows set aside, and was given up")
        return vanishes

    def step_effects(self, steps: np.ndarray) -> Effects:
        """The local model around a permutation of recorded steps; items are recorded steps."""
        found = self._sweep(self.order[steps])
        return self._effects(found.value, step_effects(self.sim.window, found), steps)

    def sample_effects(self, order: np.ndarray) -> tuple[Effects, np.ndarray]:
        """The local model around an order of samples, and the sample id of each of its items."""
        found = self._sweep(order)
        ids, items = np.unique(order, return_inverse=True)
        return self._effects(found.value, sample_effects(self.sim.window, found, ids), items.reshape(-1)), ids

    def _sweep(self, order: np.ndarray) -> Sensitivity:
        key = order.tobytes()
        if key not in self._sweeps:
            assert self.expansion is not None
            with one_thread():
                self._sweeps[key] = sensitivity(self.sim.window, self.expansion, order, self.view.slope)
        return self._sweeps[key]

    def _effects(self, value: float, effects: np.ndarray, base: np.ndarray) -> Effects:
        return Effects(self.sign * value, effects[..., 0], effects[..., 1:], base, self.sign)
