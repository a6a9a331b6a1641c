"""Search for a better learning-rate schedule from the same recorded run, alone or together with the order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from orderscope.baselines.annealing import AnnealingLaw, fit_annealing_law
from orderscope.baselines.learning_curve import PowerLaw, fit_power_law
from orderscope.engine import Batches
from orderscope.errors import OrderscopeError, check_whole, unknown_metric
from orderscope.orders.checks import check_orders
from orderscope.schedules import SCHEDULES, refined, rewarm
from orderscope.search.portfolio import Progress
from orderscope.search.strategy import CAUTION
from orderscope.simulation.simulator import Simulator
from orderscope.store.names import REFERENCE
from orderscope.task import Task
from orderscope.task.hyper import group_rates, leading_rates
from orderscope.training import load_run, true_runs
from orderscope.training.retrain import own_hyper, retrain
from orderscope.training.setup import RecordedSchedule

PEAKS = (0.5, 0.7, 1.0, 1.4, 2.0)
WARMUPS = (0.0, 0.1, 0.25)
FLOORS = (0.0, 0.1)
DECAYS = (0.2, 0.4)
ROUNDS, NEAR = 3, 6  # rounds of refining the best schedule, and neighbours tried in each
AT_ONCE = 16  # schedules predicted in one call
BACKFITS = 50  # iterations of the additive fit of position and batch


@dataclass(frozen=True)
class Schedule:
    """One schedule that was scored.

    Args:
        name: such as `cosine peak 0.7 warmup 2 floor 0.1`, the peak relative to the recorded one.
        rates: learning rate of the leading parameter group at each position, [steps].
        order: index of the order that it was scored with; -1 for the recorded order.
        predicted, error: estimated metric and half-width of its 90 % interval.
        law: the metric by the scaling law with annealing, or None if the law could not be fitted.
        confirmed: true metric from retraining, or None.
    """

    name: str
    rates: np.ndarray
    order: int
    predicted: float
    error: float
    law: float | None = None
    confirmed: float | None = None


@dataclass(frozen=True)
class RateProposal:
    """The best schedule found, with its order.

    Args:
        rates: learning rate at each position, [steps]; the recorded ones if nothing better was found.
        order: sample ids, int64 [steps, batch].
        predicted, error, confirmed: as in `Schedule`.
        metric: name of the metric.
        reference: value of the metric as recorded.
        table: every schedule that was scored: confirmed ones first, then by score.
        law: the fitted scaling law, or None.
        notes: remarks for the reader.
        curve: the fitted learning curve, or None. It depends on neither rates nor order, and extrapolates to a longer
            run of the same kind.
    """

    rates: np.ndarray
    order: np.ndarray
    predicted: float
    error: float
    confirmed: float | None
    metric: str
    reference: float
    table: list[Schedule]
    law: AnnealingLaw | None = None
    notes: list[str] = field(default_factory=list)
    curve: PowerLaw | None = None


def propose_rates(
    sim: Simulator,
    metric: str = "eval",
    *,
    orders: Any = None,
    verify: int = 3,
    maximize: bool = False,
    peaks: Sequence[float] = PEAKS,
    seed: int = 0,
    progress: Progress | None = None,
) -> RateProposal:
    """Search for a learning-rate schedule with a better final metric, and confirm the best by training them.

    Candidates are constant, linear, cosine, REX and stable-then-decay schedules over peaks, warm-ups and floors; the
    recorded schedule scaled, and re-warmed half way; the linear decay refined by the recorded gradient norms; then
    neighbours of the best. Rates are those of the first parameter group whose rate is above 0; the other groups keep
    their ratio to it.

    The probes were trained at the recorded rates, so the predicted error does not cover other rates. Confirm by
    retraining (`verify`).

    Args:
        sim: the simulator of the run.
        metric: a recorded metric to minimise.
        orders: orders to search together with the schedules, [n, steps, batch]; by default the recorded one.
        verify: number of the best schedules to retrain; 0 without `sim.task`.
        maximize: True to maximise the metric.
        peaks: peak rates to try, relative to the recorded one.
        seed: seed for the random neighbours of the best schedule.
        progress: called as `progress(stage, done, total)`.

    Raises:
        OrderscopeError: for an unknown metric, an order of another shape, a peak that is not positive, or if no
            prediction is finite.
    """
    if metric not in sim.metric_names:
        raise unknown_metric(metric, sim.metric_names)
    check_whole(0, verify=verify)
    if not len(peaks) or not np.isfinite(peaks).all() or min(peaks) <= 0:
        raise OrderscopeError(f"peaks={list(peaks)}", "at least one, finite and above 0", "change peaks=")
    sign, notes = -1.0 if maximize else 1.0, []
    checked = sim.order[None] if orders is None else check_orders(orders, sim.order)
    recorded = recorded_rates(sim)
    law = annealing_law(sim)
    if law is None:
        notes.append("the scaling law with annealing could not be fitted to the recorded losses")
    scored: dict[tuple[int, bytes], Schedule] = {}

    def score(tried: dict[str, np.ndarray], which: Sequence[int]) -> None:
        new = [(k, name, r) for k in which for name, r in tried.items() if (k, r.tobytes()) not in scored]
        for start in range(0, len(new), AT_ONCE):
            part = new[start : start + AT_ONCE]
            prediction = sim.predict(
                np.stack([checked[k] for k, *_ in part]), lr=np.stack([r for *_, r in part]), metrics=[metric]
            )
            for (k, name, r), value, error in zip(
                part, prediction.metrics[metric], prediction.error[metric], strict=True
            ):
                by_law = None if law is None else law_value(sim, law, metric, r)
                scored[k, r.tobytes()] = Schedule(name, r, k, float(value), float(error), by_law)
            if progress is not None:
                progress("schedules", len(scored), len(scored) + len(new) - start - len(part))

    def ranked() -> list[Schedule]:
        finite = [s for s in scored.values() if np.isfinite(s.predicted)]
        return sorted(finite, key=lambda s: sign * s.predicted + CAUTION * (s.error if np.isfinite(s.error) else 0.0))

    score({"recorded": recorded}, range(len(checked)))
    first = int(ranked()[0].order) if ranked() else 0
    score(schedules_to_try(recorded, gradient_norms(sim), peaks), [first])
    rng = np.random.default_rng(seed)
    for _ in range(ROUNDS):
        if ranked():
            score(neighbours_of(ranked()[0], recorded, rng), [ranked()[0].order])
    if ranked():
        score({ranked()[0].name: ranked()[0].rates}, range(len(checked)))  # the best schedule with every order
    rows = ranked()
    if not rows:
        raise OrderscopeError(
            f"no finite score of metric {metric!r}", "estimates that are finite", "try smaller peaks, peaks=(0.5, 1)"
        )
    if sim.task is None and verify:
        notes.append("not confirmed: retraining needs the task")
    elif sim.task is not None:
        if progress is not None and verify:
            progress("confirm", 0, min(verify, len(rows)))
        for k, row in enumerate(rows[:verify]):
            true = retrain(sim.task, checked[row.order], lr=row.rates).metrics[metric][0]
            rows[k] = replace(row, confirmed=float(true))
            if progress is not None:
                progress("confirm", k + 1, min(verify, len(rows)))
    reference = sim.reference[metric]
    as_recorded = Schedule("recorded", recorded, -1, reference, 0.0, confirmed=reference)
    trained = [row for row in rows if row.confirmed is not None and np.isfinite(row.confirmed)]

    def worth(row: Schedule) -> float:
        return sign * (row.predicted if row.confirmed is None else row.confirmed)

    best = min([as_recorded, *(trained or rows[:1])], key=worth)
    if best is as_recorded:
        notes.append("no better schedule than the recorded one was found")
    table = sorted(rows, key=lambda s: (s.confirmed is None, 0.0 if s.confirmed is None else worth(s)))
    order = sim.order if best.order < 0 else checked[best.order]
    return RateProposal(
        best.rates,
        order,
        best.predicted,
        best.error,
        best.confirmed,
        metric,
        reference,
        table,
        law,
        notes,
        fit_power_law(training_curve(sim)),
    )


def schedules_to_try(recorded: np.ndarray, norms: np.ndarray, peaks: Sequence[float]) -> dict[str, np.ndarray]:
    """A grid of schedules, name -> rates [steps].

    Args:
        recorded: rates of the leading parameter group as recorded, [steps].
        norms: norms of the recorded gradients, [steps].
        peaks: peak rates, relative to the recorded one.
    """
    steps, top = len(recorded), float(recorded.max())
    tried: dict[str, np.ndarray] = {}
    for peak in peaks:
        tried[f"recorded x{peak:g}"] = recorded * peak
        tried[f"refined peak {peak:g}"] = refined(norms, peak * top)
        tried[f"re-warmed peak {peak:g}"] = rewarm(recorded * peak, steps // 2, warmup=max(0, steps // 20))
        for share in sorted({round(w * steps) for w in WARMUPS}):
            for kind, make in SCHEDULES.items():
                options = _options(kind)
                for some in options:
                    text = " ".join(f"{key} {value:g}" for key, value in some.items())
                    tried[f"{kind} peak {peak:g} warmup {share} {text}".strip()] = make(
                        steps, peak * top, warmup=share, **some
                    )
    return tried


def neighbours_of(best: Schedule, recorded: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random neighbours of a schedule, name -> rates [steps]: scaled, and tilted towards its beginning or its end.

    Args:
        best: the schedule to start from.
        recorded: rates of the leading parameter group as recorded, [steps].
        rng: random numbers.
    """
    steps = len(recorded)
    x = np.linspace(0, 1, steps)
    tried = {}
    for _ in range(NEAR):
        scale, tilt = float(np.exp(0.15 * rng.normal())), 0.3 * float(rng.normal())
        tried[f"{best.name} x{scale:.3g} tilt {tilt:.2g}"] = best.rates * scale * np.exp(tilt * (x - 0.5))
    return tried


