"""Torch's threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside, as many as before afterwards.

    Small tensors gain nothing from a second thread and lose much where another process wants the core: a replay of a
    35k-weight model was ten times slower with two threads on a busy machine of two cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
