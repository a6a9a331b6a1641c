"""Answers that are kept in a run where it can be written to."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from orderscope.errors import OrderscopeError
from orderscope.store import RunStore, add_if_possible, pack


def note(store: RunStore) -> str:
    store.write("note/000", {"x": np.arange(3)})
    return "note/000"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with RunStore.create(tmp_path / "run") as store:
        store.write("first", {"x": np.arange(2)})
    return tmp_path / "run"


def test_written_where_it_can_be(place: Path) -> None:
    assert add_if_possible(place, note) == "note/000"
    assert RunStore.open(place).names() == ["first", "note/000"]


def test_a_packed_run_stays_and_none_is_made(place: Path) -> None:
    pack(place, place.with_suffix(".h5"))
    before = place.with_suffix(".h5").read_bytes()
    refused: list[Exception] = []
    for path in (place.with_suffix(".h5"), place.with_name("missing")):
        assert add_if_possible(path, note, refused=refused.append) is None
    assert refused == []
    assert place.with_suffix(".h5").read_bytes() == before
    assert not place.with_name("missing").exists()


def test_what_prevents_it_is_handed_on(place: Path) -> None:
    refused: list[Exception] = []
    with RunStore.create(place):  # another writer holds the run
        assert add_if_possible(place, note, refused=refused.append) is None
    assert isinstance(refused[0], OrderscopeError)

    def full(_: RunStore) -> str:
        raise OSError(os.strerror(28))

    assert add_if_possible(place, full, refused=refused.append) is None
    assert isinstance(refused[1], OSError)
    assert RunStore.open(place).names() == ["first"]


def test_mistakes_of_the_caller_are_not_hidden(place: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        add_if_possible(place, lambda _: 1 / 0)