def with_rates(task: Task, rates: Any) -> Task:
    """A copy of a task with other learning rates.

    Args:
        task: the task.
        rates: learning rates, [steps] or [steps, groups], as `Simulator.predict` takes them.
    """
    recorded = own_hyper(task)
    hyper = recorded | {"lr": group_rates(rates, recorded["lr"], 1)[0]}
    return replace(task, scheduler=lambda optimizer: RecordedSchedule(optimizer, hyper))


def recorded_rates(sim: Simulator) -> np.ndarray:
    """Recorded learning rates of the leading parameter group, [steps]; see `orderscope.task.hyper.leading_rates`."""
    return leading_rates(sim.window.dynamics.hyper["lr"])


def gradient_norms(sim: Simulator) -> np.ndarray:
    """Median over the recorded runs of the gradient norm at each position, [steps]."""
    return np.median([load_run(sim.store, run).grad_norm.double().numpy() for run in true_runs(sim.store)], axis=0)


def annealing_law(sim: Simulator) -> AnnealingLaw | None:
    """The scaling law with annealing, fitted to `training_curve`; None if it cannot be fitted."""
    return fit_annealing_law(training_curve(sim), recorded_rates(sim))


def training_curve(sim: Simulator) -> np.ndarray:
    """Training loss at each position over the recorded runs, with the effect of each batch removed, [steps]."""
    runs = [load_run(sim.store, run) for run in true_runs(sim.store)]
    losses = np.stack([run.loss.double().mean(1).numpy() for run in runs])
    units = Batches(sim.order).index(np.stack([run.order for run in runs]))[0]
    return position_effect(losses, units)


