"""A writer killed at any instant: what it had acknowledged is there, what is there is whole, and it can go on."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from orderscope.store import RunStore

WRITER = """
import sys
import numpy as np
from orderscope.store import RunStore
with RunStore.create(sys.argv[1]) as store:
    print("ready", flush=True)
    for i in range(int(sys.argv[2])):
        name = f"record/reference/segment-{i:03d}"
        if name not in store:
            store.write(name, {"x": np.full(1 + 40_000 * (i % 3), i, np.float32)}, {"i": i})
            print(i, flush=True)
"""
SHARDS = 150


def start(path: Path) -> subprocess.Popen[str]:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(SHARDS)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    return writer


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != ".lock"}


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_five_times_it_ends_with_the_same_bytes(tmp_path: Path, seed: int) -> None:
    draw, acknowledged = random.Random(seed), set()
    for _ in range(5):
        writer = start(tmp_path / "killed")
        time.sleep(draw.uniform(0, 0.06))
        writer.send_signal(signal.SIGKILL)
        out, _ = writer.communicate()
        acknowledged |= {f"record/reference/segment-{int(i):03d}" for i in out.split("\n")[:-1]}
        store = RunStore.open(tmp_path / "killed")
        assert store.verify() == []
        assert acknowledged <= set(store.names())
        for name in store.names():
            i = store.attrs(name)["i"]
            np.testing.assert_array_equal(store.read(name)["x"], np.full(1 + 40_000 * (i % 3), i, np.float32))
    for name in ("killed", "whole"):
        start(tmp_path / name).communicate()
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
