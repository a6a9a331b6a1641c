"""Real processes under gloo: DistributedDataParallel with an order played, recorded on both ranks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import orderscope as osc
from loops_plain import make

SCRIPT = """
import sys
import numpy as np, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
import orderscope as osc
from loops_plain import make

rank, ranks, port, out, workers = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
if __name__ == "__main__":
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    loop = make("plain")
    model = DistributedDataParallel(loop.model, find_unused_parameters=True)
    sampler = osc.OrderSampler(loop.order, rank=rank, world_size=ranks)
    loader = osc.with_ids(DataLoader(loop.data, batch_sampler=sampler, num_workers=workers))
    with osc.Recorder(out + "/run", model, loop.opt) as rec:
        for ids, batch in loader:
            loop.opt.zero_grad()
            loss = loop.loss(model, batch).mean()
            loss.backward()
            loop.opt.step()
            loop.sched.step()
            rec.step(ids, loss)
    dist.barrier()
    dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_an_order_played_on_two_ranks_is_recorded_and_its_task_reproduces(tmp_path: Path) -> None:
    ranks, workers = 2, 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    places = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    children = [
        subprocess.Popen([sys.executable, str(script), str(r), str(ranks), str(port), str(tmp_path), str(workers)],
                         env=os.environ | {"PYTHONPATH": places, "GLOO_SOCKET_IFNAME": "lo"},
                         stderr=subprocess.PIPE, text=True)
        for r in range(ranks)
    ]  # fmt: skip
    told = [child.communicate(timeout=300)[1] for child in children]
    assert [child.returncode for child in children] == [0] * ranks, told
    loop = make("plain")
    rec = osc.recorded(tmp_path / "run")
    np.testing.assert_array_equal(rec.order, loop.order)
    task = rec.task(model=loop.build, loss=loop.loss, data=loop.data)
    osc.record(task, tmp_path / "run", probes=0, sketch=False)
