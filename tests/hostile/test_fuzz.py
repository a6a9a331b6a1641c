"""Malformed expressions, files and runs by the hundred: refused in one line, never a traceback, nothing hangs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orderscope.errors import OrderscopeError
from orderscope.orders.npy import load_array
from torture_cases import ask, constrain, contents, damage, expression, made_run, numpy_file, read_numpy, tally


def test_expressions() -> None:
    sound, refused = tally(5000, 0, lambda draw: ask(expression(draw)))
    assert sound > 300
    assert refused > 3000


def test_constraints() -> None:
    sound, refused = tally(5000, 0, lambda draw: constrain(expression(draw)))
    assert sound > 100
    assert refused > 3000


def test_numpy_files(tmp_path: Path) -> None:
    file = tmp_path / "order.npy"

    def one(draw) -> bool:
        file.write_bytes(numpy_file(draw))
        return read_numpy(file)

    assert tally(1000, 0, one)[1] > 900


def test_runs(tmp_path: Path) -> None:
    made_run(tmp_path / "run")
    sound = contents(tmp_path / "run")
    tally(150, 0, lambda draw: damage(tmp_path / "damaged", sound, draw))


@pytest.mark.parametrize("kind", ["fifo", "directory", "link to a fifo", "device"])
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "order.npy"
    if kind == "directory":
        place.mkdir()
    elif kind == "device":
        place.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "fifo").rename(place) if kind == "fifo" else place.symlink_to(tmp_path / "fifo")
    with pytest.raises(OrderscopeError, match="that is no file"):
        load_array(str(place), "an order")
