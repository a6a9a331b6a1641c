"""Progress on stderr: bars with the time left where rich and a terminal are there, else one line a stage."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from orderscope.cli.text import plain, say

Report = Callable[[str, int, int], None]

COUNTED = {
    "train the reference": "step",
    "probes and sketch": "unit",
    "sketch": "unit",
    "search": "order",
    "schedules": "schedule",
    "confirm": "run",
    "train unseen orders": "order",
    "train the noise floor": "run",
    "predict unseen orders": "order",
    "predict orders": "order",
    "positions": "cell",
    "train cells": "cell",
}  # what a stage counts; "sketch, share 0 of 4" counts as "sketch" does


def counted(stage: str, total: int) -> str:
    """A total with what is counted; a stage that is not known here counts without a name.

    Example:
        >>> counted("train the reference", 48), counted("confirm", 1)
        ('48 steps', '1 run')
    """
    noun = COUNTED.get(stage.partition(",")[0])
    return str(total) if noun is None else f"{total} {noun}" + "s" * (total != 1)


@contextmanager
def progress_bars(quiet: bool = False) -> Iterator[Report]:
    """A function `(stage, done, total)` to be called as work goes on.

    Args:
        quiet: show nothing unless stderr is a terminal.
    """
    terminal = sys.stderr.isatty()
    rich = _rich() if terminal else None
    if rich is not None:
        yield from _bars(rich)
    elif terminal:
        try:
            yield _OneLine()
        finally:
            click.echo(err=True)
    else:
        yield _silent if quiet else _Lines()


def _silent(stage: str, done: int, total: int) -> None:
    pass


def _rich() -> Any:
    try:
        import rich.console
        import rich.progress
    except ImportError:
        return None
    return rich


def _bars(rich: Any) -> Iterator[Report]:
    parts = rich.progress
    columns = (
        parts.TextColumn("{task.description}", markup=False),
        parts.BarColumn(),
        parts.TextColumn("{task.completed} of {task.fields[counted]}"),
        parts.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with parts.Progress(*columns, console=rich.console.Console(stderr=True)) as bars:
        ids: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in ids:
                ids[stage] = bars.add_task(plain(stage), total=total, counted="")
            bars.update(ids[stage], completed=done, total=total, counted=counted(stage, total))

        yield report


class _Clock:
    """How long each stage has taken, and will still take at that pace.

    A stage begins when the one before was last heard of: its own first word comes when some of it is done.
    """

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._heard = time.monotonic()

    def seconds(self, stage: str) -> float:
        began = self._began.setdefault(stage, self._heard)
        self._heard = time.monotonic()
        return self._heard - began

    def left(self, stage: str, done: int, total: int) -> float:
        return self.seconds(stage) * (total - done) / max(done, 1)


class _Lines:
    """One line when a stage is finished, and one a minute in a long one."""

    EVERY = 60.0

    def __init__(self) -> None:
        self._clock, self._told, self._finished = _Clock(), time.monotonic(), set[str]()

    def __call__(self, stage: str, done: int, total: int) -> None:
        seconds = self._clock.seconds(stage)
        if done >= total and stage not in self._finished:
            self._finished.add(stage)
            say(f"{plain(stage)}: {counted(stage, total)} in {seconds:.1f} s", err=True)
        elif done < total and time.monotonic() - self._told > self.EVERY:
            self._told = time.monotonic()
            left = self._clock.left(stage, done, total)
            say(f"{plain(stage)}: {done} of {counted(stage, total)}, {left:.0f} s left", err=True)


class _OneLine:
    """One line that is written over."""

    def __init__(self) -> None:
        self._clock = _Clock()

    def __call__(self, stage: str, done: int, total: int) -> None:
        left = self._clock.left(stage, done, total)
        click.echo(f"\r\x1b[K{plain(stage)}: {done} of {counted(stage, total)}, {left:.0f} s left", nl=False, err=True)
