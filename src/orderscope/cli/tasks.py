"""A task by name: `file.py:name` or `module:name`, and the memory a run has of it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from orderscope.errors import OrderscopeError
from orderscope.store import RunStore

if TYPE_CHECKING:
    from orderscope.task import Task

REMEMBERED = "task"


class Spec(click.ParamType):
    """`file.py:name` or `module:name`; only its form is looked at, so that a slip costs no import."""

    name = "task"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        place, colon, name = str(value).rpartition(":")
        if not (colon and place and name.isidentifier()):
            self.fail(f"{value!r} is not of the form file.py:name or module:name", param, ctx)
        return str(value)


def load_task(spec: str) -> Task:
    """The task a spec names: a Task, the keyword arguments of one, or a function without arguments returning either.

    Raises:
        OrderscopeError: it cannot be imported or built; the message names the line in which it failed.
    """
    from orderscope.task import Task

    place, _, name = spec.rpartition(":")
    try:
        module = _module(place)
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
    except Exception as error:  # it is the user's code: whatever it raises is told with its place
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise OrderscopeError(
            f"{type(error).__name__}: {error} (line {where.lineno} of {where.filename}) while loading task {spec}",
            "code that builds the task",
            "correct it",
        ) from error
    if not isinstance(found, Task):
        raise OrderscopeError(
            f"{spec} is a {type(found).__name__}", "an orderscope.Task, or a function returning one", "name another"
        )
    return found


def remember_task(path: Path, spec: str, task: Task) -> None:
    """Note in the run's journal where its task was, so that later commands find it. Raises as `osc.record`."""
    from orderscope.names import TASK_SHARD
    from orderscope.record import require_recorded

    place, _, name = spec.rpartition(":")
    if _is_file(place):
        spec = f"{Path(place).resolve()}:{name}"
    with RunStore.create(path) as store:
        if TASK_SHARD in store:
            require_recorded(task, store)
        if remembered_task(store) != spec:
            store.log({"event": REMEMBERED, "spec": spec})


def remembered_task(store: RunStore) -> str | None:
    """The spec last noted; None for a packed run, which may come from someone else and name anything."""
    if store.path.is_file():
        return None
    specs = [event.get("spec") for event in store.journal() if event.get("event") == REMEMBERED]
    return specs[-1] if specs and isinstance(specs[-1], str) else None


def find_task(run: Path, spec: str | None) -> tuple[Task | None, str]:
    """The task asked for, or the one the run remembers, and what to tell the user about it.

    A remembered task that is gone or has changed is no error: stored metrics can be asked without it.
    """
    if spec is not None:
        return load_task(spec), spec
    store = RunStore.open(run)
    spec = remembered_task(store)
    if spec is None:
        return None, "not given: stored metrics only (--task file.py:name names it)"
    from orderscope.record import require_recorded

    try:
        place = spec.rpartition(":")[0]
        if _is_file(place) and run.resolve() in Path(place).resolve().parents:
            raise OrderscopeError("it lies inside the run", "a file of your own", "")
        task = load_task(spec)
        require_recorded(task, store)
    except OrderscopeError as error:
        return None, f"{spec}, as recorded, cannot be used ({error.found}): stored metrics only"
    return task, f"{spec}, as recorded"


def need_task(task: Task | None, told: str) -> Task:
    """Raises: OrderscopeError where there is none."""
    if task is None:
        raise OrderscopeError(f"task {told}", "the recorded task, to train it again", "pass --task file.py:name")
    return task


def _is_file(place: str) -> bool:
    return place.endswith(".py")


def _module(place: str) -> ModuleType:
    """Import a file as if it were run as a script (its folder comes first on the path), or a module by name."""
    if not _is_file(place):
        sys.path.insert(0, "")
        return importlib.import_module(place)
    file = Path(place).resolve()
    if not file.is_file():
        raise OrderscopeError(f"no file {place}", "a Python file with the task in it", "correct the path")
    sys.path.insert(0, str(file.parent))
    name = file.stem if file.stem not in sys.modules else f"orderscope_task_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
