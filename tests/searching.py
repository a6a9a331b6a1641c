"""A strategy's surroundings, without a whole proposal."""

from __future__ import annotations

import numpy as np

import orderscope as osc
from orderscope.search import STRATEGIES, Setting
from orderscope.search.ledger import Ledger
from orderscope.search.objective import Objective
from orderscope.search.scores import score_of


def setting(sim: osc.Simulator, *, metric: str = "eval", sign: float = 1.0, regroup: bool = True) -> Setting:
    objective = Objective({metric: sign})
    ledger = Ledger(sim.order, score_of(sim, objective), 500)
    ledger.know(sim.order, sign * sim.reference[metric], "reference")
    return Setting(sim, objective, regroup, ledger, rng=np.random.default_rng(0), share=100)


def yielded(name: str, at: Setting, most: int = 200) -> np.ndarray:
    """All orders that a strategy asks for, up to about `most`."""
    strategy = STRATEGIES[name]
    asking = strategy.orders(at)
    found: list[np.ndarray] = []
    orders = next(asking, None)
    while orders is not None and sum(map(len, found)) < most:
        orders = at.ledger.checked(orders, name)
        found.append(orders)
        try:
            orders = asking.send(at.ledger(orders, [name] * len(orders)))
        except StopIteration:
            break
    return np.concatenate(found) if found else np.zeros((0, *at.order.shape), dtype=int)
