"""What commands add to a run on the side: kept where the run can be written to, left out where it cannot."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from orderscope.errors import OrderscopeError
from orderscope.store.run import RunStore

T = TypeVar("T")


def add_if_possible(
    path: str | os.PathLike[str],
    write: Callable[[RunStore], T],
    *,
    refused: Callable[[Exception], None] | None = None,
) -> T | None:
    """Add to a run, where this process can; an answer is given whether or not it could be kept.

    Nothing is written to a packed run, to a run that another process writes to, that this user may not write to or that
    is damaged, or to a full disk.

    Args:
        path: the run; one that does not exist is not made.
        write: does the writing on the store, opened for writing.
        refused: called with the error that prevented the writing. Of a run that is no directory there is none.

    Returns:
        What `write` returned, None where nothing was written.
    """
    if not Path(path).is_dir():
        return None
    try:
        with RunStore.create(path) as store:
            return write(store)
    except (OrderscopeError, OSError) as error:
        if refused is not None:
            refused(error)
        return None
