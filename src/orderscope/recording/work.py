"""Executes the pieces of a run in this process, in local processes, or in any executor.

A worker writes the shards of its piece itself; the run's writer adopts them in the order of the list, so that the bytes
of a run are the same for any number of workers and any engine.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch

from orderscope.errors import OrderscopeError, ended_by_task
from orderscope.recording.pieces import Bench, Done, Piece, Sketching
from orderscope.recording.pieces import Training as Training
from orderscope.recording.pieces import further as further
from orderscope.recording.pieces import sketching as sketching
from orderscope.sketching import SketchPlan
from orderscope.store import RunStore
from orderscope.store.names import TASK_SHARD
from orderscope.task import Task

ATTEMPTS = 3  # workers that may be lost in a row, without a piece finished between them, before the work is given up
POLL = 0.2  # seconds between two looks at workers
Report = Callable[[int, int], None]


def complete(
    task: Task,
    store: RunStore,
    pieces: Sequence[Piece],
    *,
    jobs: int | None = None,
    executor: Executor | None = None,
    progress: Report | None = None,
    event: str = "work finished",
) -> None:
    """Compute the unfinished pieces, and write them into the run in their sequence.

    Args:
        task: what is recorded.
        store: the run, which is written to.
        pieces: independent of one another; the sequence is that in which they become part of the run.
        jobs: local processes, one thread each; see `default_jobs`.
        executor: who does it instead. Its workers must see the run's directory under the same path.
        progress: called as `progress(done, pieces)`.
        event: name of the event that is logged at the end.

    Raises:
        OrderscopeError: from a piece, or where workers were lost again and again. What was finished before it in the
            list is kept.
        Exception: whatever else a piece raised, as it was raised there.
    """
    pieces = [piece for piece in pieces if any(name not in store for name in piece.shards)]
    arrived = {i: done for i, piece in enumerate(pieces) if (done := _left(store, piece)) is not None}
    todo = [i for i in range(len(pieces)) if i not in arrived]
    kept = 0

    def keep() -> None:
        nonlocal kept
        while kept in arrived:
            store.adopt(arrived[kept].shards)
            for told in arrived[kept].events:
                store.log(told)
            kept += 1

    keep()
    if progress is not None and todo:
        progress(len(arrived), len(pieces))
    began = time.perf_counter()
    with closing(_results(Bench(task, store), [pieces[i] for i in todo], jobs, executor)) as results:
        for index, done in results:
            arrived[todo[index]] = done
            keep()
            if progress is not None:
                progress(len(arrived), len(pieces))
    if todo:
        store.log({"event": event, "seconds": time.perf_counter() - began})


def share(task: Task, store: RunStore, worker: int, workers: int, progress: Report | None = None) -> None:
    """One of several workers that know nothing of each other: compute every `workers`-th unit of the sketch, from
    number `worker` on, and leave it for whoever opens the run for writing next.

    Args:
        task: what is trained.
        store: the run on disk.
        worker: which one, from 0.
        workers: how many there are.
        progress: called as `progress(done, units)`.
    """
    bench = Bench(task, store)
    units = SketchPlan.read(store).units()[worker::workers]
    for count, unit in enumerate(units, start=1):
        if unit not in store and not store.is_left(unit):
            bench.do(Sketching(unit), leave=True)
        if progress is not None:
            progress(count, len(units))


def default_jobs(store: RunStore) -> int:
    """One process for each core this process may use, eight at most, and one more that computes while another waits for
    the disk; one alone where forking is unsafe (the model is on an accelerator) or impossible."""
    on_cpu = store.attrs(TASK_SHARD)["environment"]["device"] == "cpu" and not torch.cuda.is_initialized()
    if not on_cpu or "fork" not in multiprocessing.get_all_start_methods():
        return 1
    return min(8, available_cores()) + 1


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _left(store: RunStore, piece: Piece) -> Done | None:
    """The files of a piece that a worker of another command left."""
    found = store.left(piece.name) if isinstance(piece, Sketching) else None
    return None if found is None else Done([found[0]], found[1])


def _results(
    bench: Bench, pieces: Sequence[Piece], jobs: int | None, executor: Executor | None
) -> Generator[tuple[int, Done], None, None]:
    """Number and result of each piece, as they are finished."""
    if executor is not None:
        yield from _by_executor(executor, _elsewhere(bench), pieces)
        return
    jobs = default_jobs(bench.store) if jobs is None else jobs
    if jobs <= 1 or len(pieces) < 2:
        for index, piece in enumerate(pieces):
            yield index, bench.do(piece)
    else:
        yield from _by_processes(bench, pieces, jobs)


def _by_processes(bench: Bench, pieces: Sequence[Piece], jobs: int) -> Iterator[tuple[int, Done]]:
    """A task is closures over data: forked processes inherit it, nothing is pickled. Where one is lost, most likely
    for want of memory, the rest is done by half as many."""
    context = multiprocessing.get_context("fork")
    left = dict(enumerate(pieces))
    losses = 0
    while left:
        stop, stopped = os.pipe()
        try:
            with ProcessPoolExecutor(
                min(jobs, len(left)), mp_context=context, initializer=_start_worker,
                initargs=(bench, os.getpid(), stop),
            ) as pool:  # fmt: skip
                futures: dict[Any, int] = {}
                try:
                    with _uninterrupted():  # workers are forked here
                        futures |= {pool.submit(_work, piece): i for i, piece in left.items()}
                    for future in as_completed(futures):
                        done = _received(future.result())
                        del left[futures[future]]
                        losses = 0
                        yield futures[future], done
                except BrokenExecutor:
                    raise
                except BaseException:
                    os.write(stopped, b"x")  # the workers end, and so the pool, whose results are not awaited any more
                    raise
        except BrokenExecutor:
            losses += 1
            if losses == ATTEMPTS:
                raise _lost(next(iter(left.values())), "a process") from None
            jobs = max(1, jobs // 2)
        finally:
            os.close(stop)
            os.close(stopped)


def _by_executor(executor: Executor, function: Callable[[Piece], Any], pieces: Sequence[Piece]) -> Iterator[Any]:
    """Workers that are lost are replaced by the engine, or by another pool like it where it cannot go on."""
    left = dict(enumerate(pieces))
    own: ProcessPoolExecutor | None = None
    losses = 0
    try:
        while left:
            futures: dict[Any, int] = {}
            lost: BaseException | None = None
            try:
                futures |= {(own or executor).submit(function, piece): i for i, piece in left.items()}
            except BrokenExecutor as error:
                lost = error
            for future in _as_finished(futures):
                try:
                    found = future.result()
                except Exception as error:  # whatever an engine raises for a lost worker
                    lost = error
                    continue
                try:
                    done = _received(found)
                    del left[futures[future]]
                    losses = 0
                    yield futures[future], done
                except BaseException:
                    _cancel(futures)
                    raise
            if lost is None:
                continue
            losses += 1
            if losses == ATTEMPTS:
                raise _lost(next(iter(left.values())), f"{type(lost).__name__}: {lost}") from lost
            if isinstance(lost, BrokenExecutor):
                if own is not None:
                    own.shutdown()
                own = _like(executor, lost)
    finally:
        if own is not None:
            own.shutdown(cancel_futures=True)


def _like(executor: Executor, lost: BrokenExecutor) -> ProcessPoolExecutor:
    """A pool in the place of one that broke when a process of it ended. Raises: OrderscopeError for other engines."""
    if not isinstance(executor, ProcessPoolExecutor):
        raise OrderscopeError(
            f"a {type(executor).__name__} that takes no more work ({lost})",
            "an executor that replaces workers it loses",
            "make a new one and call this again: what was finished is kept",
        ) from lost
    names = {"max_workers": "_max_workers", "mp_context": "_mp_context", "initializer": "_initializer",
             "initargs": "_initargs"}  # fmt: skip
    settings = {name: getattr(executor, own) for name, own in names.items() if hasattr(executor, own)}
    return ProcessPoolExecutor(**settings)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes made inside do not hear Ctrl-C before they are ready to leave it to their parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _as_finished(futures: Iterable[Any]) -> Iterator[Any]:
    """As `as_completed`, also of what only behaves like a future, as submitit's jobs do."""
    left = list(futures)
    if all(isinstance(future, Future) for future in left):
        yield from as_completed(left)
        return
    while left:
        for future in [f for f in left if f.done()]:
            left.remove(future)
            yield future
        time.sleep(POLL)


