"""Where left-out predictions go wrong: the study, its summary, and how it is kept."""

from __future__ import annotations

import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import orderscope as osc
import tasks_tiny
from commands import answer, call
from law_tasks import simulated
from orderscope.answers.stored import keep_step_errors, kept_step_errors
from orderscope.store import RunStore
from orderscope.studies.step_map import StepErrorMap, held_out_loss, rms


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> osc.Simulator:
    """Eight probes, of which one regroups the samples."""
    return simulated(tasks_tiny.char(steps=12), tmp_path_factory.mktemp("steps"), anchors=4, probes=8)[0]


@pytest.fixture(scope="module")
def found(sim: osc.Simulator) -> StepErrorMap:
    return osc.step_errors(sim)


@pytest.fixture
def run(sim: osc.Simulator, tmp_path: Path) -> Path:
    shutil.copytree(sim.path, tmp_path / "run")
    return tmp_path / "run"


def made_up(effect: np.ndarray, **values: object) -> StepErrorMap:
    runs = tuple(f"probe-{i}" for i in range(len(effect)))
    total = np.nansum(effect, axis=1)
    plain = StepErrorMap("eval", runs, (), *np.full((3, *effect.shape), 0.1), effect, error=total, weights=total)
    return replace(plain, **values)  # type: ignore[arg-type]


def test_regrouped_probes_are_left_out_and_named(sim: osc.Simulator, found: StepErrorMap) -> None:
    regrouped = sim.regrouped(sim.run_orders) > 0
    assert regrouped.sum() == 1
    assert found.without == (sim.runs[int(regrouped.argmax())],)
    assert found.runs == tuple(run for run, left in zip(sim.runs, regrouped, strict=True) if not left)
    assert found.effect.shape == (7, 12)
    assert np.isfinite(found.effect).all()
    assert found.metric == "eval"


def test_effects_go_with_the_errors_of_the_true_runs(found: StepErrorMap) -> None:
    assert found.agreement > 0.99
    assert rms(found.total) == pytest.approx(rms(found.weights), rel=0.05)
    assert found.cost > 0


def test_errors_are_those_of_the_left_out_predictions(sim: osc.Simulator, found: StepErrorMap) -> None:
    rows = [sim.runs.index(run) for run in found.runs]
    calibration = sim.calibration["eval"]
    np.testing.assert_allclose(found.error, sim.left_out.values["eval"][rows] - calibration.true[rows])
    assert sim.task is not None
    model_error = sim.metric_model(sim.left_out.theta[rows], ["eval"], precise=True)["eval"] - calibration.true[rows]
    np.testing.assert_allclose(found.weights, model_error, atol=0.1 * np.abs(model_error).max())


def test_some_runs(sim: osc.Simulator, found: StepErrorMap) -> None:
    seen: list[tuple[int, int]] = []
    two = osc.step_errors(sim, "eval", found.runs[2:4], progress=lambda _, done, total: seen.append((done, total)))
    assert two.runs == found.runs[2:4]
    np.testing.assert_array_equal(two.effect, found.effect[2:4])
    assert seen == [(1, 2), (2, 2)]
    assert osc.step_errors(sim, runs=found.runs[0]).runs == found.runs[:1]
    regrouped = osc.step_errors(sim, runs=found.without)
    assert (regrouped.runs, regrouped.segments, regrouped.without) == ((), (), found.without)


def test_segments_cover_the_run_once() -> None:
    effect = np.zeros((2, 25))
    effect[:, 3], effect[0, 4], effect[1, 24] = [3.0, -4.0], 1.0, 2.0
    parts = made_up(effect).segments
    assert len(parts) == 10
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert (parts[0].start, parts[-1].stop) == (0, 25)
    assert sum(part.share for part in parts) == pytest.approx(1)
    (with_three,) = (part for part in parts if part.start <= 3 < part.stop)
    assert (with_three.start, with_three.stop) == (2, 5)
    assert with_three.effect == pytest.approx(math.sqrt((4**2 + 4**2) / 2))
    assert with_three.mean == 0
    assert parts[-1].share == pytest.approx(2**2 / (4**2 + 4**2 + 2**2))
    assert len(made_up(np.ones((3, 4))).segments) == 4


def test_what_is_not_known_is_left_out_of_medians() -> None:
    effect, gradient = np.ones((2, 10)), np.full((2, 10), np.nan)
    gradient[0, 3], effect[1, 5:] = 0.2, np.nan
    found = made_up(effect, gradient=gradient)
    assert found.segments[3].gradient == 0.2
    assert math.isnan(found.segments[4].gradient)
    np.testing.assert_array_equal(found.total, [10, 5])
    assert math.isnan(found.agreement)  # of two runs


