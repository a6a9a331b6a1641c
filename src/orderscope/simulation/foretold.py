"""Predictions that are stored in the run before the predicted orders are trained.

Once a trained order is part of a run, its prediction uses its true value. If a process is killed between training and
comparison, the next one would otherwise compare the true value with itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from orderscope.simulation.simulator import Simulator
from orderscope.store import RunStore, add_if_possible
from orderscope.store.names import FURTHER

PREFIX = "foretold/"
BLOCK = 8  # orders predicted between two reports of progress


@dataclass(frozen=True)
class Foretold:
    """Predictions made before the orders were trained.

    Args:
        predicted, error: metric -> value, and half-width of its 90 % interval, [n].
        kept: whether all predictions are stored in the run. If not, the trained orders must not be stored in it either.
    """

    predicted: dict[str, np.ndarray]
    error: dict[str, np.ndarray]
    kept: bool


def foretell(
    sim: Simulator,
    orders: Sequence[np.ndarray],
    *,
    allow_other_samples: bool = False,
    keep: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Foretold:
    """Predict all metrics of orders that are about to be trained, and store the predictions in the run if possible.

    Stored predictions are used again. For an order that is already part of the run and has no stored prediction, the
    calibration's leave-one-out prediction is taken, which does not use the states of that order.

    Args:
        sim: the simulator of the run.
        orders: sample ids, [steps, batch] each.
        allow_other_samples: whether orders may repeat samples and leave others out.
        keep: whether to store the predictions; not needed if nothing will be trained.
        progress: called as `progress(done, total)`.
    """
    names = list(sim.metric_names)
    with RunStore.open(sim.path) as store:
        known = stored(store)
    new = [order for order in orders if set(names) - set(known.get(order.tobytes(), {}))]
    new = list({order.tobytes(): order for order in new}.values())
    fresh: dict[bytes, dict[str, tuple[float, float]]] = {}
    if progress is not None and new:
        progress(0, len(new))
    for start in range(0, len(new), BLOCK):
        part = new[start : start + BLOCK]
        prediction = sim.predict(np.stack(part), metrics=names, allow_other_samples=allow_other_samples)
        for i, order in enumerate(part):
            values = {n: (float(prediction.metrics[n][i]), float(prediction.error[n][i])) for n in names}
            fresh[order.tobytes()] = _left_out(sim, order, names) or values
        if progress is not None:
            progress(min(start + BLOCK, len(new)), len(new))
    kept = not new or (keep and _keep(sim, new, fresh, names))
    known |= {key: fresh[key] | known.get(key, {}) for key in fresh}
    rows = [known[order.tobytes()] for order in orders]
    return Foretold(*({n: np.array([row[n][k] for row in rows]) for n in names} for k in (0, 1)), kept=kept)


def stored(store: RunStore) -> dict[bytes, dict[str, tuple[float, float]]]:
    """The stored predictions of a run: bytes of an order -> metric -> (predicted, error); the first if there are
    several.

    Args:
        store: the run on disk.
    """
    found: dict[bytes, dict[str, tuple[float, float]]] = {}
    for shard in store.names(PREFIX):
        attrs = store.attrs(shard)
        for i, order in enumerate(store.read(shard, ["order"])["order"]):
            row = {n: (_number(attrs["predicted"][n][i]), _number(attrs["error"][n][i])) for n in attrs["predicted"]}
            found[order.tobytes()] = row | found.get(order.tobytes(), {})
    return found


def _left_out(sim: Simulator, order: np.ndarray, names: Sequence[str]) -> dict[str, tuple[float, float]] | None:
    """The calibration's leave-one-out prediction for an order that was trained after recording; None for others."""
    for i, run in enumerate(sim.runs):
        if run.startswith(FURTHER) and np.array_equal(sim.run_orders[i], order):
            fitted = sim.calibration
            return {name: (float(fitted[name].predicted[i]), float(fitted[name].error[i])) for name in names}
    return None


def _keep(
    sim: Simulator, orders: list[np.ndarray], found: dict[bytes, dict[str, tuple[float, float]]], names: Sequence[str]
) -> bool:
    rows = [found[order.tobytes()] for order in orders]
    parts = {
        part: {name: [row[name][k] if np.isfinite(row[name][k]) else None for row in rows] for name in names}
        for k, part in enumerate(("predicted", "error"))
    }

    def write(store: RunStore) -> bool:
        store.write(f"{PREFIX}{len(store.names(PREFIX)):03d}", {"order": np.stack(orders)}, parts)
        return True

    return add_if_possible(sim.path, write) is not None


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
