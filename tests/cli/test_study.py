"""`orderscope run`: a study file is checked whole, done once, and gone on with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import orderscope as osc
from commands import answer, call
from orderscope.cli import study as studies
from orderscope.cli.study_checks import check_places
from orderscope.errors import OrderscopeError
from orderscope.simulation.simulator import Simulator

TASKS = """
import tasks_tiny

def linear():
    return tasks_tiny.linear()

def classifier():
    return tasks_tiny.classifier(steps=6)
"""
WHOLE = """
task: study_tasks.py:linear
out: run
recording: {anchors: 2, probes: 3, curvature_rows: 32}
questions:
  - orders: [reverse, "early:a", own.npy]
  - orders: [interleave, "swap:0,3"]
    train: true
  - orders: [reverse]
    lr: x0.5
validation: {orders: 2}
positions: {units: 2, places: 2, out: heat.csv}
proposal: {budget: 20, verify: 1, regroup: false, out: best.npy}
report: {out: page.html}
"""
PARTS = ["recording", "question 1 of 3", "question 2 of 3", "question 3 of 3", "validation", "positions", "proposal",
         "report"]  # fmt: skip


def written(folder: Path, text: str = WHOLE, name: str = "study.yaml") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "study_tasks.py").write_text(TASKS)
    np.save(folder / "own.npy", np.arange(32).reshape(8, 4)[::-1])
    (folder / name).write_text(text)
    return folder / name


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A study that was interrupted while it searched, and called again."""
    file = written(tmp_path_factory.mktemp("study") / "whole")

    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("orderscope.search.portfolio.Portfolio._together", press)
        result = call("run", file)
    assert result.exit_code == 130, result.output
    assert not osc.RunStore.open(file.parent / "run").names("proposal/")
    assert "what was finished is kept in" in result.stderr
    result = call("run", file, "--json")
    assert result.exit_code in (0, 3), result.output
    return file, json.loads(result.stdout)


def test_an_interrupted_study_goes_on(done: tuple[Path, dict[str, Any]]) -> None:
    file, facts = done
    assert facts["done_before"] == PARTS[:6]
    assert facts["recording"]["runs"] == ["reference", "probe-0", "probe-1", "probe-2"]
    assert [row["order"] for row in facts["questions"][0]["orders"]] == ["reverse", "early:a", "own.npy"]
    assert all("true" in row["metrics"]["eval"] for row in facts["questions"][1]["orders"])
    assert facts["questions"][2]["lr"] == "x0.5"
    assert len(facts["validation"]["metrics"]["eval"]["true"]) == 2
    assert np.load(file.parent / "best.npy").tolist() == facts["proposal"]["order"]
    assert (file.parent / "heat.csv").read_text().startswith("unit,recorded_at,place")
    assert (file.parent / "page.html").stat().st_size == facts["report"]["bytes"]


def test_it_is_kept_in_the_run_with_its_defaults(done: tuple[Path, dict[str, Any]]) -> None:
    file, facts = done
    store = osc.RunStore.open(file.parent / "run")
    assert store.names("study/plan-") == ["study/plan-000"]
    kept = store.attrs("study/plan-000")["study"]
    assert kept == facts["resolved"]
    assert kept["recording"]["coords"] == 32768
    assert kept["proposal"]["metric"] == kept["report"]["metric"] == "eval"
    assert kept["validation"]["metrics"] == kept["questions"][0]["metrics"] == ["eval"]
    assert store.verify() == []