def test_it_is_kept_and_read_again(found: StepErrorMap, tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run") as store:
        assert kept_step_errors(store, "eval") is None
        assert keep_step_errors(store, found) == "step-errors/000"
        keep_step_errors(store, replace(found, metric="other", cost=math.nan))
    store = RunStore.open(tmp_path / "run")
    again = kept_step_errors(store, "eval", [*found.runs, *found.without])
    assert again is not None
    assert (again.runs, again.without, again.cost) == (found.runs, found.without, found.cost)
    for name, values in found.arrays().items():
        np.testing.assert_array_equal(getattr(again, name), values)
    assert kept_step_errors(store, "eval", found.runs) is None  # other true runs
    other = kept_step_errors(store, "other")
    assert other is not None
    assert math.isnan(other.cost)


def test_arrays_that_do_not_fit_are_damage(found: StepErrorMap, tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run") as store:
        keep_step_errors(store, replace(found, error=found.error[:2]))
        with pytest.raises(osc.DamagedRun, match="arrays of step-errors/000 of different lengths"):
            kept_step_errors(store, "eval")


def test_wrong_questions(sim: osc.Simulator) -> None:
    with pytest.raises(osc.OrderscopeError, match=r"metric 'bleu'; expected a held-out loss, one of eval"):
        osc.step_errors(sim, "bleu")
    with pytest.raises(osc.OrderscopeError, match=r"run 'reference'; expected one of probe-0, "):
        osc.step_errors(sim, runs=["reference"])
    functions = {"metric_names": ["accuracy"], "metrics": {"accuracy": None}}
    with pytest.raises(osc.OrderscopeError, match="a run without held-out losses"):
        held_out_loss(functions, None)
    with pytest.raises(osc.OrderscopeError, match="metric 'accuracy'"):
        held_out_loss(functions | {"metric_names": ["accuracy"]}, "accuracy")


def test_without_true_runs(tmp_path: Path) -> None:
    bare = simulated(tasks_tiny.char(steps=4), tmp_path, anchors=2, probes=0)[0]
    with pytest.raises(osc.OrderscopeError, match="without true runs under other orders"):
        osc.step_errors(bare)


def test_inspect_tells_the_segments(run: Path, found: StepErrorMap) -> None:
    result = call("inspect", run, "--steps")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"{run}: where predictions of eval go wrong"
    assert lines[1] == "7 true runs, each predicted without its own states"
    assert max(map(len, lines[1:])) <= 80
    assert [line.split()[0] for line in lines if line.strip()[:1].isdigit()][1:] == [
        str(part.start) for part in found.segments
    ]
    assert f"not among them: {found.without[0]}; its batches were not recorded" in lines
    assert lines[-1].startswith("cost: ")


def test_json_has_it_all_and_it_is_kept(run: Path, found: StepErrorMap) -> None:
    first = answer("inspect", run, "--steps", "--metric", "eval")
    told = first["step_errors"]
    assert first["state"] == "complete"
    assert (told["kept"], told["read"], told["metric"]) == ("step-errors/000", False, "eval")
    np.testing.assert_allclose(told["effect"], found.effect)
    assert told["runs"] == list(found.runs)
    assert len(told["segments"]) == 10
    unknown = [[value is None for value in row] for row in told["cosine"]]
    np.testing.assert_array_equal(unknown, np.isnan(found.cosine))
    again = answer("inspect", run, "--steps")["step_errors"]
    assert (again.pop("kept"), again.pop("read")) == (None, True)
    assert again == {key: value for key, value in told.items() if key not in ("kept", "read")}


def test_what_was_trained_since_makes_it_stale(run: Path, found: StepErrorMap) -> None:
    with RunStore.create(run) as store:
        keep_step_errors(store, replace(found, runs=found.runs[:-1], **{k: v[:-1] for k, v in found.arrays().items()}))
    told = answer("inspect", run, "--steps")["step_errors"]
    assert (told["kept"], told["read"]) == ("step-errors/001", False)


def test_inspect_of_another_metric_or_of_an_unfinished_run(run: Path) -> None:
    result = call("inspect", run, "--steps", "--metric", "nope")
    assert result.exit_code == 1
    assert "found metric 'nope'; expected a held-out loss, one of eval" in result.stderr
    result = call("inspect", run, "--metric", "eval")
    assert result.exit_code == 2
    assert "--metric goes with --steps" in result.stderr
    (run / "record+reference+segment-001.h5").write_bytes(b"")
    result = call("inspect", run, "--steps")
    assert result.exit_code == 4
    assert "damaged: " in result.stdout


def test_what_is_kept_is_told_without_torch(run: Path) -> None:
    import os
    import subprocess

    call("inspect", run, "--steps")
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom orderscope.cli.main import main\n"
        "done = CliRunner().invoke(main, sys.argv[1:])\n"
        "print(done.exit_code, 'share' in done.output, 'torch' in sys.modules)"
    )
    for options, expected in ((["--steps"], "0 True False"), ([], "0 False False")):
        done = subprocess.run(
            [sys.executable, "-c", code, "inspect", str(run), *options], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert done.stdout.strip() == expected
