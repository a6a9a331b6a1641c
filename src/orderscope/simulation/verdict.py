"""Whether there is an order to look for at all: how much order matters, beside what the choice of held-out rows does.

The metric of an order is a mean over N held-out rows. The difference between two orders has the standard error `noise`
over another choice of as many rows, and a value by itself noise / sqrt(2) beside the others'. So of the variance of
true values over orders on these rows

    signal^2  =  sigma_order^2 - noise^2 / 2

is what order does on any rows, and sigma_order^2 / signal^2 falls with N. Where nearly all of the variance is noise, an
order that is better on these rows is no better on others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from orderscope.simulation.simulator import Simulator
from orderscope.store.names import REFERENCE
from orderscope.text import number
from orderscope.training import load_run

CLEAR = 2.0  # where sigma_order is more than so many times the noise of a difference, order clearly matters
NOTHING = 0.75  # up to so many times there is nothing to look for: at 1 / sqrt(2) all of sigma_order is noise
MANY = 1000  # times the noise: a larger ratio says nothing more
MATTERS, ON_THESE_ROWS, NOISE, UNKNOWN = "order matters", "on these rows", "nothing to look for", "unknown"


@dataclass(frozen=True)
class Verdict:
    """What there is to find in one metric; standard deviations in its units, not a number where it is unknown.

    Args:
        metric: its name.
        sigma: sigma_order, the standard deviation of the true values over orders.
        noise: the larger of the noise floor and the held-out noise, the standard error of a difference between two
            orders over another choice of held-out rows.
        held_out: the held-out noise alone.
        runs: number of orders it was measured on.
        rows: held-out rows of the metric; 0 where it is no mean over rows.
        shuffled: whether the orders are random ones, as predicted, and not the true runs that were recorded: those with
            their groups in blocks spread far wider than any orders that one would choose between.
    """

    metric: str
    sigma: float
    noise: float
    held_out: float
    runs: int
    rows: int
    shuffled: bool = False

    @property
    def ratio(self) -> float:
        """sigma_order over the noise."""
        return self.sigma / self.noise if self.noise > 0 else math.inf if self.sigma > 0 else math.nan

    @property
    def word(self) -> str:
        """`order matters`, `on these rows` (other rows may say otherwise), `nothing to look for` or `unknown`."""
        if self.runs < 2 or not math.isfinite(self.noise):
            return UNKNOWN
        if self.sigma > CLEAR * self.noise:
            return MATTERS
        return ON_THESE_ROWS if self.sigma > NOTHING * self.noise else NOISE

    @property
    def nothing(self) -> bool:
        return self.word == NOISE

    @property
    def signal(self) -> float:
        """What order does on any rows, by the formula above; 0 where the noise accounts for all of it."""
        return math.sqrt(max(0.0, self.sigma**2 - self.noise**2 / 2))

    @property
    def rows_needed(self) -> float:
        """About how many held-out rows would make the noise of a difference half of what order does; not a number
        where that is not known, infinite where nothing is seen of it."""
        if not self.rows or not math.isfinite(self.held_out):
            return math.nan
        if self.signal == 0:
            return math.inf
        return max(1.0, self.rows * (CLEAR * self.held_out / self.signal) ** 2)

    @property
    def words(self) -> str:
        """The verdict in a sentence."""
        if self.word == UNKNOWN:
            return f"{self.metric}: how much order matters beside the noise is not known"
        which = "sigma_order of shuffled steps, predicted," if self.shuffled else "sigma_order"
        times = ("more than a thousand" if self.ratio >= MANY else number(self.ratio, 2)) + " times it"
        said = f"{which} {number(self.sigma, 2)}, noise of a difference {number(self.noise, 2)}: {times}"
        with_rows = f" with these {self.rows} rows" if self.rows else ""
        if self.word == MATTERS:
            return f"order matters{with_rows} ({said})"
        need = self.rows_needed
        more = ""
        if math.isfinite(need) and need > self.rows:
            more = f"; about {need:,.0f} rows would tell orders apart"
        elif need == math.inf:
            more = "; nothing of it is seen beside the noise: many times as many rows would show whether there is"
        if self.word == NOISE:
            return f"nothing to look for{with_rows} ({said}{more})"
        return f"order matters on these rows, on others perhaps less ({said}{more})"

    def as_json(self) -> dict[str, Any]:
        found = {"ratio": self.ratio, "word": self.word, "signal": self.signal, "rows_needed": self.rows_needed,
                 "words": self.words}  # fmt: skip
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in
                (asdict(self) | found).items()}  # fmt: skip


def verdict(sim: Simulator, metric: str, floor: float = math.nan) -> Verdict:
    """Of one metric.

    Args:
        sim: the run, opened.
        metric: its name.
        floor: the noise floor, where it was measured.
    """
    held_out, rows = held_out_noise(sim, metric)
    known = [value for value in (floor, held_out) if math.isfinite(value)]
    return Verdict(
        metric=metric,
        sigma=sim.sigma_order(metric) if sim.probes else math.nan,
        noise=max(known, default=math.nan),
        held_out=held_out,
        runs=1 + len(sim.probes),
        rows=rows,
    )


def held_out_noise(sim: Simulator, metric: str) -> tuple[float, int]:
    """Noise of a metric that is due to the choice of held-out rows.

    It is the standard error of the difference between two orders' mean losses, the rows being paired:

        root mean square over probes of  std(loss_probe - loss_reference) / sqrt(rows).

    Args:
        sim: the run, opened.
        metric: its name.

    Returns:
        The noise, in units of the metric, and the number of rows. Of a metric that is no mean over rows, and without
        probes, the noise is not a number and there are 0 rows.
    """
    if sim.description["metrics"].get(metric) is None or not sim.probes:
        return math.nan, 0
    reference, *probes = losses_of(sim, metric, (REFERENCE, *sim.probes))
    if len(reference) < 2:
        return math.nan, len(reference)
    variances = [np.var(probe - reference, ddof=1) / len(reference) for probe in probes]
    return float(np.sqrt(np.mean(variances))), len(reference)


def losses_of(sim: Simulator, metric: str, runs: Sequence[str]) -> np.ndarray:
    """Losses of all held-out rows where recorded runs ended, float64 [runs, rows].

    Args:
        sim: the run, opened.
        metric: its name.
        runs: names of recorded trainings.
    """
    rows = [load_run(sim.store, run, gradients=False).metric_losses(metric)[-1] for run in runs]
    return np.stack([losses.double().numpy() for losses in rows])