def position_effect(losses: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The position's part of an additive fit, loss = position + batch, by backfitting, [steps].

    Args:
        losses: training loss at each position, [runs, steps].
        units: index of the batch at each position, [runs, steps].
    """
    batch, count = np.zeros(units.max() + 1), np.bincount(units.ravel())
    position = losses.mean(0)
    for _ in range(BACKFITS):
        left = np.bincount(units.ravel(), weights=(losses - position).ravel())
        batch = left / np.maximum(count, 1)
        position = (losses - (batch - batch.mean())[units]).mean(0)
    return position


def law_value(sim: Simulator, law: AnnealingLaw, metric: str, rates: np.ndarray) -> float:
    """The metric by the scaling law: the recorded value plus the change of the law's final loss, converted to the
    metric by regressing the metric on the law over the reference run's anchors.

    Args:
        sim: the simulator of the run.
        law: training loss as a function of learning rates, fitted to the recorded losses.
        metric: name of the metric.
        rates: learning rates of the leading parameter group, [steps].
    """
    run = load_run(sim.store, REFERENCE)
    recorded = recorded_rates(sim)
    along = law.losses(recorded)
    at = np.clip(run.boundaries.astype(int) - 1, 0, len(along) - 1)
    values = np.array([m[metric] for m in run.metrics])
    x, y = along[at] - along[at].mean(), values - values.mean()
    slope = float(x @ y / (x @ x)) if x @ x > 0 else 1.0
    return sim.reference[metric] + slope * float(law.losses(rates)[-1] - along[-1])


def _options(kind: str) -> list[dict[str, float]]:
    if kind == "constant":
        return [{}]
    if kind == "stable_then_decay":
        return [{"decay": decay} for decay in DECAYS]
    return [{"floor": floor} for floor in FLOORS]
