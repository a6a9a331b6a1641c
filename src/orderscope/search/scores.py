"""The score of a search: estimated objective, its error, and the metrics it is made of."""

from __future__ import annotations

import numpy as np

from orderscope.search.ledger import Score
from orderscope.search.objective import Objective
from orderscope.simulation.simulator import Simulator


def score_of(sim: Simulator, objective: Objective) -> Score:
    """What `Simulator.predict` says of orders, as a search needs it."""

    def score(orders: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values, errors = sim.scores(orders, objective.names)
        return objective.value(values), objective.error(errors), np.stack([values[n] for n in objective.names], axis=1)

    return score
