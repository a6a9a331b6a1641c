"""Whether searching for a better order can succeed: the effect of order compared with the noise of the held-out rows.

The metric of an order is a mean over N held-out rows. Under resampling of the rows the difference between two orders
has the standard error `noise`, and a single value, relative to the mean over orders, noise / sqrt(2). The variance of
true values over orders on these rows therefore contains

    signal^2  =  sigma_order^2 - noise^2 / 2

as the effect of order on any rows. The noise falls with N. If nearly all of the variance is noise, an order that is
better on these rows is no better on others.
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

CLEAR = 2.0  # order matters if sigma_order exceeds this many times the noise of a difference
NOTHING = 0.75  # up to this many times a search cannot succeed: at 1 / sqrt(2) all of sigma_order is noise
MANY = 1000  # times the noise: larger ratios are not printed
MATTERS, ON_THESE_ROWS, NOISE, UNKNOWN = "order matters", "on these rows", "nothing to look for", "unknown"


@dataclass(frozen=True)
class Verdict:
    """How much order matters in one metric; standard deviations in the metric's units, NaN if unknown.

    Args:
        metric: name of the metric.
        sigma: sigma_order, the standard deviation of the true values over orders.
        noise: the larger of the noise floor and the held-out noise, which is the standard error of a difference between
            two orders under resampling of the held-out rows.
        held_out: the held-out noise alone.
        runs: number of orders that it was measured on.
        rows: number of held-out rows of the metric; 0 if it is not a mean over rows.
        shuffled: True if sigma is from predictions of random orders, False if from the recorded runs. Recorded runs
            with groups in blocks vary more than the orders that a search compares.
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
        """`order matters`, `on these rows` (it may not on other rows), `nothing to look for` or `unknown`."""
        if self.runs < 2 or not math.isfinite(self.noise):
            return UNKNOWN
        if self.sigma > CLEAR * self.noise:
            return MATTERS
        return ON_THESE_ROWS if self.sigma > NOTHING * self.noise else NOISE

    @property
    def nothing(self) -> bool:
        """Whether a search cannot succeed with these rows."""
        return self.word == NOISE

    @property
    def signal(self) -> float:
        """Standard deviation of the effect of order on any rows, by the formula above; 0 if the noise explains all."""
        return math.sqrt(max(0.0, self.sigma**2 - self.noise**2 / 2))

    @property
    def rows_needed(self) -> float:
        """Approximate number of held-out rows with which the noise of a difference is half of `signal`; NaN if unknown,
        infinite if `signal` is 0."""
        if not self.rows or not math.isfinite(self.held_out):
            return math.nan
        if self.signal == 0:
            return math.inf
        return max(1.0, self.rows * (CLEAR * self.held_out / self.signal) ** 2)

    @property
    def words(self) -> str:
        """The verdict in a sentence."""
        if self.word == UNKNOWN:
            return f"{self.metric}: how much order matters compared with the noise is not known"
        which = "sigma_order of shuffled steps, predicted," if self.shuffled else "sigma_order"
        times = ("more than a thousand" if self.ratio >= MANY else number(self.ratio, 2)) + " times it"
        numbers = f"{which} {number(self.sigma, 2)}, noise of a difference {number(self.noise, 2)}: {times}"
        with_rows = f" with these {self.rows} rows" if self.rows else ""
        if not math.isfinite(self.held_out):
            numbers += "; not known: the noise from the choice of rows, of a metric that is a function of the model"
        if self.word == MATTERS:
            return f"order matters{with_rows} ({numbers})"
        need = self.rows_needed
        more = ""
        if math.isfinite(need) and need > self.rows:
            more = f"; about {need:,.0f} rows would tell orders apart"
        elif need == math.inf:
            more = "; the noise hides any effect: only many times as many rows could show one"
        if self.word == NOISE:
            return f"nothing to look for{with_rows} ({numbers}{more})"
        return f"order matters on these rows, on others perhaps less ({numbers}{more})"

    def as_json(self) -> dict[str, Any]:
        """The verdict as JSON values, null for numbers that are not finite."""
        derived = {"ratio": self.ratio, "word": self.word, "signal": self.signal, "rows_needed": self.rows_needed,
                 "words": self.words}  # fmt: skip
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in
                (asdict(self) | derived).items()}  # fmt: skip


def verdict(sim: Simulator, metric: str, floor: float = math.nan) -> Verdict:
    """The verdict on one metric, from the recorded runs.

    Args:
        sim: the simulator of the run.
        metric: name of the metric.
        floor: the noise floor, in units of the metric; NaN if it was not measured.
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
        sim: the simulator of the run.
        metric: name of the metric.

    Returns:
        The noise, in units of the metric, and the number of rows. For a metric that is not a mean over rows, and
        without probes, the noise is NaN and the number of rows 0.
    """
    if sim.description["metrics"].get(metric) is None or not sim.probes:
        return math.nan, 0
    reference, *probes = losses_of(sim, metric, (REFERENCE, *sim.probes))
    if len(reference) < 2:
        return math.nan, len(reference)
    variances = [np.var(probe - reference, ddof=1) / len(reference) for probe in probes]
    return float(np.sqrt(np.mean(variances))), len(reference)


def losses_of(sim: Simulator, metric: str, runs: Sequence[str]) -> np.ndarray:
    """Losses of all held-out rows at the ends of recorded runs, float64 [runs, rows].

    Args:
        sim: the simulator of the run.
        metric: name of the metric.
        runs: names of recorded runs.
    """
    rows = [load_run(sim.store, run, gradients=False).metric_losses(metric)[-1] for run in runs]
    return np.stack([losses.double().numpy() for losses in rows])
