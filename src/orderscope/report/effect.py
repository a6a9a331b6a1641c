"""How much order matters in a run, beside how much of that is noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from orderscope.report.stored import validations

if TYPE_CHECKING:
    from orderscope.simulator import Simulator


@dataclass(frozen=True)
class Effect:
    """Order and noise in one metric, both as standard deviations in its units.

    Args:
        metric: its name.
        reference: value of the recorded order.
        sigma: spread of the true values over orders.
        runs: number of true runs it was measured on.
        noise: what differs although the order of the steps does not; not a number where nothing is known.
        source: what the noise is: "floor" (retrained with the samples of each batch shuffled, `validate` measures it),
            "held-out" (standard error of the difference between two orders due to the choice of held-out rows), or "".
    """

    metric: str
    reference: float
    sigma: float
    runs: int
    noise: float
    source: str

    @property
    def matters(self) -> bool | None:
        """Whether order moves the metric by more than twice the noise; None where that cannot be said."""
        if not (math.isfinite(self.noise) and self.sigma > 0):
            return None
        return self.sigma > 2 * self.noise

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"matters": self.matters}


def effects(sim: Simulator, metrics: Sequence[str]) -> list[Effect]:
    """The effect of order on each metric, over reference and probes."""
    floors = {name: floor for check in validations(sim.store) for name, floor in check.noise_floor.items()}
    found = []
    for name in metrics:
        sigma = sim.sigma_order(name)
        floor = floors.get(name, math.nan)
        noise, source = (floor, "floor") if math.isfinite(floor) else (held_out_noise(sim, name), "held-out")
        found.append(
            Effect(name, sim.reference[name], sigma, 1 + len(sim.probes), noise, source if math.isfinite(noise) else "")
        )
    return found


def metric_names(sim: Simulator) -> list[str]:
    """The metrics that can be asked, in the task's own order."""
    return [name for name in sim.description["metric_names"] if name in sim.metric_names]


def held_out_noise(sim: Simulator, metric: str) -> float:
    """Standard error of the difference between two orders' mean held-out losses, the rows being paired,

        root mean square over probes of  std(loss_probe - loss_reference) / sqrt(rows).

    Not a number for metrics that are no mean over rows, and without probes.
    """
    from orderscope.record import load_run
    from orderscope.sketch import REFERENCE

    if sim.description["metrics"].get(metric) is None or not sim.probes:
        return math.nan
    reference, *probes = (
        load_run(sim.store, run).metric_losses(metric)[-1].double().numpy() for run in (REFERENCE, *sim.probes)
    )
    if len(reference) < 2:
        return math.nan
    variances = [np.var(probe - reference, ddof=1) / len(reference) for probe in probes]
    return float(np.sqrt(np.mean(variances)))
