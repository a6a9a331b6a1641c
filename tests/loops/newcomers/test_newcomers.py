"""Scripts as newcomers have them, and with the lines that Orderscope needs: each from there to a proposed order that
the script itself trains, to the same value."""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.utils.data import DataLoader

import orderscope as osc
from orderscope.cli.main import main as orderscope
from orderscope.cli.tasks import find_task
from orderscope.loops import notices

os.environ["HF_HUB_OFFLINE"] = "1"
HERE = Path(__file__).parent
DOCS = HERE.parents[2] / "docs" / "loops.md"
NAMES = ("trainer", "sft", "lightning_module", "gru")

pytestmark = pytest.mark.filterwarnings("ignore:::(?!orderscope)", "ignore::orderscope.loops.notices.NoGroupsWarning")


def lines(name: str) -> tuple[int, int]:
    """Lines that are new in a script, and lines of it that were changed."""
    before, after = ((HERE / part / f"{name}.py").read_text().splitlines() for part in ("before", "after"))
    new = changed = 0
    for tag, i, j, k, m in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        count = sum(bool(line.strip()) for line in after[k:m])
        altered = min(count, j - i) if tag == "replace" else 0
        changed += altered
        new += count - altered
    return new, changed


@pytest.mark.parametrize("name", NAMES)
def test_the_docs_say_how_many_lines_there_are_to_add(name: str) -> None:
    row = re.search(rf"^\| `{name}\.py` \|[^|]*\| (\d+) \| (\d+) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert row is not None, f"no row for {name}.py in {DOCS.name}"
    assert tuple(map(int, row.groups())) == lines(name)


def script(name: str) -> ModuleType:
    """A script as a module by its own name, so that the task remembered from it is found by that name."""
    path = HERE / "after" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"newcomer_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def proposed(run: Path, **options: Any) -> tuple[Any, osc.Task]:
    """A proposal made and confirmed from the task that the run remembers, and nothing else."""
    task, told = find_task(run, None)
    assert task is not None, told
    assert told.endswith("run_task.py:task, as recorded")
    best = osc.propose(osc.Simulator(run, task), metric="eval", verify=1, budget=200, anyway=True, **options)
    assert best.confirmed is not None
    assert not np.array_equal(best.order, task.order)
    return best, task


def evaluated(task: osc.Task, model: torch.nn.Module) -> float:
    model.eval()
    return task.evaluate(model)["eval"]


def fresh_accelerator() -> None:
    importlib.import_module("accelerate.state").AcceleratorState._reset_state(True)  # one for the whole process


def test_a_trainer_with_accumulation_and_dropout(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    fresh_accelerator()
    module = script("trainer")
    untouched = module.make_trainer(str(tmp_path))
    untouched.model = module.build()
    with pytest.warns(
        notices.ChanceWarning, match=r"dropout of 0\.1 .* add osc\.no_dropout\(model\), or build it with"
    ):
        osc.TrainerRecorder(untouched, tmp_path / "not-run")
    with pytest.warns(notices.ScaledWarning, match="mean over samples, times 2"):  # BERT adds micro-batches up
        module.main(str(tmp_path))
    best, task = proposed(tmp_path / "run")
    again = module.make_trainer(str(tmp_path / "again"))
    osc.play(again, best.order)
    again.train()
    assert evaluated(task, again.model) == pytest.approx(best.confirmed, abs=1e-4)  # float32, in another turn


def test_supervised_fine_tuning_with_packing(tmp_path: Path) -> None:
    for library in ("trl", "datasets", "accelerate"):
        pytest.importorskip(library)
    fresh_accelerator()
    module = script("sft")
    with pytest.warns(notices.ScaledWarning, match="mean over the tokens of the step"):
        module.main(str(tmp_path))
    best, task = proposed(tmp_path / "run", regroup=False)  # weights of tokens are those of the recorded batches
    again = module.make_trainer(str(tmp_path / "again"))
    osc.play(again, best.order)
    again.train()
    assert evaluated(task, again.model) == pytest.approx(best.confirmed, abs=1e-3)  # flattened there, padded here


def test_lightning(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    module = script("lightning_module")
    module.main(str(tmp_path))
    best, task = proposed(tmp_path / "run")
    loader = DataLoader(module.rows(64, 0), batch_sampler=osc.OrderSampler(best.order))
    trained = module.fit(str(tmp_path), loader, [])
    assert evaluated(task, trained) == pytest.approx(best.confirmed, abs=1e-5)


def test_a_plain_loop_with_a_gru_from_the_command_line(tmp_path: Path) -> None:
    path = HERE / "after" / "gru.py"
    done = subprocess.run(
        [sys.executable, str(path), str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "gradients of single samples will be taken one after the other (GRU in 'gru')" in done.stderr
    run, out = str(tmp_path / "run"), str(tmp_path / "best.npy")
    found = CliRunner().invoke(orderscope, ["propose", run, "--metric", "eval", "--verify", "1", "--budget", "200",
                                            "--out", out, "--anyway", "--json"])  # fmt: skip
    assert found.exit_code == 0, found.output
    confirmed = json.loads(found.stdout)["confirmed"]
    module = script("gru")
    task, _ = find_task(tmp_path / "run", None)
    assert task is not None
    torch.manual_seed(0)
    model = module.Tagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    sampler = osc.OrderSampler(np.load(out))
    with osc.Watcher(tmp_path / "watched", model, optimizer) as rec:
        module.train(model, optimizer, DataLoader(task.data, batch_sampler=sampler, collate_fn=module.collate), rec)
    assert evaluated(task, model) == pytest.approx(confirmed, abs=1e-5)

    again = subprocess.run(
        [sys.executable, str(path), str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert again.returncode == 1
    assert re.search(r"recorded and probed already.*to start afresh delete it \(rm -r .*to go on with it", again.stderr)
