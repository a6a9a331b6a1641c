"""Who does the work of a run changes none of its bytes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import orderscope as osc
import tasks_tiny
from orderscope.recording import work
from orderscope.recording.record import sketch, sketch_share
from orderscope.sketching import SketchPlan
from orderscope.store import RunStore
from run_bytes import digests


@pytest.fixture(scope="module")
def task() -> osc.Task:
    return osc.Task(**tasks_tiny.char())


@pytest.fixture(scope="module")
def whole(task: osc.Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("work") / "whole"
    osc.record(task, path, probes=2, jobs=1)
    return path


@pytest.fixture
def unsketched(task: osc.Task, tmp_path: Path) -> Path:
    osc.record(task, tmp_path / "run", probes=2, jobs=1, sketch=False)
    return tmp_path / "run"


def test_threads_take_turns(task: osc.Task, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    with ThreadPoolExecutor(3) as pool:
        osc.record(task, tmp_path / "run", probes=2, executor=pool)
    assert digests(tmp_path / "run") == digests(whole)


def test_processes_that_inherit_nothing(task: osc.Task, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        osc.record(task, tmp_path / "run", probes=2, executor=pool)
    assert digests(tmp_path / "run") == digests(whole)


def test_a_dask_cluster(task: osc.Task, whole: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        osc.record(task, tmp_path / "run", probes=2, executor=client.get_executor())
    assert digests(tmp_path / "run") == digests(whole)


def test_submitit(task: osc.Task, whole: Path, tmp_path: Path) -> None:
    submitit = pytest.importorskip("submitit")
    executor = submitit.LocalExecutor(folder=tmp_path / "logs")
    executor.update_parameters(timeout_min=5)
    osc.record(task, tmp_path / "run", probes=2, anchors=2, executor=executor)
    osc.record(task, tmp_path / "here", probes=2, anchors=2)
    assert digests(tmp_path / "run") == digests(tmp_path / "here")


class Losing(ThreadPoolExecutor):
    """Loses the first worker of every piece, or all of them."""

    def __init__(self, times: int) -> None:
        super().__init__(1)
        self.times, self.lost = times, {}

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        name = args[0].name
        self.lost[name] = self.lost.get(name, 0) + 1
        if self.lost[name] <= self.times:
            future: Future[Any] = Future()
            future.set_exception(ConnectionResetError("the machine is gone"))
            return future
        return super().submit(function, *args, **kwargs)


def test_lost_workers_are_replaced(task: osc.Task, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    with Losing(1) as pool:
        osc.record(task, tmp_path / "run", probes=2, executor=pool)
    assert digests(tmp_path / "run") == digests(whole)


def test_workers_lost_again_and_again_are_told(task: osc.Task, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    with (
        Losing(work.ATTEMPTS) as pool,
        pytest.raises(osc.OrderscopeError, match=r"lost again and again.*machine is gone"),
    ):
        osc.record(task, tmp_path / "run", probes=2, executor=pool)
    osc.record(task, tmp_path / "run", probes=2)  # nothing was lost
    assert digests(tmp_path / "run") == digests(whole)


def test_a_killed_process_is_replaced(task: osc.Task, whole: Path, tmp_path: Path, monkeypatch: Any) -> None:
    done, flag = work.Bench.do, tmp_path / "killed"

    def do(bench: work.Bench, piece: work.Piece, **options: Any) -> work.Done:
        if piece.name == "probe-1" and not flag.exists():
            flag.touch()
            os._exit(9)
        return done(bench, piece, **options)

    monkeypatch.setattr(work.Bench, "do", do)
    osc.record(task, tmp_path / "run", probes=2, jobs=2)
    assert flag.exists()
    assert digests(tmp_path / "run") == digests(whole)


def test_an_error_of_the_task_is_told_as_it_is(tmp_path: Path) -> None:
    parts = tasks_tiny.char()
    loss = parts["loss"]
    home = os.getpid()
    parts["loss"] = lambda model, batch: loss(model, batch) * (1.0 if os.getpid() == home else float("nan"))
    with pytest.raises(osc.OrderscopeError, match="not finite"):
        osc.record(osc.Task(**parts), tmp_path / "run", probes=2, jobs=2)


class Own(Exception):
    """Breaks when it is unpickled, as exceptions with arguments of their own do."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def failing(raised: Any, parts: dict[str, Any]) -> osc.Task:
    """A task whose loss raises in every process but this one."""
    loss, home = parts["loss"], os.getpid()

    def hurt(model: Any, batch: Any) -> Any:
        if os.getpid() != home:
            raise raised() if callable(raised) else raised
        return loss(model, batch)

    return osc.Task(**parts | {"loss": hurt})