def _cancel(futures: dict[Any, int]) -> None:
    for future in futures:
        future.cancel()


def _lost(piece: Piece, what: str) -> OrderscopeError:
    return OrderscopeError(
        f"a worker lost again and again, last at {piece.name} ({what})",
        "workers that live long enough for one piece of work",
        "look whether memory ran out (then use fewer jobs or a larger machine) and resume: what was finished is kept",
    )


_inherited: Bench | None = None


def _start_worker(bench: Bench, parent: int, stop: int) -> None:
    """A worker must not outlive a killed parent, nor keep the run locked for whoever resumes it. Ctrl-C is the
    parent's: it says what is kept, and stops the workers."""
    global _inherited
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    bench.store.close()  # its copy of the lock; the parent holds its own
    threading.Thread(target=_end_with, args=(parent, stop), daemon=True).start()
    torch.set_num_threads(1)
    _inherited = bench


def _end_with(parent: int, stop: int) -> None:
    while os.getppid() == parent and not select.select([stop], [], [], POLL)[0]:
        pass
    os._exit(1)


@dataclass(frozen=True)
class _Raised:
    """What a piece raised, returned as a result: an exception of the future is then the engine's own, a lost worker."""

    error: Exception


def _told(bench: Bench, piece: Piece) -> Done | _Raised:
    try:
        return bench.do(piece)
    except SystemExit as stop:
        return _Raised(ended_by_task(stop))
    except Exception as error:
        return _Raised(sendable(error, f"in a worker at {piece.name}"))


