"""Ask a recorded run: what would the final model have been under another order?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orderscope import __version__
from orderscope.engine import Batches, Replayed, Window, load_window, replay, units_of
from orderscope.engine.calibration import Bearing, Calibration, bearing, debiased, directions, fit_calibration
from orderscope.engine.completed import KnownStates, completed, held_bytes, known_states
from orderscope.engine.metrics import Expansion, MetricModel, evaluated, expanded, load_expansions, member_values
from orderscope.engine.reduce import moved, reduced, reduced_expansion, some_coordinates
from orderscope.engine.replay import FEW_HOMES, MEMBERS
from orderscope.errors import OrderscopeError
from orderscope.hyper import group_rates
from orderscope.names import FURTHER, REFERENCE, TASK_SHARD
from orderscope.orders.checks import check_order, check_orders
from orderscope.record import load_run, require_recorded, true_runs
from orderscope.sketch import SketchPlan, require_probes
from orderscope.store import RunStore
from orderscope.task import Task
from orderscope.threads import one_thread
from orderscope_kernels import reference
from orderscope_kernels.replay import replay_kernels

ENERGY = 0.95
BLOCK_BYTES = 1 << 28
SEARCH_COORDS = 1 << 13
SEARCH_ENERGY = 0.8
FARTHER = 1.5  # than the probe farthest outside the anchors' span, that orders may lie and be trusted
REPLACED = 0.1  # share of the samples that may be others: every probe has the recorded ones, so none tells such errors
KNOWN_STATES = 1024


@dataclass(frozen=True)
class Prediction:
    """What n orders would have led to.

    Args:
        metrics: name -> estimated value, float64 [n].
        error: name -> half-width of a 90 % interval around it, [n].
        trusted: whether the order lies where the estimate was found to hold, has the recorded samples but for a tenth,
            and its interval says more than a guess would, bool [n].
        reference: name -> the recorded value of the reference order.
        sigma_order: name -> standard deviation of the true values of reference and probes: how much order matters here.
        skilled: name -> whether the estimate is better than a constant on the probes.
        outside: how far each order's states lay outside the anchors' span, [n]; not a number for other estimators.
        estimator: which one answered.
        cost: gradient evaluations spent on this answer beside the recording, in runs.
    """

    metrics: dict[str, np.ndarray]
    error: dict[str, np.ndarray]
    trusted: np.ndarray
    reference: dict[str, float]
    sigma_order: dict[str, float]
    skilled: dict[str, bool]
    outside: np.ndarray
    estimator: str
    cost: float = 0.0

    def detectable(self, metric: str) -> np.ndarray:
        """Whether the difference to the reference is larger than its error, bool [n]. One that is predicted, not known,
        counts for nothing where estimates are no better than a constant."""
        error = self.error[metric]
        told = (error == 0) | self.skilled[metric]
        return told & (np.abs(self.metrics[metric] - self.reference[metric]) > error)


@dataclass(frozen=True)
class Trajectory:
    """Estimated metrics along an order.

    Args:
        steps: positions, [k].
        metrics: name -> [k].
        reference: name -> the recorded run's own values there, [k].
    """

    steps: np.ndarray
    metrics: dict[str, np.ndarray]
    reference: dict[str, np.ndarray] = field(default_factory=dict)


class Simulator:
    """Estimates for any order of a recorded run.

    Args:
        path: a run, as a directory or packed.
        task: the recorded task; may be left out where only metrics with a stored expansion are asked.
        energy: share of the curvature's trace that is kept.
        device: where orders are replayed, for instance "cuda"; the CPU if not given. Only replays are done there: the
            metrics' model and what is asked of the simulator stay where they are.

    Raises:
        OrderscopeError: the task is not the recorded one; the differing parts are named. Or there is no such device.
        IncompleteRun: record or sketch is not finished.
        DamagedRun: a file is not what was written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        task: Task | None = None,
        *,
        energy: float = ENERGY,
        device: str | torch.device | None = None,
    ) -> None:
        self.store = RunStore.open(path)
        self.path, self.task, self.energy, self.device = path, task, energy, _usable_device(device)
        if task is not None:
            require_recorded(task, self.store)
        self.plan = SketchPlan.read(self.store)
        require_probes(self.store, self.plan)
        self.window = load_window(self.store, energy=energy)
        self.description = self.store.attrs(TASK_SHARD)
        self._batches = Batches(self.window.order)
        self._reference = load_run(self.store, REFERENCE).metrics[-1]

    @property
    def order(self) -> np.ndarray:
        """The reference order, int64 [steps, batch]."""
        return self.window.order

    @property
    def reference(self) -> dict[str, float]:
        """The recorded final metrics of the reference order."""
        return self._reference

    @cached_property
    def runs(self) -> tuple[str, ...]:
        """Names of the true runs under other orders: the probes, and what was trained since."""
        return tuple(run for run in true_runs(self.store) if run != REFERENCE)

    @cached_property
    def run_orders(self) -> np.ndarray:
        """Their orders, [runs, steps, batch]."""
        return np.stack([load_run(self.store, run).order for run in self.runs])

    @cached_property
    def run_truth(self) -> dict[str, np.ndarray]:
        """Their true final metrics, name -> [runs]."""
        found = [load_run(self.store, run).metrics[-1] for run in self.runs]
        return {name: np.array([m[name] for m in found]) for name in self.reference}

    @cached_property
    def probes(self) -> tuple[str, ...]:
        """Names of the runs under orders that were drawn to be recorded."""
        return tuple(run for run in self.runs if not run.startswith(FURTHER))

    @cached_property
    def probe_orders(self) -> np.ndarray:
        """Their orders, [probes, steps, batch]."""
        return self.run_orders[[self.runs.index(probe) for probe in self.probes]]

    @cached_property
    def truth(self) -> dict[str, np.ndarray]:
        """True final metrics of the probes, name -> [probes]."""
        rows = [self.runs.index(probe) for probe in self.probes]
        return {name: values[rows] for name, values in self.run_truth.items()}

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Metrics that can be asked."""
        return tuple(self.plan.metrics if self._by == "expanded" else self.reference)

    @property
    def exact(self) -> bool:
        """Whether all coordinates are carried, so that the real model can be run at estimated weights."""
        return self.plan.carried == self.plan.size

    @property
    def eps(self) -> float:
        """Machine epsilon of the weights, and so of the metrics."""
        return torch.finfo(self.window.final.dtype).eps

    @property
    def _by(self) -> str:
        """What tells the metrics of estimated weights: the real model at them or near them, or expansions alone."""
        if self.task is None:
            return "expanded"
        if self.exact:
            return "evaluated"
        states = len(self.plan.anchors) + len(self.runs)
        held = held_bytes(states, self.plan.size, self.task.layout.dtype.itemsize)
        return "completed" if held else "expanded"

    @cached_property
    def metric_model(self) -> MetricModel:
        return self._metric_model()

    def _metric_model(self, without: Sequence[str] | None = None) -> MetricModel:
        """`without`: for each order a run that is not to be used."""
        if self._by == "expanded":
            return self.expansion_model
        assert self.task is not None
        if self._by == "evaluated":
            return evaluated(self.task)
        return completed(self.task, self._known, self._expansions, without)

    @cached_property
    def _known(self) -> KnownStates:
        return known_states(self.store, self.plan)

    @cached_property
    def expansion_model(self) -> MetricModel:
        """The stored expansions: quicker than the real model."""
        return expanded(self._expansions)

    @cached_property
    def _expansions(self) -> dict[str, Expansion]:
        return load_expansions(self.store, self.window.final, self.reference, self.window.dynamics.weight)

    @cached_property
    def calibration(self) -> dict[str, Calibration]:
        """Fitted on every true run predicted without its own anchors."""
        raw, _, at = self._left_out
        truth, reference, eps = self.run_truth, self.reference, self.eps
        return {n: fit_calibration(raw[n], truth[n], reference[n], at, eps=eps) for n in self.metric_names}

    def bearing(self, replayed: Replayed) -> Bearing:
        """Where replays of `window` led, for a calibration."""
        return bearing(replayed.theta[0], replayed.outside, self.window.final, self._left_out[1])

    @cached_property
    def _left_out(self) -> tuple[dict[str, np.ndarray], Tensor, Bearing]:
        """The true runs, each predicted without its own anchors: members' values, name -> [3, runs], directions of
        their displacements [runs, m], and bearing.

        Kept in the run once computed, where it can be written to: it takes the time of some training runs.
        """
        names = self.metric_names
        if not self.runs:
            nowhere = torch.zeros(0, self.window.coords)
            return {n: np.zeros((3, 0)) for n in names}, nowhere, Bearing(np.zeros(0), np.zeros((0, 0)))
        name = f"calibration/{self._by}-{len(self.runs):03d}"
        settings = {"energy": self.energy, "metrics": list(names), "version": __version__}
        if name in self.store and self.store.attrs(name) == settings:
            kept = self.store.read(name)
        else:
            runs = np.array(self.window.anchor_runs)
            allowed = torch.from_numpy(np.stack([runs != run for run in self.runs]))
            raw, theta, outside = self._raw(self.run_orders, names, allowed=allowed, without=self.runs)
            kept = {"values": np.stack([raw[n] for n in names]), "outside": outside.numpy(),
                    "directions": directions(theta, self.window.final).numpy()}  # fmt: skip
            if name not in self.store and Path(self.path).is_dir():
                with (
                    suppress(OSError, OrderscopeError),
                    RunStore.create(self.path) as store,
                ):  # read-only, or being written
                    store.write(name, kept, settings)
        pointing = torch.from_numpy(kept["directions"])
        at = Bearing(kept["outside"], (pointing @ pointing.T).double().numpy())
        return dict(zip(names, kept["values"], strict=True)), pointing, at

    def predict(
        self,
        orders: Any,
        estimator: str = "carried",
        *,
        lr: Any = None,
        metrics: Sequence[str] | None = None,
        allow_other_samples: bool = False,
    ) -> Prediction:
        """Estimate the final metrics under other orders.

        Args:
            orders: sample ids, [n, steps, batch] or one order [steps, batch].
            estimator: "carried", or the baselines "replay", "fut", "fut2".
            lr: learning rates to use instead of the recorded ones. [steps] or [n, steps]: of the first parameter group
                whose recorded rate is above 0 at that step; the other groups keep their ratio to it, and a group at 0
                stays at 0. [steps, groups] or [n, steps, groups]: of every group; see `orderscope.hyper.group_rates`.
            metrics: names to estimate; all by default.
            allow_other_samples: accept orders that are not rearrangements of the recorded samples.

        Raises:
            OrderscopeError: for orders, learning rates, metrics or an estimator that do not fit.
        """
        checked = self._checked(orders, allow_other_samples)
        names = self._names(metrics)
        rates = self._rates(lr, len(checked))
        if estimator != "carried":
            return self._baseline(estimator, checked, names, rates)
        values, errors, outside = self._carried(checked, names, rates)
        if rates is None:
            self._tell_truth(checked, values, errors, outside)
        near = self._inside(outside)
        if allow_other_samples:
            near &= self._replaced(checked) <= REPLACED
        skilled = {name: self.calibration[name].skilled for name in names}
        finite = np.all([np.isfinite(v) for v in values.values()], axis=0)
        telling = np.any([skilled[n] & (errors[n] <= self.calibration[n].guess) for n in names], axis=0)
        return Prediction(
            metrics=values,
            error=errors,
            trusted=near & finite & telling,
            reference={name: self.reference[name] for name in names},
            sigma_order={name: self.sigma_order(name) for name in names},
            skilled=skilled,
            outside=outside,
            estimator=estimator,
        )

    def _tell_truth(
        self, orders: np.ndarray, values: dict[str, np.ndarray], errors: dict[str, np.ndarray], outside: np.ndarray
    ) -> None:
        """Put in what is known of orders that were trained after recording: with samples regrouped their batches have
        no anchors at which a replay would be exact."""
        known = {self.run_orders[i].tobytes(): i for i, run in enumerate(self.runs) if run.startswith(FURTHER)}
        for k, order in enumerate(orders):
            if (run := known.get(order.tobytes())) is not None:
                outside[k] = 0.0
                for name in values:
                    values[name][k], errors[name][k] = self.run_truth[name][run], 0.0

    def parameters(self, order: Any, *, lr: Any = None, allow_other_samples: bool = False) -> dict[str, Tensor]:
        """Estimated final weights of an order by parameter name: the mean over the two halves of the curvature, whose
        noise is independent. Where only some coordinates are carried, the others are interpolated between the recorded
        runs' final weights. With the task, weights that are not trained are among them, as the model has them.
        """
        checked = self._checked(check_order(order, self.order, allow_other_samples=allow_other_samples), True)
        theta = self._replay(checked, self._rates(lr, 1)).theta[1:].mean(0)[0]
        if not self.exact:
            carried, (theta, _) = theta, self._known.interpolated(theta)
            theta[self._known.indices] = carried
        found, start = {}, 0
        for parameter in self.description["parameters"]:
            size = int(np.prod(parameter["shape"]))
            found[parameter["name"]] = theta[start : start + size].view(parameter["shape"]).clone()
            start += size
        if self.task is not None:
            every = self.task.build_model().named_parameters()
            found = {name: found.get(name, weights.detach()) for name, weights in every}
        return found

    def trajectory(self, order: Any, *, lr: Any = None, metrics: Sequence[str] | None = None) -> Trajectory:
        """Estimated metrics of an order at the steps of the reference run's anchors.

        What calibration adds at the end is added along the way in proportion to the steps taken.
        """
        names = self._names(metrics)
        reference = load_run(self.store, REFERENCE)
        steps = reference.boundaries
        checked = self._checked(order, False)
        replayed = self._replay(checked, self._rates(lr, 1), snapshots=steps.tolist())
        rows = torch.cat([replayed.snapshots[int(s)] for s in steps], dim=1)  # [members, k, m]
        raw = member_values(self.metric_model, self._expansions, rows, names)
        at = self.bearing(replayed)
        values = {}
        for name, members in raw.items():
            told = debiased(members, self.calibration[name].sigma)
            shift = self.calibration[name].apply(members[:, -1:], at)[0][0] - told[-1]
            values[name] = told + shift * steps / steps[-1]
        return Trajectory(
            steps=steps,
            metrics=values,
            reference={n: np.array([m[n] for m in reference.metrics]) for n in names},
        )

    def sigma_order(self, metric: str) -> float:
        """Standard deviation of the metric over reference and probes: how much order matters here."""
        values = np.append(self.truth[metric], self.reference[metric]) if self.probes else np.zeros(2)
        return float(values.std(ddof=1))

    def score(self, orders: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Estimated values and errors of many orders for a search, [n] each; see `scores`."""
        values, errors = self.scores(orders, (metric,))
        return values[metric], errors[metric]

    def scores(
        self, orders: np.ndarray, metrics: tuple[str, ...]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Estimated values and errors of many orders for a search, name -> [n].

        Quicker and rougher than `predict`: on at most `SEARCH_COORDS` coordinates, with the leading curvature, and the
        metrics by their expansions.
        """
        window, expansions, pointing = self._search
        with one_thread():
            raw: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
            places: list[Bearing] = []
            for rows in self._blocks(len(orders), window.coords):
                units = units_of(self.window, self._batches, orders[rows])
                replayed = replay(window, units, members=1, homes=FEW_HOMES)
                for name, values in expanded(expansions)(replayed.theta[0], metrics).items():
                    raw[name].append(values)
                found = replayed.cpu()
                places.append(bearing(found.theta[0], found.outside, window.final.cpu(), pointing))
        at = Bearing(np.concatenate([p.outside for p in places]), np.concatenate([p.alike for p in places]))
        told = {name: self.calibration[name].apply(np.concatenate(raw[name])[None], at) for name in metrics}
        return {n: value for n, (value, _) in told.items()}, {n: error for n, (_, error) in told.items()}

    @cached_property
    def _search(self) -> tuple[Window, dict[str, Expansion], Tensor]:
        chosen = some_coordinates(self.window, SEARCH_COORDS, self.plan.seed)
        own = self.window.anchors.own.flatten(0, 1)
        some = torch.linspace(0, len(own) - 1, min(KNOWN_STATES, len(own))).round().long()
        states = torch.cat([own[some], self.window.anchors.shared])
        expansions = {
            name: moved(reduced_expansion(e, states, chosen), self.device) for name, e in self._expansions.items()
        }
        plain = replay_kernels(self.window.dynamics.start.theta.to(self.device)) is reference
        dtype = None if plain else torch.bfloat16  # the plain reference is no quicker on short tables
        pointing = self._left_out[1][:, chosen]
        pointing = directions(pointing, torch.zeros_like(chosen, dtype=pointing.dtype))
        window = reduced(self.window, chosen, energy=SEARCH_ENERGY, dtype=dtype, halves=False).to(self.device)
        return window, expansions, pointing

    @cached_property
    def _replayed_window(self) -> Window:
        return self.on_device(self.window)

    def on_device(self, window: Window) -> Window:
        """A window where orders are replayed."""
        return window if self.device.type == "cpu" else window.to(self.device)

    def replay_of(self, orders: np.ndarray, **options: Any) -> Replayed:
        """Replays of orders [n, steps, batch] on all carried coordinates, done on the simulator's device and brought
        back to the CPU.

        Args:
            options: of `orderscope.engine.replay`.
        """
        units = units_of(self.window, self._batches, orders)
        with one_thread():
            return replay(self._replayed_window, units, **options).cpu()

    def _carried(
        self, orders: np.ndarray, names: tuple[str, ...], rates: np.ndarray | None
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
        raw, theta, outside = self._raw(orders, names, rates=rates)
        at = bearing(theta, outside, self.window.final, self._left_out[1])
        values, errors = {}, {}
        for name in names:
            values[name], errors[name] = self.calibration[name].apply(raw[name], at)
        return values, errors, at.outside

    def _raw(
        self,
        orders: np.ndarray,
        names: tuple[str, ...],
        *,
        rates: np.ndarray | None = None,
        allowed: Tensor | None = None,
        without: Sequence[str] | None = None,
    ) -> tuple[dict[str, np.ndarray], Tensor, Tensor]:
        """Values of the three members before calibration, name -> [3, n], final weights [n, m] and `outside` [n]."""
        parts: list[dict[str, np.ndarray]] = []
        outside, final = [], []
        for rows in self._blocks(len(orders), MEMBERS * self.window.coords):
            replayed = self._replay(
                orders[rows], None if rates is None else rates[rows], None if allowed is None else allowed[rows]
            )
            model = self.metric_model if without is None else self._metric_model(without[rows])
            parts.append(member_values(model, self._expansions, replayed.theta, names))
            outside.append(replayed.outside)
            final.append(replayed.theta[0])
        values = {name: np.concatenate([p[name] for p in parts], axis=1) for name in names}
        return values, torch.cat(final), torch.cat(outside)

    def _replay(
        self,
        orders: np.ndarray,
        rates: np.ndarray | None,
        allowed: Tensor | None = None,
        snapshots: Sequence[int] = (),
    ) -> Replayed:
        return self.replay_of(orders, lr=rates, allowed=allowed, snapshots=snapshots)

    def _blocks(self, count: int, numbers: int) -> list[slice]:
        """Orders at once: about six vectors of `numbers` float32 each within `BLOCK_BYTES`."""
        block = max(1, BLOCK_BYTES // (numbers * 4 * 6))
        return [slice(start, min(start + block, count)) for start in range(0, count, block)]

    def _inside(self, outside: np.ndarray) -> np.ndarray:
        seen = [c.farthest for c in self.calibration.values() if c.farthest > 0]
        return outside <= FARTHER * max(seen) if seen else np.zeros(len(outside), dtype=bool)

    def _replaced(self, orders: np.ndarray) -> np.ndarray:
        """Share of the recorded samples that others stand in for, [n]."""
        recorded = self._counts(self.order)
        return np.array([np.maximum(recorded - self._counts(o), 0).sum() for o in orders]) / self.order.size

    def _counts(self, order: np.ndarray) -> np.ndarray:
        return np.bincount(order.ravel(), minlength=self.description["samples"])

    def _checked(self, orders: Any, allow_other_samples: bool) -> np.ndarray:
        samples = self.description["samples"]
        return check_orders(orders, self.order, samples=samples, allow_other_samples=allow_other_samples)

    def _names(self, metrics: Sequence[str] | None) -> tuple[str, ...]:
        if metrics is None:
            return self.metric_names
        for name in metrics:
            if name not in self.metric_names:
                raise OrderscopeError(
                    f"metric {name!r}", "one of " + (", ".join(self.metric_names) or "none"), "name a recorded metric"
                )
        return tuple(metrics)

    def _rates(self, lr: Any, count: int) -> np.ndarray | None:
        return None if lr is None else group_rates(lr, self.window.dynamics.hyper["lr"], count)

    def _baseline(
        self, estimator: str, orders: np.ndarray, names: tuple[str, ...], rates: np.ndarray | None
    ) -> Prediction:
        from orderscope.engine.baselines import ESTIMATORS

        if estimator not in ESTIMATORS:
            raise OrderscopeError(
                f"estimator {estimator!r}", "one of carried, " + ", ".join(ESTIMATORS), "choose one of these"
            )
        values, cost = ESTIMATORS[estimator](self, orders, names, rates)
        unknown = {name: np.full(len(orders), np.nan) for name in names}
        return Prediction(
            metrics=values,
            error=unknown,
            trusted=np.zeros(len(orders), dtype=bool),
            reference={name: self.reference[name] for name in names},
            sigma_order={name: self.sigma_order(name) for name in names},
            skilled=dict.fromkeys(names, False),
            outside=np.full(len(orders), np.nan),
            estimator=estimator,
            cost=cost,
        )


def _usable_device(device: str | torch.device | None) -> torch.device:
    try:
        found = torch.device(device or "cpu")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise OrderscopeError(
            f"device {str(device)!r}: {str(error).splitlines()[0]}",
            "a device that torch can use here, as cpu or cuda",
            "leave out device=, or run `orderscope doctor` to see what there is",
        ) from error
    return found
