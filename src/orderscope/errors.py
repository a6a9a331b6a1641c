"""Errors a user can act on: what was found, what was expected, what to do.

Every error raised on purpose is an `OrderscopeError`. Its text is one line, whatever names it quotes, and its exit code
is the one the command line ends with.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from orderscope.text import plain


class OrderscopeError(Exception):
    """An expected error.

    Args:
        found: what was found, with the offending value in it.
        expected: what would have been right.
        todo: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, found: str, expected: str, todo: str) -> None:
        self.found, self.expected, self.todo = found, expected, todo
        super().__init__(plain(f"found {found}; expected {expected}; {todo}"))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the attributes instead of the constructor call, so that errors of subclasses arrive from workers."""
        return _remade, (type(self), self.args, self.__dict__)


class DamagedRun(OrderscopeError):
    """A file of the run is not what its manifest says: missing, cut short, or with other bytes."""

    exit_code = 4


class IncompleteRun(OrderscopeError):
    """The recording or the sketch was interrupted; its finished parts are valid, and it can be resumed."""

    exit_code = 5


def unknown_metric(name: str | None, known: Iterable[str]) -> OrderscopeError:
    """The refusal of a metric that is not among the known ones, or of a question where there are none.

    Args:
        name: as given.
        known: names that would be right.
    """
    names = ", ".join(known)
    if not names:
        return OrderscopeError(
            "a run without metrics",
            "one metric at least",
            "record another run, with metrics= of the task",
        )
    return OrderscopeError(f"metric {name!r}", f"one of {names}", "name a recorded metric")


def without_task(why: str, what: str = "a simulator") -> OrderscopeError:
    """The refusal of what needs the recorded task of a simulator that was opened without it.

    Args:
        why: what the task is needed for, as "to train it".
        what: what was asked of the simulator, as "the seed method on a Simulator".
    """
    return OrderscopeError(f"{what} without its task", f"the task, {why}", "give it: Simulator(path, task)")


def check_whole(least: int, /, **numbers: Any) -> None:
    """Refuse options that are not whole numbers.

    Args:
        least: the smallest value allowed.
        numbers: option name -> value; 3.0 counts as whole, "3", nan and None do not.

    Raises:
        OrderscopeError: naming the first option that is not whole or below `least`.
    """
    for name, value in numbers.items():
        try:
            whole = int(value) == value
        except (TypeError, ValueError, OverflowError):
            whole = False
        if not whole or value < least:
            raise OrderscopeError(f"{name}={value!r}", f"a whole number from {least}", f"change {name}=")


def ended_by_task(stop: SystemExit) -> OrderscopeError:
    """The error for code of the user's that ends the program in the middle of the work."""
    return OrderscopeError(
        f"sys.exit({stop.code!r}) in the code of the task", "code that returns", "take it out, or raise an exception"
    )


def _remade(kind: type[OrderscopeError], args: tuple[Any, ...], held: dict[str, Any]) -> OrderscopeError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(held)
    return error
