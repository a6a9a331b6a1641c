"""A training that is killed and goes on from its last checkpoint: what was recorded before is not lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import orderscope as osc
from loops_plain import make

KILLED = """
import os, signal, sys
import torch, orderscope as osc
from loops_plain import make

loop = make("clipped")
rec = osc.Recorder(sys.argv[1] + "/run", loop.model, loop.opt)
loop.run(rec, 0, 4)
torch.save([loop.model.state_dict(), loop.opt.state_dict(), loop.sched.state_dict()], sys.argv[1] + "/checkpoint.pt")
if sys.argv[2] == "flushed":
    rec.flush()
loop.run(rec, 4, 6)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("flushed", ["flushed", "not"])
def test_killed_and_resumed(flushed: str, tmp_path: Path) -> None:
    places = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), flushed],
        env=os.environ | {"PYTHONPATH": places}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert child.returncode == -signal.SIGKILL, child.stderr
    loop = make("clipped")
    order = loop.order.tolist()
    if flushed == "flushed":
        found = osc.recorded(tmp_path / "run")
        assert found.order.tolist() == order[:4]
        assert found.problems == ["the loop was interrupted; 4 steps are known"]
    saved = torch.load(tmp_path / "checkpoint.pt")
    for part, state in zip((loop.model, loop.opt, loop.sched), saved, strict=True):
        part.load_state_dict(state)
    rec = osc.Recorder(tmp_path / "run", loop.model, loop.opt)
    loop.run(rec, 4)
    if flushed == "not":  # said at once, and again by whoever asks for the order
        with pytest.warns(UserWarning, match=r"nothing of steps 0 to 3"):
            rec.close()
        with pytest.raises(osc.OrderscopeError, match=r"nothing of steps 0 to 3.*first=4, last=10"):
            _ = rec.order
        task = rec.task(model=loop.build, loss=loop.loss, data=loop.data, max_grad_norm=loop.clip, first=4, last=10)
        assert task.order.tolist() == order[4:]
        return
    rec.close()
    assert rec.order.tolist() == order
    assert rec.problems == []
    task = rec.task(model=loop.build, loss=loop.loss, data=loop.data, max_grad_norm=loop.clip)
    osc.record(task, tmp_path / "run", probes=0, sketch=False)