@pytest.mark.parametrize("by", ["processes", "executor"])
@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (lambda: osc.OrderscopeError("a stone", "a path", "walk around"), osc.OrderscopeError, "found a stone; expect"),
        (lambda: osc.DamagedRun("a hole", "none", "fill it"), osc.DamagedRun, "found a hole"),
        (lambda: osc.IncompleteRun("half", "whole", "go on"), osc.IncompleteRun, "found half"),
        (lambda: ZeroDivisionError("by zero"), ZeroDivisionError, "by zero"),
        (lambda: Own(1, 2), (Own, osc.OrderscopeError), "1 and 2"),  # where dask is loaded, such arrive as they are
        (lambda: SystemExit(0), osc.OrderscopeError, r"sys.exit\(0\) in the code of the task"),
    ],
    ids=["error", "damaged", "incomplete", "python", "unpicklable", "exit"],
)
def test_a_worker_s_own_message_arrives(raised: Any, kind: Any, words: str, by: str, tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    if by == "processes":
        with pytest.raises(kind, match=words):
            osc.record(failing(raised, tasks_tiny.char()), tmp_path / "run", probes=2, jobs=2)
        return
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
        pytest.raises(kind, match=words),
    ):
        osc.record(failing(raised, tasks_tiny.char()), tmp_path / "run", probes=2, executor=pool)


def test_what_pickle_would_break_is_told_by_its_text() -> None:
    told = work.sendable(Own(1, 2), "in a worker at probe-0")
    assert isinstance(pickle.loads(pickle.dumps(told)), (osc.OrderscopeError, Own))
    assert "1 and 2" in str(told)
    error = ZeroDivisionError("by zero")
    assert work.sendable(error, "here") is error


def dying(flag: Path, parts: dict[str, Any]) -> osc.Task:
    """A task whose loss kills the first process but this one that comes to it."""
    loss, home = parts["loss"], os.getpid()

    def kill(model: Any, batch: Any) -> Any:
        if os.getpid() != home and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(model, batch)

    return osc.Task(**parts | {"loss": kill})


def test_a_killed_worker_of_a_pool_is_replaced(tmp_path: Path) -> None:
    """The pool is broken then, for whatever else is asked of it."""
    pytest.importorskip("cloudpickle")
    flag = tmp_path / "killed"
    task = dying(flag, tasks_tiny.char())
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        store = osc.record(task, tmp_path / "run", probes=2, executor=pool, sketch=False)
    assert flag.exists()
    assert {"record/probe-0/segment-001", "record/probe-1/segment-001"} <= set(store.names())
    assert store.verify() == []
    assert store.unlisted() == []


def test_losses_between_which_work_is_done_are_borne(task: osc.Task, whole: Path, tmp_path: Path, monkeypatch) -> None:
    """Three of four pieces lose their first worker: more losses than are borne in a row."""
    done = work.Bench.do

    def do(bench: work.Bench, piece: work.Piece, **options: Any) -> work.Done:
        flag = tmp_path / piece.name.replace("/", "+")
        if len(list(tmp_path.glob("lost-*"))) < work.ATTEMPTS + 1 and not flag.exists():
            flag.touch()
            flag.with_name(f"lost-{flag.name}").touch()
            os._exit(9)
        return done(bench, piece, **options)

    monkeypatch.setattr(work.Bench, "do", do)
    osc.record(task, tmp_path / "run", probes=2, jobs=2)
    assert len(list(tmp_path.glob("lost-*"))) == work.ATTEMPTS + 1
    assert digests(tmp_path / "run") == digests(whole)


def test_a_task_that_cannot_be_sent(tmp_path: Path) -> None:
    parts = tasks_tiny.char()
    loss, lock = parts["loss"], multiprocessing.Lock()
    parts["loss"] = lambda model, batch: loss(model, batch) * float(lock is not None)
    executor: Executor = ThreadPoolExecutor(1)
    with executor, pytest.raises(osc.OrderscopeError, match="cannot be sent to another process"):
        osc.record(osc.Task(**parts), tmp_path / "run", probes=1, executor=executor)


def test_shares_are_gathered_to_the_same_bytes(task: osc.Task, whole: Path, unsketched: Path) -> None:
    for worker in (2, 0):  # number 1 never ran
        sketch_share(task, unsketched, worker, 3)
    with pytest.raises(osc.IncompleteRun):
        osc.Simulator(unsketched, task)
    computed: list[int] = []
    stages: list[str] = []
    sketch(task, unsketched, jobs=1, progress=lambda stage, done, _: (stages.append(stage), computed.append(done)))
    units = len(SketchPlan.read(RunStore.open(whole)).units())
    assert computed == [*range(units - len(range(1, units, 3)), units + 1), 0, 1]
    assert list(dict.fromkeys(stages)) == ["sketch", "build the table"]
    assert digests(unsketched) == digests(whole)


def test_a_share_cut_short_is_computed_again(task: osc.Task, whole: Path, unsketched: Path) -> None:
    sketch_share(task, unsketched, 0, 2)
    file = sorted(unsketched.glob("sketch+rows*.h5"))[0]
    file.write_bytes(file.read_bytes()[:-7])
    sketch(task, unsketched)
    assert digests(unsketched) == digests(whole)


def test_a_share_that_is_none(task: osc.Task, unsketched: Path) -> None:
    with pytest.raises(osc.OrderscopeError, match="worker 2 of 2"):
        sketch_share(task, unsketched, 2, 2)
