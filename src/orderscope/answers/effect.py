"""How much order matters in a run, and how much of that is noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from orderscope.answers.stored import validations

if TYPE_CHECKING:
    from orderscope.simulation.simulator import Simulator
    from orderscope.simulation.verdict import Verdict


@dataclass(frozen=True)
class Effect:
    """Effect of order and noise in one metric: standard deviations in the metric's units, NaN if unknown.

    Args:
        metric: name of the metric.
        reference: value of the recorded order.
        sigma: standard deviation of the true values over orders.
        runs: number of true runs that it was measured on.
        floor: standard deviation when only the samples within each batch are shuffled; `validate` measures it.
        held_out: standard error of the difference between two orders that is due to the choice of held-out rows.
        rows: number of held-out rows, 0 if the metric is not a mean over rows.
    """

    metric: str
    reference: float
    sigma: float
    runs: int
    floor: float
    held_out: float
    rows: int = 0

    @property
    def noise(self) -> float:
        """The larger of `floor` and `held_out`, of those that are known; else NaN."""
        known = [value for value in (self.floor, self.held_out) if math.isfinite(value)]
        return max(known, default=math.nan)

    @property
    def judged(self) -> Verdict:
        """The verdict by the rule that `propose` uses."""
        from orderscope.simulation.verdict import Verdict

        return Verdict(self.metric, self.sigma, self.noise, self.held_out, self.runs, self.rows)

    @property
    def verdict(self) -> str:
        """`order matters`, `on these rows` (other held-out rows may say otherwise), `nothing to look for` or
        `unknown`."""
        return self.judged.word

    def as_json(self) -> dict[str, Any]:
        judged = self.judged
        return asdict(self) | {"noise": self.noise, "verdict": self.verdict, "words": judged.words,
                               "rows_needed": judged.as_json()["rows_needed"]}  # fmt: skip

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `as_json`; None, which JSON has for NaN, becomes NaN again."""
        own: dict[str, Any] = {name: math.nan if value is None else value for name, value in values.items()}
        return cls(**{f.name: own[f.name] for f in fields(cls)})


def effects(sim: Simulator, metrics: Sequence[str]) -> list[Effect]:
    """The effect of order on each metric, over reference and probes.

    Args:
        sim: the run, opened.
        metrics: names of metrics.
    """
    from orderscope.simulation.verdict import held_out_noise

    floors = {name: floor for check in validations(sim.store) for name, floor in check.noise_floor.items()}
    found = []
    for name in metrics:
        noise, rows = held_out_noise(sim, name)
        found.append(
            Effect(
                metric=name,
                reference=sim.reference[name],
                sigma=sim.sigma_order(name) if sim.probes else math.nan,
                runs=1 + len(sim.probes),
                floor=floors.get(name, math.nan),
                held_out=noise,
                rows=rows,
            )
        )
    return found