def _received(found: Done | _Raised) -> Done:
    if isinstance(found, _Raised):
        raise found.error
    return found


def sendable(error: Exception, where: str) -> Exception:
    """An exception that can be sent to another process: one that cannot be pickled is replaced by its text.

    Args:
        error: what was raised.
        where: in which worker, for the text.
    """
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever the user's class does
        return OrderscopeError(f"{type(error).__name__}: {error} {where}", "a task that can be trained", "correct it")
    return error


def _work(piece: Piece) -> Done | _Raised:
    assert _inherited is not None
    return _told(_inherited, piece)


_benches: dict[tuple[str, str, bytes], Bench] = {}
_opening = threading.Lock()


def _elsewhere(bench: Bench) -> Callable[[Piece], Any]:
    return partial(_do_elsewhere, str(bench.store.path.resolve()), bench.store.head, _pickled(bench.task))


def _do_elsewhere(path: str, head: str, pickled: bytes, piece: Piece) -> Done | _Raised:
    """In a worker of an executor: the last task and run are kept from piece to piece."""
    key = (path, head, pickled)
    with _opening:
        if key not in _benches:
            _benches.clear()
            _benches[key] = Bench(pickle.loads(pickled), RunStore.open(path))
        bench = _benches[key]
    return _told(bench, piece)


def _pickled(task: Task) -> bytes:
    """Functions defined in a script or a notebook are pickled by value, which takes cloudpickle."""
    try:
        import cloudpickle
    except ImportError:
        cloudpickle = None
    try:
        if cloudpickle is None:
            return pickle.dumps(task)
        with _by_value(cloudpickle, _own_modules(task)):
            return cloudpickle.dumps(task)
    except Exception as error:  # whatever the user's objects raise
        raise OrderscopeError(
            f"a task that cannot be sent to another process ({type(error).__name__}: {error})",
            "functions and data that can be pickled",
            "pip install cloudpickle" if cloudpickle is None else "build what cannot be pickled inside model= or loss=",
        ) from error


def _own_modules(task: Task) -> list[ModuleType]:
    """Modules of the task's parts that a worker could not import, as those loaded from a file."""
    parts = [task.model, task.loss, task.optimizer, task.scheduler, task.collate, type(task.data)]
    parts += [metric if callable(metric) else type(metric) for metric in task.metrics.values()]
    names = {getattr(part, "__module__", None) for part in parts} - {None, "__main__"}
    found = [sys.modules[name] for name in names if name in sys.modules]
    return [module for module in found if "site-packages" not in (getattr(module, "__file__", None) or "site-packages")]


@contextmanager
def _by_value(cloudpickle: Any, modules: list[ModuleType]) -> Iterator[None]:
    new = [module for module in modules if module.__name__ not in cloudpickle.list_registry_pickle_by_value()]
    for module in new:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in new:
            cloudpickle.unregister_pickle_by_value(module)
