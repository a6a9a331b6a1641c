"""Progress on stderr: bars with the time left where rich and a terminal are there, else plain lines.

A stage that takes longer than `SOON` seconds says so by itself, whether or not it counts anything: a thread looks at
the clock while the work goes on.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import click

from orderscope.cli.text import plain, say

Report = Callable[[str, int, int], None]

COUNTED = {
    "train the reference": "step",
    "probes and sketch": "unit",
    "sketch": "unit",
    "build the table": "",
    "run the model": "evaluation",
    "search": "order",
    "schedules": "schedule",
    "confirm": "run",
    "train unseen orders": "order",
    "train the noise floor": "run",
    "predict unseen orders": "order",
    "predict orders": "order",
    "measure the batches": "part",
    "positions": "cell",
    "train cells": "cell",
    "compare gradients of left-out runs": "run",
    "predict shifted orders": "order",
    "train candidates on few samples": "order",
}  # what a stage counts, nothing where it is done in one piece; "sketch, share 0 of 4" counts as "sketch" does
SOON = 1.5  # seconds after which a running stage is shown
EVERY, SHARE = 10.0, 0.1  # then a line every 10 seconds, or every tenth of the stage's time, whichever is longer
TICK = 0.25  # seconds between two looks at the clock


def counted(stage: str, total: int) -> str:
    """A total with what is counted; a stage that is not known here counts without a name.

    Example:
        >>> counted("train the reference", 48), counted("confirm", 1)
        ('48 steps', '1 run')
    """
    noun = _noun(stage)
    return str(total) if noun is None else f"{total} {noun}" + "s" * (total != 1)


def _noun(stage: str) -> str | None:
    return COUNTED.get(stage.partition(",")[0])


def _counts(stage: str, total: int) -> bool:
    return total > 0 and _noun(stage) != ""


def spell(seconds: float) -> str:
    """A length of time in at most two units.

    Example:
        >>> spell(7.4), spell(200), spell(7500)
        ('7 s', '3 min 20 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole < 600 and whole % 60 else "")
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@contextmanager
def progress_bars(quiet: bool = False) -> Iterator[Report]:
    """A function `(stage, done, total)` to be called when a stage begins, with nothing done, and as it goes on. A stage
    with a total of 0 counts nothing: only its time is shown.

    Args:
        quiet: show nothing unless stderr is a terminal.
    """
    terminal = sys.stderr.isatty()
    rich = _rich() if terminal else None
    if rich is not None:
        yield from _bars(rich)
    elif quiet and not terminal:
        yield _silent
    else:
        yield from _watched(_OneLine() if terminal else _Lines())


@contextmanager
def doing(words: str, *, quiet: bool = False) -> Iterator[None]:
    """Show the name of a stage without a count, if it takes longer than `SOON`."""
    with progress_bars(quiet) as progress:
        progress(words, 0, 0)
        yield


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
        parts.BarColumn(bar_width=16),
        parts.TextColumn("{task.fields[count]}"),
        parts.TimeElapsedColumn(),
        parts.TextColumn("{task.fields[left]}"),
    )

    with parts.Progress(*columns, console=rich.console.Console(stderr=True)) as bars:
        ids: dict[str, Any] = {}
        totals: dict[str, int] = {}
        clock = _Clock()

        def report(stage: str, done: int, total: int) -> None:
            clock.note(stage, done)
            for other in [name for name in ids if name != stage and not totals[name]]:
                bars.remove_task(ids.pop(other))  # what counts nothing ends where another begins
            totals[stage] = total
            if stage not in ids:
                ids[stage] = bars.add_task(plain(stage), total=total or None, count="", left="")
            count = f"{done} of {counted(stage, total)}" if _counts(stage, total) else ""
            going = 0 < done < total
            left = f"{spell(clock.left(stage, done, total))} left" if going else ""
            bars.update(ids[stage], completed=done, total=total or None, count=count, left=left)

        try:
            yield report
        finally:
            for task in bars.tasks:
                if task.total is None:
                    bars.remove_task(task.id)


