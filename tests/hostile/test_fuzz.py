"""Malformed expressions, files and runs by the hundred: refused in one line, never a traceback, nothing hangs."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from commands import call
from orderscope.errors import OrderscopeError
from orderscope.orders.npy import load_array
from orderscope.store import RunStore
from orderscope.text import plain_lines
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


VALUES = [None, 3, -1.5, "x\x1b", [], {}, [[]], [None], {"a": {}}, True, 1e999, [1, "b"]]


def test_attributes_of_another_type(tmp_path: Path) -> None:
    """Sound shards that do not hold what they should: told as damage, or shown as they are."""
    made_run(tmp_path / "run")
    whole = RunStore.open(tmp_path / "run")
    keys = [(name, key) for name in whole.names() for key in whole.attrs(name)]
    draw = random.Random(0)
    for number in range(150):
        chosen = {draw.choice(keys): draw.choice(VALUES) for _ in range(draw.randint(1, 3))}
        with RunStore.create(tmp_path / f"{number}") as store:
            for name in whole.names():
                attrs = whole.attrs(name) | {key: value for (shard, key), value in chosen.items() if shard == name}
                if draw.random() < 0.1 and attrs:
                    del attrs[draw.choice(list(attrs))]
                store.write(name, whole.read(name), attrs)
        done = call("inspect", tmp_path / f"{number}")
        assert done.exit_code in (4, 5), (chosen, done.output)
        assert plain_lines(done.output) == done.output
