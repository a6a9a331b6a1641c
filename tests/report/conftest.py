from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import orderscope as osc
from made_up import DOLLARS, ESCAPE, IMAGE, SCRIPT, heat, proposal, step_errors
from orderscope.answers.stored import keep_heat, keep_proposal, keep_step_errors
from orderscope.store import RunStore
from tasks_tiny import GROUPS, char


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> osc.Task:
    """A task whose names would do harm in a page that does not escape them."""
    torch.set_num_threads(1)
    arguments = char()
    groups = dict(zip(GROUPS, (IMAGE, "a", DOLLARS), strict=True))
    rows = arguments["metrics"]["eval"]
    return osc.Task(
        **arguments
        | {"groups": [groups[g] for g in arguments["groups"]], "metrics": {SCRIPT: rows, DOLLARS: rows, ESCAPE: rows}}
    )


@pytest.fixture(scope="session")
def bare_run(hostile: osc.Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recorded, and nothing asked of it yet."""
    path = tmp_path_factory.mktemp("runs") / "bare"
    osc.record(hostile, path, anchors=3, probes=3)
    return path


@pytest.fixture(scope="session")
def full_run(hostile: osc.Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recorded, asked, validated, with a proposal, a position map and errors by step; what was found is made up."""
    path = tmp_path_factory.mktemp("runs") / "<b>run & co"
    osc.record(hostile, path, anchors=3, probes=3)
    with RunStore.create(path) as store:
        keep_proposal(store, proposal(hostile))
        keep_heat(store, heat(hostile.steps))
        keep_step_errors(store, step_errors(hostile.steps))
        order = np.stack([hostile.order[::-1], np.roll(hostile.order, 1, axis=0)])
        columns = {name: [2.85, 2.86] for name in hostile.metrics}
        floor = dict.fromkeys(hostile.metrics, 1e-5)
        store.write("validation/000", {"order": order},
                    {"predicted": columns, "error": columns, "true": columns, "noise_floor": floor})  # fmt: skip
        store.log({"event": "query", "orders": ["reverse", "shuffle:1", IMAGE]})
    return path
