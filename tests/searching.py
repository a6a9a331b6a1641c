"""A strategy's surroundings, without a whole proposal."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import orderscope as osc
from orderscope.search import STRATEGIES, Proposal, Setting
from orderscope.search.ledger import Ledger
from orderscope.search.objective import Objective
from orderscope.search.scores import View


def propose(sim: osc.Simulator, metric: Any = "eval", **options: Any) -> Proposal:
    """`orderscope.propose` on tiny tasks, whose few held-out rows leave nothing to look for."""
    with tempfile.TemporaryDirectory() as folder:  # what is confirmed becomes part of the run
        run = Path(sim.path)
        copied = Path(folder) / run.name
        shutil.copytree(run, copied)
        return osc.propose(osc.Simulator(copied, sim.task), metric, **{"anyway": True, **options})


def setting(sim: osc.Simulator, *, metric: str = "eval", sign: float = 1.0, regroup: bool = True) -> Setting:
    objective = Objective({metric: sign})
    ledger = Ledger(sim.order, View(sim, objective), 500)
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
