"""Killed with SIGKILL at a random instant, again and again, a recording ends with the bytes of one left in peace."""

import multiprocessing
import random
import time

import pytest

import kill_job
from orderscope.store import RunStore

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch._dynamo", "h5py", "orderscope.recording.runs"])


def contents(path):
    return {f.name: f.read_bytes() for f in path.iterdir() if f.suffix == ".h5" or f.name == "manifest.jsonl"}


def begin(path):
    """A child process that is about to record into `path`."""
    ready = CONTEXT.Event()
    child = CONTEXT.Process(target=kill_job.record, args=(path, ready))
    child.start()
    assert ready.wait(60)
    return child


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Bytes of a recording left in peace, and the seconds it takes."""
    path = tmp_path_factory.mktemp("whole")
    child = begin(path)
    began = time.perf_counter()
    child.join()
    assert child.exitcode == 0
    return contents(path), time.perf_counter() - began


@pytest.mark.parametrize("seed", range(6))
def test_kills(seed, whole, tmp_path):
    expected, seconds = whole
    instants = random.Random(seed)
    for _ in range(2):
        child = begin(tmp_path)
        time.sleep(instants.uniform(0, seconds))
        child.kill()
        child.join()
    with RunStore.create(tmp_path) as store:
        assert store.verify() == []
    child = begin(tmp_path)
    child.join()
    assert child.exitcode == 0
    assert contents(tmp_path) == expected
