"""A small run of three shards, whole or to be damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from orderscope.store import RunStore

SHARDS = {
    "record/task": ({}, {"steps": 24, "names": ["a", "b"]}),
    "record/reference/segment-000": (
        {"theta": np.linspace(-1, 1, 300, dtype=np.float32).reshape(3, 100), "ids": np.arange(12).reshape(3, 4)},
        {"anchors": [0, 8, 16]},
    ),
    "sketch/rows/a00-b000": ({"rows": np.arange(70, dtype=np.float16)}, {}),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    with RunStore.create(path) as store:
        for name, (arrays, attrs) in SHARDS.items():
            store.write(name, arrays, attrs)
        store.log({"seconds": 1.5})
    return path


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.create(tmp_path / "new") as store:
        yield store
