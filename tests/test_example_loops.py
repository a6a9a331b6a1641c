"""The examples of other people's loops, in a small form, with the real libraries where they are installed."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
LOOPS = Path(__file__).parents[1] / "examples" / "loops"
NEEDS = {
    "plain": (),
    "trainer": ("transformers", "accelerate"),
    "lora": ("transformers", "accelerate", "peft"),
    "sft": ("transformers", "accelerate", "peft", "trl", "datasets"),
    "lightning_module": ("lightning",),
}


@pytest.mark.filterwarnings("ignore:::(?!orderscope)")
@pytest.mark.parametrize("name", NEEDS)
def test_example(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in NEEDS[name]:
        pytest.importorskip(library)
    monkeypatch.syspath_prepend(str(LOOPS))
    if "accelerate" in NEEDS[name]:
        importlib.import_module("accelerate.state").AcceleratorState._reset_state(True)
    found = importlib.import_module(name).main(str(tmp_path), samples=64)
    assert abs(found["predicted"] - found["true"]) <= 3 * found["error"]  # 90 % intervals, of eight steps
    if "played" in found:  # the Trainer itself, given the order; float32 sums in another turn
        assert found["played"] == pytest.approx(found["true"], abs=1e-4)


def test_they_are_all_here() -> None:
    assert {path.stem for path in LOOPS.glob("*.py")} == {*NEEDS, "domains"}
    assert str(LOOPS) not in sys.path