def test_again_it_says_the_same_and_does_nothing(
    done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, facts = done
    before = osc.RunStore.open(file.parent / "run").head
    (file.parent / "best.npy").unlink()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was done again")

    monkeypatch.setattr(Simulator, "__init__", refuse)
    monkeypatch.setattr("orderscope.recording.record.record_run", lambda *_, **__: None)
    again = json.loads(call("run", file, "--json").stdout)
    assert again["done_before"] == PARTS
    assert {**again, "done_before": 0} == {**facts, "done_before": 0}
    assert np.load(file.parent / "best.npy").tolist() == facts["proposal"]["order"]
    told = call("run", file)
    assert told.stdout.count("(done before)") == len(PARTS)
    assert "order written to" in told.stdout
    assert osc.RunStore.open(file.parent / "run").head == before


def test_what_is_added_is_asked_alone(done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    file, facts = done
    asked: list[list[str]] = []
    from orderscope.cli import query

    ask = query.ask

    def noted(sim: Any, texts: list[str], **options: Any) -> dict[str, Any]:
        asked.append(texts)
        return ask(sim, texts, **options)

    monkeypatch.setattr(query, "ask", noted)
    more = file.with_name("more.yaml")
    more.write_text(WHOLE.replace("[reverse, ", "[reverse, 'move:0,5', ").partition("validation")[0])
    facts = json.loads(call("run", more, "--json").stdout)
    assert asked == [["move:0,5"]]
    assert [row["order"] for row in facts["questions"][0]["orders"]] == ["reverse", "move:0,5", "early:a", "own.npy"]
    other = file.with_name("other.yaml")
    other.write_text(WHOLE.replace("probes: 3", "probes: 4"))
    told = call("run", other)
    assert told.exit_code == 1
    assert told.stderr.splitlines()[-1] == (
        f"orderscope: found {other}: recording.probes: 4; expected 3, as run was recorded; "
        "put it back, or choose another out"
    )


def test_a_dry_run_starts_nothing(tmp_path: Path) -> None:
    toml = 'task = "study_tasks.py:classifier"\nout = "run"\n[[questions]]\norders = ["reverse"]\n[proposal]\n'
    file = written(tmp_path, toml, "study.toml")
    facts = answer("run", file, "--dry-run")["resolved"]
    assert facts["recording"]["probes"] == 8
    assert facts["questions"][0]["metrics"] == ["eval"]
    assert facts["proposal"]["verify"] == 3
    assert facts["validation"] is facts["report"] is None
    told = call("run", file, "--dry-run").stdout
    again = written(tmp_path, told.replace("  budget: null\n", "").replace("null", "NONE"), "again.yaml")
    kept = "\n".join(line for line in again.read_text().splitlines() if "NONE" not in line)
    assert answer("run", written(tmp_path, kept, "kept.yaml"), "--dry-run")["resolved"] == facts
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("task: [", ["study.yaml: expected the node content, but found '<stream end>' in line 1; expected YAML; correct"
                     " it"]),
        ("- 1", ["study.yaml: a list; expected keys and values"]),
        ("out: a\nout: b", ["study.yaml: key 'out' twice, again in line 2; expected each key once; remove one"]),
        ("task: study_tasks.py:linear\nout: run\nproposal:\n",
         ["study.yaml: proposal: no value; expected one; {} takes every default of a section"]),
        ("task: study_tasks.py:linear",
         ["study.yaml: out: nothing; expected the key out, which is needed; add it"]),
        ("task: study_tasks.py:linear\nout: run\nrecording: {probs: 3, anchors: two, jobs: 0}",
         ["study.yaml: recording.anchors: 'two'; expected a valid integer; correct it",
          "study.yaml: recording.jobs: 0; expected greater than or equal to 1; correct it",
          "study.yaml: recording.probs: an unknown key; expected one of anchors, probes, "]),
        ("task: study_tasks.py:linear\nout: run\nproposal: {metric: 3}",
         ["study.yaml: proposal.metric: 3; expected a valid string, or a valid list, or a valid dictionary; correct"]),
        ("task: study_tasks.py\nout: run", ["study.yaml: task: 'study_tasks.py'; expected file.py:name"]),
        ("task: nowhere.py:task\nout: run", ["study.yaml: task: no file "]),
        ("task: study_tasks.py:linear\nout: run\nquestions: [{orders: [reverse], lr: much, train: true}]\n"
         "proposal: {out: best.txt}\nreport: {out: run/page.html}",
         ["study.yaml: questions[0].train: it beside lr; expected the recorded rates; leave out train or lr",
          "study.yaml: questions[0].lr: learning rates 'much'; expected x0.5, ",
          "study.yaml: proposal.out: 'best.txt'; expected a file that ends in .npy; change its name",
          "study.yaml: report.out: run/page.html, inside the run; expected a place outside of it"]),
        ("task: study_tasks.py:linear\nout: run\nrecording: {budget: 9, probes: 2, reuse: [gone.npy]}",
         ["study.yaml: recording.probes: it beside budget; expected one or the other; leave out budget or probes",
          "study.yaml: recording.reuse[0]: nothing at gone.npy; expected a .npy file or a recording;"]),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file(tmp_path: Path, text: str, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("orderscope.cli.run.load_task", lambda *_: pytest.fail("the task was loaded"))
    result = call("run", file.name)
    assert result.exit_code == 1
    found = result.stderr.splitlines()
    assert len(found) == len(lines), result.stderr
    for told, line in zip(found, lines, strict=True):
        assert told.startswith(f"orderscope: found {line}")
        assert told.count("; ") >= 2
    assert not (tmp_path / "run").exists()


def test_what_only_the_task_can_tell(tmp_path: Path) -> None:
    text = """
task: study_tasks.py:linear
out: run
questions:
  - {orders: [sideways, "early:z"], metrics: [evil], lr: rates.npy}
validation: {metrics: [eval, eval]}
proposal: {metric: [eval, b], schedules: true, constraints: ["after:a:99"]}
report: {out: page.html, metric: nothing}
"""
    np.save(tmp_path / "rates.npy", np.ones(3))
    result = call("run", written(tmp_path, text), "--dry-run")
    assert result.exit_code == 1
    keys = [line.split(": ")[2] for line in result.stderr.splitlines() if line.startswith("orderscope: found")]
    assert keys == ["questions[0].metrics", "questions[0].orders[0]", "questions[0].orders[1]", "questions[0].lr",
                    "validation.metrics", "proposal.metric", "proposal.schedules", "proposal.constraints[0]",
                    "report.metric"]  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_usage(tmp_path: Path) -> None:
    assert call("run", tmp_path / "gone.yaml").exit_code == 2
    assert call("run", tmp_path).exit_code == 2
    result = call("run", written(tmp_path, name="study.json"))
    assert result.exit_code == 2
    assert "a study ends in .yaml, .yml, .toml" in result.stderr


@pytest.mark.parametrize(("missing", "line"), [
    ("pydantic", "found no pydantic here; expected pydantic, which checks study files"),
    ("yaml", "YAML, and no pyyaml here; expected pyyaml, which reads it"),
])  # fmt: skip
def test_an_extra_that_is_missing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, line: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "pydantic":
        import orderscope.cli

        monkeypatch.delitem(sys.modules, "orderscope.cli.study")
        monkeypatch.delattr(orderscope.cli, "study")
    result = call("run", written(tmp_path))
    assert result.exit_code == 1
    assert line in result.stderr
    assert "pip install 'orderscope[study]'" in result.stderr


def test_the_examples_are_sound() -> None:
    folder = Path(__file__).parents[2]
    for file in (folder / "examples" / "characters.yaml", folder / "docs" / "study.yaml"):
        study = studies.read_study(file)
        check_places(file, study)
        assert study.report is not None


def test_a_damaged_answer_is_told(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    from orderscope.cli.run import Work

    with osc.RunStore.create(tmp_path / "run") as store:
        store.write("study/answer-0", {}, {"found": 3})
    work = Work.__new__(Work)
    work.run = tmp_path / "run"
    with pytest.raises(OrderscopeError, match="shard study/answer-0 without an answer"):
        work._found("study/answer-0")
