"""Each verb killed at random instants: nothing is damaged, and the same command ends it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kill_verbs import VERBS, Killing


@pytest.mark.parametrize("verb", VERBS)
def test_killed(verb: str, tmp_path: Path) -> None:
    killing = Killing(verb, tmp_path)
    for number in range(2):
        killing.once(2, random.Random(f"{verb}-{number}"))
