"""The proxy as an estimator. Its scale and error come from proxies of the recorded runs, trained once and stored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from orderscope.baselines.proxy import Proxies, few_of, samples_used, slope, slopes_without_each, train_few
from orderscope.engine.calibration import Bearing, Calibration, directions, errs_less, fit_calibration
from orderscope.engine.driven import recorded_dynamics
from orderscope.engine.window import LONG
from orderscope.errors import without_task
from orderscope.sketching import draw_coordinates
from orderscope.sketching.gradients import set_parameters
from orderscope.store import add_if_possible
from orderscope.store.names import PROXY, REFERENCE
from orderscope.task.task import Evaluation

if TYPE_CHECKING:
    from orderscope.simulation.simulator import Simulator

# Share of a constant guess's error on left-out runs from which predictions count as inaccurate. It is 0.2 to 0.4 on
# short windows of text, where the proxy is worse, and 0.8 on MiniLM's adapters over 112 steps, where it errs a sixth.
MOSTLY = 0.5


class ProxyEstimator:
    """Estimates by training each order on some samples of each batch.

    Args:
        sim: the simulator of the run, with its task.
        effort: share of each batch's samples to train on, above 0 and up to 1; an eighth by default.

    Raises:
        OrderscopeError: the simulator has no task, or the effort is out of range.
    """

    def __init__(self, sim: Simulator, effort: float | None) -> None:
        if sim.task is None:
            raise without_task("since a few samples of each batch are trained on", "the proxy on a Simulator")
        self._sim, self._task = sim, sim.task
        self._batch = sim.order.shape[1]
        self.count = samples_used(effort, self._batch)
        self._ranks = np.random.default_rng(sim.plan.seed).permutation(sim.description["samples"])
        self._calibrations: dict[str, Calibration] = {}
        self.spent = 0.0

    @property
    def effort(self) -> float:
        """Samples used over batch size: the price of an order, in runs."""
        return self.count / self._batch

    def calibration(self, name: str) -> Calibration:
        """The calibration of a metric, fitted on the true runs, each predicted by a line through the reference order
        and the other runs."""
        if name not in self._calibrations:
            proxy, true = self._deviations(name)
            raw = self._sim.reference[name] + slopes_without_each(proxy, true) * proxy
            at = self._bearing(self._runs[1][1:], self._sim.run_orders)
            truth, reference = self._sim.run_truth[name], self._sim.reference[name]
            self._calibrations[name] = fit_calibration(raw, truth, reference, at, eps=self._sim.eps)
        return self._calibrations[name]

    def __call__(
        self, orders: np.ndarray, names: tuple[str, ...], rates: np.ndarray | None
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Estimates by the proxy, each order trained on some samples of each batch.

        Args:
            orders: sample ids, [n, steps, batch].
            names: metrics.
            rates: learning rates, [n, steps, groups]; None for the recorded ones.

        Returns:
            Values and errors by metric, [n] each.
        """
        return self._estimates(*self._trained(orders, names, rates), orders)

    def evaluations(
        self, orders: np.ndarray, names: tuple[str, ...]
    ) -> tuple[list[Evaluation], dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Metrics of the proxies as they are, with the loss of every held-out row, one an order; and the estimates that
        follow, values and errors by metric, [n] each.

        Args:
            orders: sample ids, [n, steps, batch].
            names: metrics.
        """
        theta, model = self._few(orders, (), None).theta, self._task.build_model()
        found = []
        for row in theta:
            set_parameters(model, self._task.layout, row)
            found.append(self._task.evaluation(model, names))
        values = {name: np.array([each.metrics[name] for each in found]) for name in names}
        return found, *self._estimates(values, self._sim.plan.coordinates.take(theta), orders)

    def scale(self, name: str) -> float:
        """The true metric's difference to the reference order over the proxy's, from the true runs."""
        return slope(*self._deviations(name))

    def _estimates(
        self, values: dict[str, np.ndarray], theta: Tensor, orders: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Estimates and errors by metric from the proxies' metrics [n] and final weights on the carried coordinates,
        [n, m]."""
        at, estimates, errors = self._bearing(theta, orders), {}, {}
        for name, value in values.items():
            raw = self._sim.reference[name] + self.scale(name) * (value - self._runs[0][name][0])
            estimates[name], errors[name] = self.calibration(name).apply(raw, at)
        return estimates, errors

    def _deviations(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Differences of the runs to the reference order in the proxy's metric and in the true metric, [runs] each."""
        proxy = self._runs[0][name]
        return proxy[1:] - proxy[0], self._sim.run_truth[name] - self._sim.reference[name]

    def _bearing(self, theta: Tensor, orders: np.ndarray) -> Bearing:
        """The bearing of orders from the final weights of their proxies, [n, m], with `outside` 1 for all."""
        runs = self._runs[1]
        alike = directions(theta, runs[0]) @ directions(runs[1:], runs[0]).T
        return Bearing(
            np.ones(len(theta)), alike.double().numpy(), self._sim.regrouped(orders), self._sim.sorting(orders)
        )

    def _trained(
        self, orders: np.ndarray, names: tuple[str, ...], rates: np.ndarray | None = None
    ) -> tuple[dict[str, np.ndarray], Tensor]:
        """Metrics [n] and final weights [n, m] on the carried coordinates."""
        found = self._few(orders, names, rates)
        return found.values, self._sim.plan.coordinates.take(found.theta)

    def _few(self, orders: np.ndarray, names: tuple[str, ...], rates: np.ndarray | None) -> Proxies:
        """Train the few samples of each batch of orders [n, steps, batch], and count what it costs."""
        sim, size = self._sim, self._sim.plan.size
        dynamics = recorded_dynamics(sim.store, draw_coordinates(size, size, sim.plan.seed))
        self.spent += len(orders) * self.effort
        return train_few(self._task, dynamics, few_of(orders, self.count, self._ranks), names, rates)

    @cached_property
    def _runs(self) -> tuple[dict[str, np.ndarray], Tensor]:
        """The same for the reference, which is first, and the true runs; read from the run if they are stored."""
        sim = self._sim
        names, runs = tuple(sim.reference), [REFERENCE, *sim.runs]
        values, theta, kept = self._kept(names)
        new = [run for run in runs if run not in kept]
        if new:
            every = dict(zip(runs, [sim.order, *sim.run_orders], strict=True))
            fresh, more = self._trained(np.stack([every[run] for run in new]), names)
            values = {name: np.append(values[name], fresh[name]) for name in names}
            theta, kept = torch.cat([theta, more]), [*kept, *new]
            self._keep(values, theta, kept)
        rows = [kept.index(run) for run in runs]
        return {name: values[name][rows] for name in names}, theta[rows]

    @property
    def _shard(self) -> str:
        return f"{PROXY}{self.count:04d}-"

    def _kept(self, names: tuple[str, ...]) -> tuple[dict[str, np.ndarray], Tensor, list[str]]:
        """Metrics, weights and names of the runs whose proxies are stored."""
        stored = self._sim.store.names(self._shard)
        if stored:
            attrs, arrays = self._sim.store.attrs(stored[-1]), self._sim.store.read(stored[-1])
            present, runs = list(attrs.get("names", ())), list(attrs.get("runs", ()))
            shapes = {"values": (len(present), len(runs)), "theta": (len(runs), self._sim.window.coords)}
            fits = all(key in arrays and arrays[key].shape == shape for key, shape in shapes.items())
            if fits and set(names) <= set(present):
                values = dict(zip(present, arrays["values"], strict=True))
                return {name: values[name] for name in names}, torch.from_numpy(arrays["theta"]), runs
        return {name: np.zeros(0) for name in names}, self._sim.window.final.new_zeros(0, self._sim.window.coords), []

    def _keep(self, values: dict[str, np.ndarray], theta: Tensor, runs: list[str]) -> None:
        """Store metrics and weights in the run, if it is a folder that can be written to."""
        arrays = {"values": np.stack(list(values.values())), "theta": theta.numpy()}
        attrs = {"names": list(values), "runs": runs}
        add_if_possible(self._sim.path, lambda store: store.write(store.next_name(self._shard), arrays, attrs))


def proxy_errs_less(
    sim: Simulator, proxy: ProxyEstimator, names: Sequence[str], calibration: Mapping[str, Calibration]
) -> bool:
    """Whether the proxy errs less on these metrics than the carried replay, or they cannot be predicted without it.

    The carried replay is the cheaper one, so the proxy has to be better significantly; where the replay may be
    inaccurate, see `why_inaccurate`, a quarter less of its mean error is enough.

    Args:
        sim: the simulator of the run.
        proxy: one of its proxies.
        names: metrics.
        calibration: metric -> calibration of the carried replay.
    """
    if not set(names) <= set(sim.metric_names):
        return True
    much = why_inaccurate(sim, names) is not None
    return errs_less([proxy.calibration(name) for name in names], [calibration[name] for name in names], much=much)


def why_inaccurate(sim: Simulator, names: Iterable[str]) -> str | None:
    """Why the carried replay may be inaccurate, as the beginning of a sentence; None if nothing says so.

    Args:
        sim: the simulator of the run.
        names: metrics.
    """
    if sim.window.steps > LONG:  # the proxy ranks as well there, and its values are better over 2,000 steps
        return f"in a run of {sim.window.steps} steps"
    left = max((sim.calibration[name].left for name in names if name in sim.metric_names), default=0.0)
    if MOSTLY < left < math.inf:
        return f"on the recorded runs, each left out, predictions err {left:.0%} as much as a constant guess;"
    return None
