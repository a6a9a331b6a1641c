"""The simulator: predicts the final model and its metrics under other orders of a recorded run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orderscope.engine import Replayed
from orderscope.engine.at_once import at_once
from orderscope.engine.calibration import Bearing, Calibration, directions, fit_calibration
from orderscope.engine.completed import completed
from orderscope.engine.held_out import Missed
from orderscope.engine.metrics import MetricModel, evaluated
from orderscope.engine.threads import one_thread
from orderscope.engine.units import own_shares, sorts_more
from orderscope.errors import OrderscopeError, unknown_metric
from orderscope.orders.checks import check_order, check_orders
from orderscope.simulation import trusted
from orderscope.simulation.along import along
from orderscope.simulation.calibrations import Calibrations
from orderscope.simulation.effort import ProxyEstimator, proxy_errs_less
from orderscope.simulation.opened import OpenedRun
from orderscope.simulation.prediction import Prediction, Trajectory
from orderscope.simulation.trusted import near_anchors
from orderscope.store.names import REFERENCE
from orderscope.task.hyper import group_rates
from orderscope.training import load_run


class Simulator(OpenedRun):
    """Predictions for any order of a recorded run.

    Args:
        path: a run, as a directory or packed.
        task: the recorded task; needed for metrics that are not held-out losses, for held-out losses with `precise`,
            and for training.
        device: the device on which orders are replayed, such as "cuda"; the CPU by default. Metrics are computed on
            the CPU, and results are returned there.

    Attributes:
        progress: if set, called as `progress(stage, done, total)` while the model is evaluated.

    Raises:
        OrderscopeError: the task is not the recorded one (the message names the parts that differ), or the device
            cannot be used.
        IncompleteRun: recording or sketching is not finished.
        DamagedRun: a file is missing or was changed.
    """

    def _real(self, without: Sequence[str] | None = None, each: Callable[[], None] | None = None) -> MetricModel:
        """The task's model as a function of estimated weights.

        Args:
            without: for each order a run whose states are not used.
            each: called after every evaluation of the model.
        """
        assert self.task is not None
        if self.exact:
            return evaluated(self.task, each)
        return completed(self.task, self._known, self.held_out, without, each)

    def _evaluations(self, names: Sequence[str], count: int) -> Callable[[], None] | None:
        """A function that reports each evaluation of the model to `progress`."""
        progress, what, done = self.progress, ", ".join(names), iter(range(1, count + 1))
        if progress is None:
            return None
        progress(f"run the model, {what}", 0, count)
        return lambda: progress(f"run the model, {what}", next(done), count)

    def metric_model(self, theta: Tensor, names: Sequence[str], *, precise: bool = False) -> dict[str, np.ndarray]:
        """Metrics at weights on the carried coordinates, before calibration.

        Args:
            theta: [rows, m].
            names: names of metrics.
            precise: compute held-out losses with the task's model too.

        Returns:
            Name -> value, float64 [rows].
        """
        return self._measured(theta, names, precise, None)

    def _measured(
        self, theta: Tensor, names: Sequence[str], precise: bool, without: Sequence[str] | None
    ) -> dict[str, np.ndarray]:
        losses = [name for name in names if name in self.losses and not precise]
        values = self.held_out(theta, losses, without) if self.held_out is not None and losses else {}
        real = tuple(name for name in names if name not in losses)
        return values | (self._real(without, self._evaluations(real, len(theta)))(theta, real) if real else {})

    @cached_property
    def calibration(self) -> Mapping[str, Calibration]:
        """Metric -> calibration, fitted on first access on the true runs, each predicted without its own anchors."""
        return self._calibrations(precise=False)

    @cached_property
    def _precise(self) -> Mapping[str, Calibration]:
        return self._calibrations(precise=True)

    def _calibrations(self, *, precise: bool) -> Mapping[str, Calibration]:
        return Calibrations(lambda: self.losses or self.metric_names, lambda name: self._calibrated(name, precise))

    def _calibrated(self, name: str, precise: bool) -> Calibration:
        out = self.left_out
        if name in out.values and not precise:
            raw = out.values[name]
        else:
            raw = self._measured(out.theta, (name,), precise, out.runs)[name] if out.runs else np.zeros(0)
        pushed = self.pushed(out.theta, name, out.runs)
        return fit_calibration(
            raw, self.run_truth[name], self.reference[name], self.left_out_bearing, pushed=pushed, eps=self.eps
        )

    @cached_property
    def _missed(self) -> Missed | None:
        return self.held_out.missed(self.left_out.runs, self.left_out.theta) if self.held_out and self.runs else None

    def pushed(self, theta: Tensor, name: str, without: Sequence[str] | None = None) -> np.ndarray | None:
        """The change of a held-out loss if the weights were off by the error of each left-out run, [n, runs]; None for
        metrics that are not held-out losses.

        Args:
            theta: weights on the carried coordinates, [n, m].
            name: name of the loss.
            without: for each row of `theta` a run, or several, whose states are not used.
        """
        if self.held_out is None or self._missed is None or name not in self.losses:
            return None
        return self.held_out.pushed(theta, name, self._missed, without)

    @cached_property
    def _pointing(self) -> Tensor:
        return directions(self.left_out.theta, self.window.final)

    def bearing(self, replayed: Replayed) -> Bearing:
        """The bearing of replays, which a calibration depends on."""
        return self._bearing(
            replayed.theta, replayed.outside.numpy(), replayed.regrouped.numpy(), replayed.sorting.numpy()
        )

    @cached_property
    def left_out_bearing(self) -> Bearing:
        """The bearing of the true runs, each predicted without its own states."""
        out = self.left_out
        return self._bearing(out.theta, out.outside, self.regrouped(self.run_orders), self.sorting(self.run_orders))

    def _bearing(self, theta: Tensor, outside: np.ndarray, regrouped: np.ndarray, sorting: np.ndarray) -> Bearing:
        alike = directions(theta, self.window.final) @ self._pointing.T
        return Bearing(outside, alike.double().numpy(), regrouped, sorting)

    def predict(
        self,
        orders: Any,
        estimator: str | None = None,
        *,
        effort: float | None = None,
        lr: Any = None,
        metrics: Sequence[str] | None = None,
        allow_other_samples: bool = False,
        precise: bool = False,
    ) -> Prediction:
        """Estimate the final metrics under other orders.

        Args:
            orders: sample ids, [n, steps, batch] or one order [steps, batch].
            estimator: "carried"; "proxy", which trains on a few samples of each batch; "auto", the proxy if it errs
                less on the left-out true runs (see `orderscope.simulation.effort.proxy_errs_less`), else "carried"; or
                the baselines "impulse", "fut", "fut2". By default "carried", or "auto" if an effort is given.
            effort: share of each batch's samples that the proxy trains on, which is also its cost per order in runs; an
                eighth by default. Proxies of the recorded runs are trained on first use, and stored.
            lr: learning rates that replace the recorded ones. [steps] or [n, steps]: of the first parameter group
                whose recorded rate is above 0 at that step; the other groups keep their ratio to it, and a group at 0
                stays at 0. [steps, groups] or [n, steps, groups]: of every group; see
                `orderscope.task.hyper.group_rates`.
            metrics: names of the metrics to estimate; by default the held-out losses, which need no model. For any
                other metric the model is evaluated once per order, and on first use once per true run.
            allow_other_samples: accept orders that are not rearrangements of the recorded samples.
            precise: compute held-out losses with the task's model too; needs the task.

        Returns:
            The estimates, their errors, and whether they are trusted. An order that was trained gets its true values.

        Raises:
            OrderscopeError: for orders or learning rates of a wrong shape, or an unknown metric or estimator.
        """
        checked = self._checked(orders, allow_other_samples)
        estimator = estimator or ("carried" if effort is None else "auto")
        proxy = self._proxy(effort) if estimator in ("proxy", "auto") else None
        if proxy is None and effort is not None:
            raise OrderscopeError(
                f"effort={effort!r} for the estimator {estimator!r}",
                "effort= with the estimators proxy and auto only",
                "leave out effort=",
            )
        names = self._names(metrics, self.metric_names if proxy is None else tuple(self.reference))
        rates = self._rates(lr, len(checked))
        if estimator not in ("carried", "proxy", "auto"):
            return self._baseline(estimator, checked, names, rates)
        if precise and self._by is None:
            raise OrderscopeError(
                "precise=True, but the model cannot be evaluated",
                "a simulator with the task, and recorded states that fit in memory",
                "Simulator(path, task), or leave out precise=",
            )
        calibration: Mapping[str, Calibration] = self._precise if precise else self.calibration
        spent = 0.0 if proxy is None else proxy.spent
        if proxy is not None and (estimator == "proxy" or proxy_errs_less(self, proxy, names, calibration)):
            estimator, calibration = "proxy", {name: proxy.calibration(name) for name in names}
            values, errors = proxy(checked, names, rates)
            outside, new = np.full(len(checked), np.nan), self.regrouped(checked)
        else:
            estimator = "carried"
            values, errors, outside, new = self._estimated(checked, names, rates, precise, calibration)
        known = np.zeros(len(checked), dtype=bool)
        if rates is None:
            known = self._insert_truth(checked, values, errors, outside)
        if estimator == "carried":
            doubts = {trusted.TOO_FAR: ~near_anchors(outside, self.calibration.values())}
        else:
            doubts = {
                trusted.REGROUPED: ~trusted.regrouped_as_recorded(
                    self.regrouped(checked), self.regrouped(self.run_orders)
                )
            }
        shares = self._shares(checked)
        recorded = self._trained_shares[0]
        doubts[trusted.PURE] = sorts_more(shares, recorded, trusted.PURER)
        doubts[trusted.SORTED] = ~trusted.sorted_as_recorded(shares, self._trained_shares)
        if allow_other_samples:
            doubts[trusted.OTHER_SAMPLES] = ~trusted.few_replaced(checked, self.order)
        judged = trusted.judge(
            doubts, values, errors, calibration, new, sorts_more(shares, recorded), known, only_order=rates is None
        )
        return Prediction(
            metrics=values,
            error=errors,
            trusted=judged.trusted,
            reference={name: self.reference[name] for name in names},
            sigma_order={name: self.sigma_order(name) for name in names},
            skilled={name: calibration[name].skilled for name in names},
            outside=outside,
            estimator=estimator,
            cost=0.0 if proxy is None else proxy.spent - spent,
            known=known,
            reasons=judged.reasons,
        )

    @cached_property
    def _trained_shares(self) -> np.ndarray:
        """The shares of their own group of all orders that were trained, the recorded one first,
        [1 + runs, groups], see `own_shares`."""
        return self._shares(np.concatenate([self.order[None], self.run_orders]))

    def _shares(self, orders: np.ndarray) -> np.ndarray:
        return own_shares(orders, self.window.group_codes, self.window.fractions.shape[1])

    @cached_property
    def _proxies(self) -> dict[int, ProxyEstimator]:
        return {}

    def _proxy(self, effort: float | None) -> ProxyEstimator:
        """The proxy at an effort, made once for each number of samples."""
        made = ProxyEstimator(self, effort)
        return self._proxies.setdefault(made.count, made)

    def _insert_truth(
        self, orders: np.ndarray, values: dict[str, np.ndarray], errors: dict[str, np.ndarray], outside: np.ndarray
    ) -> np.ndarray:
        """Replace the estimates of orders that were trained by their true values, in place; returns which, bool [n]."""
        known: dict[bytes, dict[str, float]] = {self.order.tobytes(): self.reference}
        known |= {run.order.tobytes(): run.metrics[-1] for run in self._run_files}
        for k, order in enumerate(orders):
            if (true := known.get(order.tobytes())) is not None:
                outside[k] = 0.0
                for name in values:
                    values[name][k], errors[name][k] = true[name], 0.0
        return np.array([order.tobytes() in known for order in orders], dtype=bool)

    def parameters(self, order: Any, *, lr: Any = None, allow_other_samples: bool = False) -> dict[str, Tensor]:
        """Estimated final weights of an order. If only some coordinates are carried, the others are interpolated
        between the recorded runs' final weights.

        Args:
            order: sample ids, [steps, batch].
            lr: learning rates, see `group_rates`; None for the recorded ones.
            allow_other_samples: whether an order may repeat samples and leave others out.

        Returns:
            Parameter name -> weights in the parameter's shape; with the task, untrained parameters are included.
        """
        checked = self._checked(check_order(order, self.order, allow_other_samples=allow_other_samples), True)
        theta = self.replay_of(checked, lr=self._rates(lr, 1)).theta[0]
        if not self.exact:
            carried, (theta, _) = theta, self._known.interpolated(theta)
            theta[self._known.indices] = carried
        weights, start = {}, 0
        for parameter in self.description["parameters"]:
            size = int(np.prod(parameter["shape"]))
            weights[parameter["name"]] = theta[start : start + size].view(parameter["shape"]).clone()
            start += size
        if self.task is not None:
            every = self.task.build_model().named_parameters()
            weights = {name: weights.get(name, untrained.detach()) for name, untrained in every}
        return weights

    def trajectory(self, order: Any, *, lr: Any = None, metrics: Sequence[str] | None = None) -> Trajectory:
        """Estimated metrics of an order at the steps of the reference run's anchors.

        The shift that the calibration adds at the end is added along the way in proportion to the steps taken.

        Args:
            order: sample ids, [steps, batch].
            lr: learning rates, see `group_rates`; None for the recorded ones.
            metrics: names of the metrics; by default as in `predict`.
        """
        names = self._names(metrics)
        reference = load_run(self.store, REFERENCE, gradients=False)
        steps = reference.boundaries
        checked = self._checked(order, False)
        replayed = self.replay_of(checked, lr=self._rates(lr, 1), snapshots=steps.tolist())
        rows = torch.stack([replayed.snapshots[int(s)][0] for s in steps])  # [k, m]
        raw, at, values = along(self, rows, steps, names), self.bearing(replayed), {}
        for name, uncalibrated in raw.items():
            shift = self.calibration[name].apply(uncalibrated[-1:], at)[0][0] - uncalibrated[-1]
            values[name] = uncalibrated + shift * steps / steps[-1]
        return Trajectory(
            steps=steps,
            metrics=values,
            reference={n: np.array([m[n] for m in reference.metrics]) for n in names},
        )

    def scores(self, orders: np.ndarray, metrics: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Values and errors as `predict` computes them, without its checks: for searches, which score many orders.

        Args:
            orders: sample ids, int64 [n, steps, batch], checked before.
            metrics: names of the metrics.

        Returns:
            Values and errors by name, [n] each.
        """
        values, errors, *_ = self._estimated(orders, tuple(metrics), None, False, self.calibration, more=True)
        return values, errors

    def _estimated(
        self,
        orders: np.ndarray,
        names: tuple[str, ...],
        rates: np.ndarray | None,
        precise: bool,
        calibration: Mapping[str, Calibration],
        more: bool = False,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Values and errors by metric, `outside`, and the share of steps with regrouped batches, [n] each."""
        values: dict[str, list[np.ndarray]] = {name: [] for name in names}
        errors: dict[str, list[np.ndarray]] = {name: [] for name in names}
        outside: list[np.ndarray] = []
        new: list[np.ndarray] = []
        for rows in at_once(len(orders), self.window.coords):
            replayed = self.replay_of(orders[rows], lr=None if rates is None else rates[rows], more=more)
            with one_thread():
                raw, at = self.metric_model(replayed.theta, names, precise=precise), self.bearing(replayed)
                pushed = {name: self.pushed(replayed.theta, name) for name in names}
            for name in names:
                value, error = calibration[name].apply(raw[name], at, pushed[name])
                values[name].append(value)
                errors[name].append(error)
            outside.append(at.outside)
            new.append(at.regrouped)
        joined = [{n: np.concatenate(parts) for n, parts in each.items()} for each in (values, errors)]
        return joined[0], joined[1], np.concatenate(outside), np.concatenate(new)

    def _checked(self, orders: Any, allow_other_samples: bool) -> np.ndarray:
        samples = self.description["samples"]
        return check_orders(orders, self.order, samples=samples, allow_other_samples=allow_other_samples)

    def _names(self, metrics: Sequence[str] | None, possible: tuple[str, ...] | None = None) -> tuple[str, ...]:
        possible = self.metric_names if possible is None else possible
        if not possible:
            raise unknown_metric(None, possible)
        if metrics is None:
            return self.losses or possible
        if isinstance(metrics, str) or not len(metrics) or len(set(metrics)) < len(metrics):
            raise OrderscopeError(
                f"metrics={metrics!r}", "a list of names, each once", f"name some of {', '.join(possible)}"
            )
        for name in metrics:
            if name not in possible:
                raise unknown_metric(name, possible)
        return tuple(metrics)

    def _rates(self, lr: Any, count: int) -> np.ndarray | None:
        return None if lr is None else group_rates(lr, self.window.dynamics.hyper["lr"], count)

    def _baseline(
        self, estimator: str, orders: np.ndarray, names: tuple[str, ...], rates: np.ndarray | None
    ) -> Prediction:
        from orderscope.baselines.estimators import ESTIMATORS

        if estimator not in ESTIMATORS:
            raise OrderscopeError(
                f"estimator {estimator!r}",
                "one of carried, proxy, auto, " + ", ".join(ESTIMATORS),
                "choose one of these",
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
