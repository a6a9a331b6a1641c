"""A task by name: `file.py:name` or `module:name`, the memory a run has of it, and whether its code may be run.

Code is run only from a file outside the run that this user has recorded or named, see `orderscope.trust`. Where it
lies is found out before any of it is run.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from orderscope.cli.text import say
from orderscope.errors import OrderscopeError, ended_by_task
from orderscope.files import inside
from orderscope.store import RunStore
from orderscope.store.names import TASK_SHARD
from orderscope.trust import ran, run_id, trust, trusted

if TYPE_CHECKING:
    from orderscope.task import Task

REMEMBERED = "task"
MISSING = "no task"  # why a Recorder wrote no task file, see `orderscope.loops.remembered`


class Spec(click.ParamType):
    """`file.py:name` or `module:name`; only its form is looked at, so that a slip costs no import."""

    name = "task"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        place, colon, name = str(value).rpartition(":")
        if not (colon and place and name.isidentifier()):
            self.fail(f"{value!r} is not of the form file.py:name or module:name", param, ctx)
        return str(value)


def load_task(spec: str, run: Path | None = None, home: Path | None = None) -> Task:
    """The task a spec names: a Task, the keyword arguments of one, or a function without arguments returning either.

    Args:
        spec: FILE:NAME or MODULE:NAME.
        run: the run it is for, none of whose files is run.
        home: as for `task_file`.

    Raises:
        OrderscopeError: it cannot be imported or built, or lies inside the run; the message names the line in which it
            failed.
    """
    file = task_file(spec, run, home)
    from orderscope.task import Task

    place, _, name = spec.rpartition(":")
    if not ran(file):
        say(f"running the code in {file}, for the first time on this machine", err=True)
    try:
        module = _module(place, file)
        if not hasattr(module, name):
            raise OrderscopeError(f"no {name!r} in {place}", "the name of a task, or of a function that returns one",
                                  "correct the part after the colon")  # fmt: skip
        found = getattr(module, name)
        if callable(found) and not isinstance(found, Task):
            found = found()
        if isinstance(found, Mapping):
            found = Task(**found)
    except OrderscopeError:
        raise
    except SystemExit as stop:
        error = ended_by_task(stop)
        raise OrderscopeError(f"{error.found}{_where(stop)}", error.expected, error.todo) from stop
    except Exception as error:  # it is the user's code: whatever it raises is reported with its place
        alone = isinstance(error, ImportError) and "relative import" in str(error)
        raise OrderscopeError(
            f"{type(error).__name__}: {error}{_where(error)} while loading task {spec}",
            "code that builds the task",
            "name the module instead of its file, package.module:name, where the package can be imported"
            if alone
            else "correct it",
        ) from error
    if not isinstance(found, Task):
        raise OrderscopeError(
            f"{spec} is a {type(found).__name__}", "an orderscope.Task, or a function returning one", "name another"
        )
    trust("", file, name)
    return found


def task_file(spec: str, run: Path | None = None, home: Path | None = None) -> Path:
    """The file whose code a spec stands for, where links lead; nothing is run to find it.

    Args:
        spec: FILE:NAME or MODULE:NAME.
        run: the run it is for, none of whose files is run.
        home: where a module's search begins, the working directory if not given.

    Raises:
        OrderscopeError: there is none, or it lies inside the run.
    """
    if run is not None:
        shun(run)
    place = spec.rpartition(":")[0]
    if _is_file(place):
        file = Path(place).resolve()
        if not file.is_file():
            raise OrderscopeError(f"no file {place}", "a Python file with the task in it", "correct the path")
    else:
        home = Path.cwd() if home is None else home
        if not _shunned(home, run):
            sys.path.insert(0, str(home))
        file = _origin(place)
    if run is not None and any(_shunned(path, run) for path in (file, place if _is_file(place) else file)):
        raise OrderscopeError(
            f"task {spec}: it lies inside the run",
            "a file of your own: no code is run from inside a run",
            "copy it out of the run, look at it, and name it with --task",
        )
    return file


def shun(run: Path) -> None:
    """Import nothing from inside a run, whatever the search path says and wherever the command was called. (A folder
    that is named by mistake may be that of the virtual environment.)"""
    if RunStore.is_there(run):
        sys.path[:] = [entry for entry in sys.path if not _shunned(entry or os.getcwd(), run)]


def _shunned(path: str | Path, run: Path | None) -> bool:
    return run is not None and inside(path, run)


def remember_task(path: Path, spec: str, task: Task) -> None:
    """Note in the run's journal where its task is, so that later commands find it, and that this user recorded it.

    Args:
        path: of the run.
        spec: file.py:name or module:name.
        task: what was loaded from there.

    Raises:
        OrderscopeError: another task was recorded there, or the run cannot be written to.
    """
    from orderscope.training import require_recorded

    file = task_file(spec, path)
    place, _, name = spec.rpartition(":")
    if _is_file(place):
        spec = f"{file}:{name}"
    with RunStore.create(path) as store:
        if TASK_SHARD in store:
            require_recorded(task, store)
        if _remembered(store) != (spec, file):
            store.log({"event": REMEMBERED, "spec": spec, "file": str(file)})
    trust(run_id(task.fingerprint()), file, name)


def remembered_task(store: RunStore) -> str | None:
    """The spec last noted; None for a packed run, which may come from someone else and name anything."""
    return (_remembered(store) or (None,))[0]


def _remembered(store: RunStore) -> tuple[str, Path] | None:
    """The spec last noted, and its file."""
    if store.path.is_file():
        return None
    events = [event for event in store.journal() if event.get("event") == REMEMBERED]
    spec = events[-1].get("spec") if events else None
    if not isinstance(spec, str):
        return None
    place = spec.rpartition(":")[0]
    file = place if _is_file(place) else events[-1].get("file")
    return spec, Path(file if isinstance(file, str) and os.path.isabs(file) else "/")


def find_task(run: Path, spec: str | None) -> tuple[Task | None, str]:
    """The task asked for, or the one the run remembers, and what to print about it.

    A remembered task that is gone, has changed, or was never this user's, is no error: stored metrics can be asked
    without it.
    """
    store = RunStore.open(run)
    if spec is not None:
        task = load_task(spec, run)
        if TASK_SHARD in store:
            trust(_id(store), task_file(spec, run), spec.rpartition(":")[2])
        return task, spec
    remembered = _remembered(store)
    if remembered is None or TASK_SHARD not in store:
        why = _missing(store)
        return None, f"not given{why}: stored metrics only (--task file.py:name names it)"
    spec, file = remembered
    from orderscope.training import require_recorded

    try:
        if inside(file, run):
            raise OrderscopeError("it lies inside the run", "a file of your own", "")
        if not trusted(_id(store), file, spec.rpartition(":")[2]):
            return None, (
                f"{spec}, which the run names but you never recorded or named: stored metrics only "
                f"(--task {spec} runs its code)"
            )
        home = _home(spec, file)
        if task_file(spec, run, home) != Path(os.path.realpath(file)):
            raise OrderscopeError("another file has that name now", "the recorded one", "")
        task = load_task(spec, run, home)
        require_recorded(task, store)
    except OrderscopeError as error:
        return None, f"{spec}, as recorded, cannot be used ({error.found}): stored metrics only"
    return task, f"{spec}, as recorded"


def _missing(store: RunStore) -> str:
    """Why the Recorder could not write down the task, in brackets; empty where nothing is known of it."""
    events = [] if store.path.is_file() else [event for event in store.journal() if event.get("event") == MISSING]
    return f" ({str(events[-1].get('why'))[:300]})" if events else ""


def _home(spec: str, file: Path) -> Path:
    """The folder from which a module's name led to its file."""
    depth = spec.rpartition(":")[0].count(".") + (file.name == "__init__.py")
    return Path(os.path.realpath(file)).parents[min(depth, len(file.parts) - 2)]


