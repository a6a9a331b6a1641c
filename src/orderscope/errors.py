"""Errors a user can act on: what was found, what was expected, what to do.

Every error raised on purpose is an `OrderscopeError`. Its text is one line, and its exit code is the one the command
line ends with.
"""

from __future__ import annotations


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
        super().__init__(f"found {found}; expected {expected}; {todo}")


class DamagedRun(OrderscopeError):
    """A file of the run is not what its manifest says: missing, cut short, or with other bytes."""

    exit_code = 4


class IncompleteRun(OrderscopeError):
    """The record or the sketch was interrupted; what is there is sound and can be resumed."""

    exit_code = 5
