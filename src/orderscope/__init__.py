"""Orderscope: record one training run, then ask what any other order of the same samples would have done.

Public names are loaded when they are first used, so that `import orderscope` costs milliseconds and needs no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orderscope.answers.study import Study as Study
    from orderscope.errors import DamagedRun as DamagedRun
    from orderscope.errors import IncompleteRun as IncompleteRun
    from orderscope.errors import OrderscopeError as OrderscopeError
    from orderscope.loops import Recorded as Recorded
    from orderscope.loops import Recorder as Recorder
    from orderscope.loops import RecorderWarning as RecorderWarning
    from orderscope.loops import Watcher as Watcher
    from orderscope.loops import no_dropout as no_dropout
    from orderscope.loops import recorded as recorded
    from orderscope.loops.adapters import LightningRecorder as LightningRecorder
    from orderscope.loops.adapters import TrainerRecorder as TrainerRecorder
    from orderscope.loops.adapters import play as play
    from orderscope.loops.adapters import with_ids as with_ids
    from orderscope.orders import OrderSampler as OrderSampler
    from orderscope.orders.loader import OrderLoader as OrderLoader
    from orderscope.recording.record import record as record
    from orderscope.recording.record import sketch as sketch
    from orderscope.search import propose as propose
    from orderscope.search.rates import propose_rates as propose_rates
    from orderscope.simulation.simulator import Simulator as Simulator
    from orderscope.store import RunStore as RunStore
    from orderscope.studies.memory import memory as memory
    from orderscope.studies.positions import positions as positions
    from orderscope.studies.resolution import resolution as resolution
    from orderscope.studies.step_errors import step_errors as step_errors
    from orderscope.studies.validation import validate as validate
    from orderscope.task import Task as Task
    from orderscope.task.layout import ParameterLayout as ParameterLayout
    from orderscope.training.retrain import Truth as Truth
    from orderscope.training.retrain import retrain as retrain

__version__ = "0.1.0"

_HOME = {
    "DamagedRun": "orderscope.errors",
    "IncompleteRun": "orderscope.errors",
    "LightningRecorder": "orderscope.loops.adapters",
    "OrderscopeError": "orderscope.errors",
    "OrderLoader": "orderscope.orders.loader",
    "OrderSampler": "orderscope.orders",
    "ParameterLayout": "orderscope.task.layout",
    "Recorded": "orderscope.loops",
    "Recorder": "orderscope.loops",
    "RecorderWarning": "orderscope.loops",
    "RunStore": "orderscope.store",
    "Simulator": "orderscope.simulation.simulator",
    "Study": "orderscope.answers.study",
    "Task": "orderscope.task",
    "TrainerRecorder": "orderscope.loops.adapters",
    "Truth": "orderscope.training.retrain",
    "Watcher": "orderscope.loops",
    "no_dropout": "orderscope.loops",
    "play": "orderscope.loops.adapters",
    "positions": "orderscope.studies.positions",
    "memory": "orderscope.studies.memory",
    "propose": "orderscope.search",
    "propose_rates": "orderscope.search.rates",
    "record": "orderscope.recording.record",
    "recorded": "orderscope.loops",
    "retrain": "orderscope.training.retrain",
    "sketch": "orderscope.recording.record",
    "resolution": "orderscope.studies.resolution",
    "step_errors": "orderscope.studies.step_errors",
    "validate": "orderscope.studies.validation",
    "with_ids": "orderscope.loops.adapters",
}

__all__ = [
    "DamagedRun",
    "IncompleteRun",
    "LightningRecorder",
    "OrderLoader",
    "OrderSampler",
    "OrderscopeError",
    "ParameterLayout",
    "Recorded",
    "Recorder",
    "RecorderWarning",
    "RunStore",
    "Simulator",
    "Study",
    "Task",
    "TrainerRecorder",
    "Truth",
    "Watcher",
    "__version__",
    "memory",
    "no_dropout",
    "play",
    "positions",
    "propose",
    "propose_rates",
    "record",
    "recorded",
    "resolution",
    "retrain",
    "sketch",
    "step_errors",
    "validate",
    "with_ids",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


class _Package(ModuleType):
    """Keeps `osc.record` the function where the former module of that name was imported, which the import system would
    bind to the package."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Tasks whose functions refer to `osc` can be sent to a worker."""
        return importlib.import_module, (__name__,)


sys.modules[__name__].__class__ = _Package