def _id(store: RunStore) -> str:
    return run_id(store.attrs(TASK_SHARD)["fingerprint"])


def need_task(task: Task | None, told: str, why: str = "to train it again") -> Task:
    """The task, where there is one.

    Args:
        task: as `find_task` found it.
        told: what `find_task` says of it.
        why: what it is needed for.

    Raises:
        OrderscopeError: there is none.
    """
    if task is None:
        raise OrderscopeError(f"task {told}", f"the recorded task, {why}", "pass --task file.py:name")
    return task


def _is_file(place: str) -> bool:
    return place.endswith(".py")


def _where(error: BaseException) -> str:
    """The line of the user's code in which it failed, as far as it is known."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" (line {error.lineno} of {error.filename})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    frames = [f for f in frames if not f.filename.startswith("<frozen")] or frames
    return f" (line {frames[-1].lineno} of {frames[-1].filename})" if frames else ""


def _origin(module: str) -> Path:
    """Where the code of a module lies. Its packages are not imported for that."""
    found: ModuleSpec | None = None
    path = None
    parts = module.split(".")
    for i in range(len(parts)):
        name = ".".join(parts[: i + 1])
        specs = (finder.find_spec(name, path) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        found = next((spec for spec in specs if spec is not None), None)
        path = None if found is None else found.submodule_search_locations
        if found is None or (path is None and i < len(parts) - 1):
            raise OrderscopeError(
                f"ModuleNotFoundError: no module {name!r} while loading task {module}",
                "a module on the search path, or a file.py",
                "correct the part before the colon",
            )
    if found is None or found.origin is None or not os.path.isfile(found.origin):
        raise OrderscopeError(f"module {module} that is no file", "a module with a task in it", "name another")
    return Path(found.origin).resolve()


def _module(place: str, file: Path) -> ModuleType:
    """Import a file as if it were run as a script (its folder comes first on the path), or a module by name."""
    if not _is_file(place):
        return importlib.import_module(place)
    sys.path.insert(0, str(file.parent))
    name = file.stem if file.stem not in sys.modules else f"orderscope_task_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
