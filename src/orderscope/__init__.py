"""Orderscope: record one training run, then ask what any other order of the same samples would have done.

Public names are loaded when they are first used, so that `import orderscope` costs milliseconds and needs no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orderscope.errors import DamagedRun as DamagedRun
    from orderscope.errors import IncompleteRun as IncompleteRun
    from orderscope.errors import OrderscopeError as OrderscopeError
    from orderscope.layout import ParameterLayout as ParameterLayout
    from orderscope.memory import memory as memory
    from orderscope.orders import OrderSampler as OrderSampler
    from orderscope.positions import positions as positions
    from orderscope.record import Recorded as Recorded
    from orderscope.record import Recorder as Recorder
    from orderscope.record import recorded as recorded
    from orderscope.record.adapters import LightningRecorder as LightningRecorder
    from orderscope.record.adapters import TrainerRecorder as TrainerRecorder
    from orderscope.record.adapters import play as play
    from orderscope.record.adapters import with_ids as with_ids
    from orderscope.recording import record as record
    from orderscope.recording import sketch as sketch
    from orderscope.retrain import Truth as Truth
    from orderscope.retrain import retrain as retrain
    from orderscope.search import propose as propose
    from orderscope.search.rates import propose_rates as propose_rates
    from orderscope.simulator import Simulator as Simulator
    from orderscope.store import RunStore as RunStore
    from orderscope.task import Task as Task
    from orderscope.validate import validate as validate

__version__ = "0.1.0"

_HOME = {
    "DamagedRun": "orderscope.errors",
    "IncompleteRun": "orderscope.errors",
    "LightningRecorder": "orderscope.record.adapters",
    "OrderscopeError": "orderscope.errors",
    "OrderSampler": "orderscope.orders",
    "ParameterLayout": "orderscope.layout",
    "Recorded": "orderscope.record",
    "Recorder": "orderscope.record",
    "RunStore": "orderscope.store",
    "Simulator": "orderscope.simulator",
    "Task": "orderscope.task",
    "TrainerRecorder": "orderscope.record.adapters",
    "Truth": "orderscope.retrain",
    "play": "orderscope.record.adapters",
    "positions": "orderscope.positions",
    "memory": "orderscope.memory",
    "propose": "orderscope.search",
    "propose_rates": "orderscope.search.rates",
    "record": "orderscope.recording",
    "recorded": "orderscope.record",
    "retrain": "orderscope.retrain",
    "sketch": "orderscope.recording",
    "validate": "orderscope.validate",
    "with_ids": "orderscope.record.adapters",
}

__all__ = [
    "DamagedRun",
    "IncompleteRun",
    "LightningRecorder",
    "OrderSampler",
    "OrderscopeError",
    "ParameterLayout",
    "Recorded",
    "Recorder",
    "RunStore",
    "Simulator",
    "Task",
    "TrainerRecorder",
    "Truth",
    "__version__",
    "memory",
    "play",
    "positions",
    "propose",
    "propose_rates",
    "record",
    "recorded",
    "retrain",
    "sketch",
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
    """Keeps `osc.record`, `osc.retrain`, ... the functions, whatever was imported before.

    Importing the submodule `orderscope.record` makes the import system bind it to the package under that name, which
    would hide the function. `from orderscope.record import ...` does not need that binding.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """A task of which a function speaks of `osc` can be sent to a worker."""
        return importlib.import_module, (__name__,)


sys.modules[__name__].__class__ = _Package