class _Shown(Protocol):
    def __call__(self, stage: str, done: int, total: int) -> None: ...

    def tick(self) -> None: ...

    def close(self) -> None: ...


def _watched(shown: _Shown) -> Iterator[Report]:
    """Prints reports from this thread, and elapsed time from a second one."""
    lock, over = threading.Lock(), threading.Event()

    def watch() -> None:
        while not over.wait(TICK):
            try:
                with lock:
                    shown.tick()
            except (OSError, ValueError):  # nobody reads stderr any more
                return

    def report(stage: str, done: int, total: int) -> None:
        with lock:
            shown(stage, done, total)

    thread = threading.Thread(target=watch, name="orderscope-progress", daemon=True)
    thread.start()
    try:
        yield report
    finally:
        over.set()
        thread.join()
        shown.close()


class _Clock:
    """The elapsed time of each stage, and its remaining time at the same pace.

    A stage begins when it is heard of with nothing done; else when the one before was last heard of, since its own
    first word comes when some of it is done.
    """

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._at: dict[str, float] = {}
        self._done: dict[str, int] = {}
        self._heard = time.monotonic()

    def note(self, stage: str, done: int) -> None:
        now = time.monotonic()
        if not done and self._done.get(stage, 1):  # for the first time, or once more
            self._began[stage] = now
        self._began.setdefault(stage, self._heard)
        self._heard = self._at[stage] = now
        self._done[stage] = done

    def seconds(self, stage: str) -> float:
        return time.monotonic() - self._began[stage]

    def left(self, stage: str, done: int, total: int) -> float:
        """Remaining seconds, from the pace up to the last report of the stage."""
        pace = (self._at[stage] - self._began[stage]) / max(done, 1)
        return max(0.0, pace * (total - done) - (time.monotonic() - self._at[stage]))

    def words(self, stage: str, done: int, total: int) -> str:
        if not _counts(stage, total):
            return f"{plain(stage)}: {spell(self.seconds(stage))} so far"
        if done < 1:
            return f"{plain(stage)}: 0 of {counted(stage, total)}, {spell(self.seconds(stage))} so far"
        return f"{plain(stage)}: {done} of {counted(stage, total)}, {spell(self.left(stage, done, total))} left"


class _Lines:
    """One line when a counted stage is finished, one soon after a stage has begun, and more in a long one."""

    def __init__(self) -> None:
        self._clock, self._finished = _Clock(), set[str]()
        self._now: tuple[str, int, int] | None = None
        self._said, self._printed = "", time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._clock.note(stage, done)
        if total and done >= total:
            if stage not in self._finished:
                self._finished.add(stage)
                seconds = self._clock.seconds(stage)
                what = f"{counted(stage, total)} in " if _counts(stage, total) else ""
                say(f"{plain(stage)}: {what}{seconds:.1f} s", err=True)
                self._printed = time.monotonic()
            stage, done, total = f"{stage} is done, going on", 0, 0  # the next stage has not reported yet
            self._clock.note(stage, done)
        self._now = (stage, done, total)
        self.tick()

    def tick(self) -> None:
        if self._now is None:
            return
        stage = self._now[0]
        seconds, since = self._clock.seconds(stage), time.monotonic() - self._printed
        if seconds < SOON if stage != self._said else since < max(EVERY, SHARE * seconds):
            return
        self._said, self._printed = stage, time.monotonic()
        say(self._clock.words(*self._now), err=True)

    def close(self) -> None:
        pass


class _OneLine:
    """One line that is overwritten."""

    def __init__(self) -> None:
        self._clock, self._shown = _Clock(), ""
        self._now: tuple[str, int, int] | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._clock.note(stage, done)
        self._now = (stage, done, total)
        self.tick()

    def tick(self) -> None:
        if self._now is None:
            return
        words = self._clock.words(*self._now)
        if words != self._shown:
            self._shown = words
            click.echo(f"\r\x1b[K{words}", nl=False, err=True)

    def close(self) -> None:
        """Erase the line of a stage without a count."""
        if self._now is not None and self._shown:
            click.echo("\n" if self._now[2] else "\r\x1b[K", nl=False, err=True)
