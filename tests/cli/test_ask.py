"""`record`, `sketch` and `query` on a tiny task: what they print, what --json says, and exit codes."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import orderscope as osc
from commands import answer, call
from made_up import IMAGE
from orderscope.cli.record import record
from orderscope.cli.tasks import load_task, remembered_task
from orderscope.recording.costs import PARTS, answer_words

TASKS = """
import numpy as np
import orderscope as osc
import tasks_tiny

def char():
    return tasks_tiny.char()

def linear():
    return osc.Task(**tasks_tiny.linear())

ready = osc.Task(**tasks_tiny.linear())
number = 3

def broken():
    return {}["no such key"]

def classifier():
    return tasks_tiny.classifier(steps=6)

def mixed():
    kw = tasks_tiny.classifier(steps=20, batch=8)
    order = np.random.default_rng(0).permutation(160).reshape(20, 8)
    labels = np.where(kw["data"].columns[1].numpy() == 0, "zero", "other").tolist()
    return kw | {"order": order, "groups": labels, "metrics": {"eval": kw["metrics"]["eval"]}}
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tasks") / "some_tasks.py"
    file.write_text(TASKS)
    return file


@pytest.fixture(scope="module")
def recorded(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    run = tmp_path_factory.mktemp("runs") / "run"
    return run, answer("record", f"{tasks}:char", "--out", run, "--anchors", 4, "--probes", 3)


@pytest.fixture
def run(recorded: tuple[Path, dict], tmp_path: Path) -> Path:
    """A copy, so that what one test leaves in it does not matter to another."""
    shutil.copytree(recorded[0], tmp_path / "run")
    return tmp_path / "run"


def test_record(recorded: tuple[Path, dict], tasks: Path) -> None:
    run, facts = recorded
    assert facts["runs"] == ["reference", "probe-0", "probe-1", "probe-2"]
    assert facts["sketched"]
    assert all(facts["cost"][part] > 0 for part in PARTS)
    assert facts["metrics"].keys() == {"eval"}
    assert remembered_task(osc.RunStore.open(run)) == f"{tasks}:char"


def test_a_budget_is_what_is_spent(tasks: Path, tmp_path: Path) -> None:
    facts = answer("record", f"{tasks}:char", "--out", tmp_path / "run", "--budget", 9, "--no-sketch")
    assert len(facts["runs"]) == 1 + 5  # besides an anchor and two passes
    result = call("record", f"{tasks}:char", "--out", tmp_path / "other", "--budget", 9, "--probes", 3)
    assert result.exit_code == 1
    assert "found --budget and --probes; expected one or the other; leave out" in result.stderr


def test_defaults_are_those_of_the_library() -> None:
    parameters, shared = inspect.signature(osc.record).parameters, 0
    without = record.make_context("record", ["tasks.py:task", "--out", "nowhere"]).params
    for option in record.params:
        if option.name in parameters and not option.required:
            assert without[option.name] == parameters[option.name].default, option.name
            shared += 1
    assert shared > 5


def test_record_again_changes_nothing(run: Path, tasks: Path) -> None:
    before = sorted((file.name, file.read_bytes()) for file in run.glob("*.h5"))
    result = call("record", f"{tasks}:char", "--out", run, "--anchors", 4, "--probes", 3)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{run}: 4 runs trained, ")
    assert "  eval of the reference order: " in result.stdout
    assert sorted((file.name, file.read_bytes()) for file in run.glob("*.h5")) == before


def test_record_of_another_task_is_refused(run: Path, tasks: Path) -> None:
    result = call("record", f"{tasks}:linear", "--out", run)
    assert result.exit_code == 1
    assert "found a task with another data" in result.stderr
    assert remembered_task(osc.RunStore.open(run)) == f"{tasks}:char"


def test_sketch_later(tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = call("record", f"{tasks}:ready", "--out", out, "--anchors", 3, "--probes", 2, "--no-sketch")
    assert f"not sketched yet: orderscope sketch {out}" in first.stdout
    assert call("query", out, "--order", "reverse").exit_code == 5
    assert answer("sketch", out)["sketched"]
    assert call("query", out, "--order", "reverse").exit_code in (0, 3)


def test_query(run: Path) -> None:
    np.save(run.parent / "mine.npy", osc.RunStore.open(run).read("record/task", ["order"])["order"][::-1])
    facts = answer("query", run, "--order", "reference", "--order", "reverse", "--order", run.parent / "mine.npy")
    effect = facts["metrics"]["eval"]
    assert effect["sigma"] > 0
    assert effect["noise"] == effect["held_out"] > 0
    assert effect["floor"] is None
    rows = [row["metrics"]["eval"] for row in facts["orders"]]
    assert [row["order"] for row in facts["orders"]] == ["reference", "reverse", str(run.parent / "mine.npy")]
    # Side by side, orders share products in short types: the last digits depend on who is beside whom.
    assert rows[1]["value"] == pytest.approx(rows[2]["value"], rel=1e-6)
    assert rows[1]["error"] == pytest.approx(rows[2]["error"], rel=1e-3)
    assert rows[0]["value"] == pytest.approx(effect["reference"], abs=1e-4)
    assert rows[1]["difference"] == pytest.approx(rows[1]["value"] - effect["reference"])
    assert rows[1]["detectable"] == (abs(rows[1]["difference"]) > rows[1]["error"])


@pytest.fixture(scope="module")
def modelled(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a metric that is a function of the model."""
    run = tmp_path_factory.mktemp("modelled") / "run"
    answer("record", f"{tasks}:classifier", "--out", run, "--anchors", 2, "--probes", 3)
    return run


def test_held_out_losses_need_no_task(modelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orderscope.cli.options.find_task", None)
    result = call("query", modelled, "--order", "reverse", "--json")
    facts = json.loads(result.stdout)
    assert result.exit_code in (0, 3)
    assert facts["task"] == "not needed for held-out losses"
    assert facts["metrics"].keys() == {"eval"}
    assert facts["model_run_for"] == []
    assert facts["seconds"]["answer"] > 0
    assert facts["seconds"]["training"] > 0


@pytest.mark.parametrize(
    ("words", "names", "why"),
    [
        (["--metric", "accuracy"], ["accuracy"], ["accuracy"]),
        (["--metric", "accuracy", "--metric", "eval"], ["accuracy", "eval"], ["accuracy"]),
        (["--precise"], ["eval"], ["held-out losses"]),
        (["--precise", "--metric", "eval"], ["eval"], ["eval"]),
    ],
    ids=str,
)
def test_what_runs_the_model_says_so(modelled: Path, words: list[str], names: list[str], why: list[str]) -> None:
    facts = json.loads(call("query", modelled, "--order", "reverse", *words, "--json").stdout)
    assert facts["task"].endswith(":classifier, as recorded")
    assert facts["metrics"].keys() == set(names)
    assert facts["model_run_for"] == why
    text = call("query", modelled, "--order", "reverse", *words).stdout
    assert f"the model was run at the estimated weights for {', '.join(why)}" in text


def test_rough_predictions_name_the_alternative(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where left-out runs are hardly predicted better than by a constant, or the window is long."""
    sim = osc.Simulator(run)
    hint = "--effort 0.125 compares both"
    for left, shown in ((0.2, False), (0.8, True), (math.inf, False)):
        rough = {name: dataclasses.replace(sim.calibration[name], left=left) for name in sim.losses}
        monkeypatch.setattr(osc.Simulator, "calibration", rough)
        text = call("query", run, "--order", "reverse").stdout
        assert (hint in text) == shown
        assert ("err 80% as much as a constant guess" in text) == shown
    monkeypatch.setattr("orderscope.simulation.effort.LONG", sim.window.steps - 1)
    assert f"in a run of {sim.window.steps} steps" in call("query", run, "--order", "reverse").stdout


def test_without_its_task_no_model_is_run(modelled: Path, tasks: Path) -> None:
    moved = tasks.rename(tasks.with_name("away.py"))
    try:
        for words, what in ((["--metric", "accuracy"], "accuracy"), (["--precise"], "held-out losses")):
            result = call("query", modelled, "--order", "reverse", *words)
            assert result.exit_code == 1
            assert f"expected the recorded task, to run the model for {what}" in result.stderr
    finally:
        moved.rename(tasks)


def test_words_of_what_an_answer_costs() -> None:
    assert answer_words(0.1, None) == ""
    assert answer_words(0.1, 2.0) == "an answer costs 1/20 of a training (0.1 s of 2 s)"
    assert answer_words(0.1, 2.0, 39.0).endswith("; recording pays from 21 answers on")
    assert answer_words(0.2, 0.3).startswith("this window trains in 0.3 s: an answer, 0.2 s, is as dear as training")
    assert "is dearer than training the order. Asking pays where" in answer_words(0.5, 0.3, 9.0)


def test_what_an_answer_costs_is_told_beside_a_training(recorded: tuple[Path, dict], run: Path) -> None:
    seconds = recorded[1]["seconds_of"]
    assert 0 < seconds["run"] < seconds["recording"]
    assert sum(recorded[1]["cost"].values()) == pytest.approx(seconds["recording"] / seconds["run"])
    assert answer("inspect", run)["cost"] == pytest.approx(recorded[1]["cost"])
    told = call("query", run, "--order", "reverse").stdout.splitlines()[-1]
    assert "of a training" in told or "this window trains in" in told


def test_query_for_a_person(run: Path) -> None:
    result = call("query", run, "--order", "reference", "--order", "late:a|swap:1,2")
    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.splitlines() if line]
    assert lines[1].startswith("eval: 2.")
    assert lines[2].startswith("sigma_order 0.")
    assert lines[3].startswith("noise floor unknown")
    assert lines[4].startswith("held-out noise 0.")
    assert lines[5].startswith("order matters on these rows")
    assert lines[6].split() == ["order", "eval", "error", "difference", "trusted"]
    assert lines[7].startswith("reference  ")
    assert "no detectable effect" in lines[7]
    assert lines[8].startswith("late:a|swap:1,2  ")
    assert lines[0].endswith("task: not needed for held-out losses")


def test_of_a_long_run_the_proxy_is_offered(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--effort" not in call("query", run, "--order", "reverse").output
    monkeypatch.setattr("orderscope.simulation.effort.LONG", 5)
    assert "--effort 0.125" in call("query", run, "--order", "reverse").output
    assert "--effort" not in call("query", run, "--order", "reverse", "--estimator", "impulse").output


def test_query_and_train(run: Path, tasks: Path) -> None:
    task = load_task(f"{tasks}:char")
    facts = answer("query", run, "--order", "reverse", "--order", "reference", "--train")
    true = [row["metrics"]["eval"]["true"] for row in facts["orders"]]
    assert true[0] == osc.retrain(task, task.order[::-1]).metrics["eval"][0]
    assert true[1] == facts["metrics"]["eval"]["reference"]
    store = osc.RunStore.open(run)
    assert store.names("validation/") == ["validation/000"]
    assert osc.Simulator(run).runs[-1] == "validated-0"
    assert (store.read("validation/000")["order"] == task.order[None, ::-1]).all()
    again = call("query", run, "--order", "reverse", "--train")
    assert f"{true[0]:.3f}" in again.stdout
    assert re.search(r"trusted +trained\n", again.stdout)
    assert osc.RunStore.open(run).names("validation/") == ["validation/000"]
    assert call("query", run, "--order", "reverse", "--train", "--lr", "x2").exit_code == 2


def test_a_group_of_mixed_batches_is_moved_by_its_samples(tasks: Path, tmp_path: Path) -> None:
    """Whole batches would take the other groups along: nothing would change, and that with trust."""
    run = tmp_path / "run"
    answer("record", f"{tasks}:mixed", "--out", run, "--anchors", 3, "--probes", 8)
    found = answer("query", run, "--order", "late:zero", "--order", "reference", "--train", code=3)["orders"]
    for name, (before, after) in found[0]["positions"].items():
        assert (after - before > 0.2) == (name == "zero")
    assert found[1]["positions"]["zero"][0] == found[1]["positions"]["zero"][1]
    moved, same = (row["metrics"]["eval"] for row in found)
    effect = moved["true"] - same["true"]
    assert effect > 0.015
    assert abs(moved["difference"] - effect) < 0.5 * effect
    assert moved["detectable"]
    text = call("query", run, "--order", "late:zero").stdout
    assert re.search(r"late:zero: mean position of group other 0.5\d -> 0.3\d, zero 0.4\d -> 0.8\d", text), text


@pytest.mark.parametrize("lr", ["x1", "FILE"])
def test_the_recorded_rates_change_nothing(run: Path, lr: str) -> None:
    usual = answer("query", run, "--order", "reverse")["orders"]
    if lr == "FILE":
        lr = str(run.parent / "rates.npy")
        (recorded,) = {tuple(row) for row in [load_rates(run)]}
        np.save(lr, np.array(recorded))
    other = answer("query", run, "--order", "reverse", "--lr", lr)["orders"]
    assert other[0]["metrics"]["eval"]["value"] == pytest.approx(usual[0]["metrics"]["eval"]["value"], rel=1e-6)


def load_rates(run: Path) -> np.ndarray:
    from orderscope.training import load_run

    return load_run(osc.RunStore.open(run), "reference").hyper["lr"][:, 0].numpy()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--order", "nonsense"], 1, "found order expression 'nonsense'"),
        (["--order", "nowhere.npy"], 1, "found no file nowhere.npy"),
        (["--order", "reverse", "--metric", "f1"], 1, "found metric 'f1'; expected one of eval"),
        (["--order", "reverse", "--lr", "fast"], 1, "found learning rates 'fast'"),
        (["--order", "reverse", "--estimator", "tea"], 1, "found estimator 'tea'"),
        (["--order", "reverse", "--task", "no-colon"], 2, "not of the form file.py:name or module:name"),
        (["--order", "reverse", "--task", "nowhere.py:task"], 1, "found no file nowhere.py"),
        ([], 2, "Missing option '--order'"),
    ],
    ids=str,
)
def test_wrong_questions(run: Path, args: list[str], code: int, words: str) -> None:
    result = call("query", run, *args)
    assert result.exit_code == code
    assert words in result.stderr
    assert code == 2 or len(result.stderr.splitlines()) == 1


def test_untrusted_is_printed_and_is_exit_code_3(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orderscope.simulation import simulator

    monkeypatch.setattr(simulator, "near_anchors", lambda outside, _: np.zeros(len(outside), dtype=bool))
    result = call("query", run, "--order", "reverse")
    assert result.exit_code == 3
    assert "\nnot trusted: reverse: its weights go farther from the recorded states" in result.stdout
    told = answer("query", run, "--order", "reverse", "--order", "reference", code=3)["orders"]
    assert [row["metrics"]["eval"]["trusted"] for row in told] == [False, True]
    assert [len(row["metrics"]["eval"]["reasons"]) > 0 for row in told] == [True, False]


def test_a_damaged_run_is_exit_code_4(run: Path) -> None:
    shard = run / "record+reference+segment-001.h5"
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    result = call("query", run, "--order", "reverse")
    assert result.exit_code == 4
    assert "record/reference/segment-001" in result.stderr


def test_without_its_task_a_run_answers_from_what_is_stored(run: Path, tasks: Path) -> None:
    moved = tasks.rename(tasks.with_name("gone.py"))
    try:
        facts = answer("query", run, "--order", "reverse")
        assert facts["orders"][0]["metrics"]["eval"]["value"] > 0
        result = call("sketch", run)
        assert result.exit_code == 1
        assert "expected the recorded task" in result.stderr
    finally:
        moved.rename(tasks)


def test_a_packed_run_names_no_task_to_import(run: Path) -> None:
    assert call("pack", run, "--out", run.parent / "run.h5").exit_code == 0
    facts = answer("query", run.parent / "run.h5", "--order", "reverse")
    assert facts["task"] == "not needed for held-out losses"
    result = call("query", run.parent / "run.h5", "--order", "reverse", "--precise")
    assert "task not given" in result.stderr


def test_a_task_that_lies_inside_the_run_is_not_imported(run: Path, tmp_path: Path) -> None:
    (run / "evil.py").write_text(f"open({str(tmp_path / 'was-here')!r}, 'w')")
    with osc.RunStore.create(run) as store:
        store.log({"event": "task", "spec": f"{run / 'evil.py'}:task"})
    assert answer("query", run, "--order", "reverse")["orders"]
    assert "it lies inside the run" in call("query", run, "--order", "reverse", "--precise").stderr
    assert not (tmp_path / "was-here").exists()


def test_tasks(tasks: Path) -> None:
    assert load_task(f"{tasks}:ready").steps == load_task(f"{tasks}:linear").steps == 8
    for name, words in (
        ("nothing", "found no 'nothing' in"),
        ("number", "is a int"),
        ("broken", "KeyError: 'no such key' (line 16 of"),
    ):
        with pytest.raises(osc.OrderscopeError) as error:
            load_task(f"{tasks}:{name}")
        assert words in str(error.value)
    with pytest.raises(osc.OrderscopeError, match="ModuleNotFoundError"):
        load_task("no_such_module:task")


def test_names_from_a_run_do_not_steer_the_terminal(run: Path) -> None:
    result = call("query", run, "--order", f"late:{IMAGE}\x1b[2J")
    assert result.exit_code == 1
    assert "\x1b" not in result.stderr


def test_a_query_by_the_proxy_says_who_answered_and_what_it_spent(
    recorded: tuple[Path, dict], tasks: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(recorded[0], tmp_path / "run"))
    asked = ("query", run, "--order", "reverse", "--task", f"{tasks}:char")
    found = json.loads(call(*asked, "--estimator", "proxy", "--effort", "0.5", "--json").output)
    assert found["estimator"] == "proxy"
    assert found["cost"] == pytest.approx(0.5 * 5)  # the order, the reference and three probes
    assert json.loads(call(*asked, "--effort", "0.5", "--json").output)["estimator"] in ("carried", "proxy")
    told = call(*asked, "--estimator", "proxy", "--effort", "0.5").output
    assert "answered by the proxy; 0.5 runs spent on the proxy, which trains on a few samples of each batch" in told
    refused = call(*asked, "--estimator", "carried", "--effort", "0.5")
    assert refused.exit_code == 1
    assert "found --effort 0.5 for" in refused.output
