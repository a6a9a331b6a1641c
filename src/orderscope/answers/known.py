"""Orders whose true metrics are known: recorded, trained to check or to confirm, or trained now."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from orderscope.answers.stored import proposals, validations
from orderscope.errors import without_task

if TYPE_CHECKING:
    from orderscope.simulation.simulator import Simulator

Truth = dict[bytes, dict[str, float]]


def known_truth(sim: Simulator) -> Truth:
    """Bytes of an order -> metric -> true value, for all orders that were trained."""
    found: Truth = {sim.order.tobytes(): dict(sim.reference)}
    for i, order in enumerate(sim.run_orders if sim.runs else ()):
        found[order.tobytes()] = {name: float(values[i]) for name, values in sim.run_truth.items()}
    for proposal in proposals(sim.store):
        if proposal.facts["confirmed"] is not None:
            own = {proposal.facts["metric"]: proposal.facts["confirmed"]}
            found.setdefault(proposal.order.tobytes(), {}).update(proposal.facts.get("true") or own)
    for check in validations(sim.store):
        for i, order in enumerate(check.orders):
            found.setdefault(order.tobytes(), {}).update({n: float(v[i]) for n, v in check.true.items()})
    return found


def train_orders(
    sim: Simulator,
    orders: np.ndarray,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """True metrics of orders. Orders without a true value in every metric are trained.

    Trained orders become part of the run, as with `validate`, and are stored together with their predictions, if the
    run can be written to.

    Args:
        sim: the run, opened with its task.
        orders: sample ids, [n, steps, batch].
        progress: called as `progress(stage, done, total)`.

    Returns:
        Metric -> true values, [n].

    Raises:
        OrderscopeError: the simulator has no task.
    """
    from orderscope.simulation.foretold import foretell
    from orderscope.studies.validation import keep_truth, train_runs

    if sim.task is None:
        raise without_task("to train it")
    known = known_truth(sim)
    names = list(sim.task.metrics)
    new = [i for i, order in enumerate(orders) if known.get(order.tobytes(), {}).keys() < set(names)]
    new = list({orders[i].tobytes(): i for i in new}.values())
    if new:
        predictions = foretell(sim, list(orders[new]))  # before anything is trained
        true = train_runs(sim, sim.task, list(orders[new]), predictions.kept, progress)
        keep_truth(sim, list(orders[new]), true, predictions.predicted, predictions.error, {})
        known |= {orders[i].tobytes(): {n: float(v[k]) for n, v in true.items()} for k, i in enumerate(new)}
    return {name: np.array([known[order.tobytes()][name] for order in orders]) for name in names}
