"""How much order matters in a run, beside how much of that is noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from orderscope.answers.stored import validations

if TYPE_CHECKING:
    from orderscope.simulation.simulator import Simulator

CLEAR = 2.0  # standard deviations of noise that an effect must exceed


@dataclass(frozen=True)
class Effect:
    """Order and noise in one metric, all as standard deviations in its units; not a number where it is unknown.

    Args:
        metric: its name.
        reference: value of the recorded order.
        sigma: spread of the true values over orders.
        runs: number of true runs it was measured on.
        floor: spread with the order of steps unchanged and the samples of each batch shuffled; `validate` measures it.
        held_out: standard error of the difference between two orders that is due to the choice of held-out rows.
    """

    metric: str
    reference: float
    sigma: float
    runs: int
    floor: float
    held_out: float

    @property
    def noise(self) -> float:
        """The larger of the known ones."""
        known = [value for value in (self.floor, self.held_out) if math.isfinite(value)]
        return max(known, default=math.nan)

    @property
    def verdict(self) -> str:
        """`order matters`, `on these rows` (other held-out rows may say otherwise), `within the noise` or `unknown`."""
        if self.runs < 2 or not math.isfinite(self.noise):
            return "unknown"
        if self.sigma > CLEAR * self.noise:
            return "order matters"
        return "on these rows" if self.sigma > CLEAR * self.floor else "within the noise"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"noise": self.noise, "verdict": self.verdict}

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Self:
        """From what `as_json` gave, also where JSON made None of what is not a number."""
        own: dict[str, Any] = {name: math.nan if value is None else value for name, value in values.items()}
        return cls(**{f.name: own[f.name] for f in fields(cls)})


def effects(sim: Simulator, metrics: Sequence[str]) -> list[Effect]:
    """The effect of order on each metric, over reference and probes."""
    floors = {name: floor for check in validations(sim.store) for name, floor in check.noise_floor.items()}
    return [
        Effect(
            metric=name,
            reference=sim.reference[name],
            sigma=sim.sigma_order(name) if sim.probes else math.nan,
            runs=1 + len(sim.probes),
            floor=floors.get(name, math.nan),
            held_out=held_out_noise(sim, name),
        )
        for name in metrics
    ]


def metric_names(sim: Simulator) -> list[str]:
    """The metrics that can be asked, in the task's own order."""
    return [name for name in sim.description["metric_names"] if name in sim.metric_names]


def held_out_noise(sim: Simulator, metric: str) -> float:
    """Standard error of the difference between two orders' mean held-out losses, the rows being paired,

        root mean square over probes of  std(loss_probe - loss_reference) / sqrt(rows).

    Not a number for metrics that are no mean over rows, and without probes.
    """
    from orderscope.store.names import REFERENCE
    from orderscope.training import load_run

    if sim.description["metrics"].get(metric) is None or not sim.probes:
        return math.nan
    reference, *probes = (
        load_run(sim.store, run).metric_losses(metric)[-1].double().numpy() for run in (REFERENCE, *sim.probes)
    )
    if len(reference) < 2:
        return math.nan
    variances = [np.var(probe - reference, ddof=1) / len(reference) for probe in probes]
    return float(np.sqrt(np.mean(variances)))
