"""What recording will take, against what it then took."""

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

import orderscope as osc
from law_tasks import untabled
from orderscope.cli.main import main
from orderscope.recording.costs import PARTS, part_seconds
from orderscope.recording.preflight import preflight
from tasks_tiny import char

KINDS = {"rows": "gradients", "curvature": "curvature", "known": "held-out losses", "held-out": "held-out losses"}


def disk(store) -> dict[str, int]:
    found: dict[str, int] = {}
    for shard in store.describe():
        kind, which, *_ = shard.name.split("/")
        if kind == "table":
            part = "table"
        elif kind == "record" and which != "task":
            part = "reference" if which == "reference" else "probes"
        else:
            part = KINDS.get(which, "other")
        found[part] = found.get(part, 0) + shard.size
    return found


def test_disk_is_told_within_a_twentieth_and_time_within_a_noisy_machine(tmp_path: Path) -> None:
    task = osc.Task(**char(steps=24))
    told = preflight(task, tmp_path)
    assert not list(tmp_path.iterdir())
    with untabled():
        raw = disk(osc.record(task, tmp_path / "raw", jobs=1))
    store = osc.record(task, tmp_path / "run", jobs=1)
    taken, seconds = disk(store), part_seconds(store)
    assert [stage.name for stage in told.stages] == [*PARTS, "query"]
    for stage in told.stages:
        if stage.name == "query":
            assert math.isnan(stage.seconds)
            continue
        assert stage.memory > 1e7
        assert stage.seconds > 0
        if stage.name == "table":  # how many directions of the curvature are kept shows when it is built
            assert 0.9 * taken["table"] < stage.disk < 2.5 * taken["table"]
            continue
        # Shards of a few kB are mostly HDF5's own; the larger ones are counted to the byte.
        assert stage.disk == pytest.approx(taken.get(stage.name, 0), rel=0.05, abs=15_000), stage
        assert stage.disk + stage.passing == pytest.approx(raw[stage.name], rel=0.05, abs=15_000), stage
    assert told.most_disk > sum(raw.values())
    whole = sum(s.seconds for s in told.stages if s.name != "query")
    assert 1 / 4 < whole / sum(seconds.values()) < 4  # other programs want the cores too


def test_what_is_asked_for_is_what_is_counted() -> None:
    task = osc.Task(**char())
    few, many = (preflight(task, anchors=a, probes=p, sample_anchors=0) for a, p in ((2, 1), (4, 3)))
    found = [{s.name: (s.disk, s.passing) for s in told.stages} for told in (few, many)]
    assert found[1]["probes"] == pytest.approx([3 * x for x in found[0]["probes"]])
    assert found[1]["gradients"][1] == pytest.approx(2 * found[0]["gradients"][1], rel=0.01)
    assert found[1]["table"][0] > found[0]["table"][0]


def test_the_doctor_tells_it(tmp_path: Path) -> None:
    Path(tmp_path / "mine.py").write_text(f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\n"
                                          "from tasks_tiny import char as task\n")  # fmt: skip
    result = CliRunner().invoke(main, ["doctor", f"{tmp_path / 'mine.py'}:task", "--dir", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert [s["name"] for s in told["stages"]] == [*PARTS, "query"]
    assert list(told["cost"]) == list(PARTS)
    assert told["cost"]["probes"] == pytest.approx(told["stages"][1]["seconds"] / told["run"])
    assert told["disk"] == sum(s["disk"] for s in told["stages"])
    assert told["most_disk"] == told["disk"] + sum(s["passing"] for s in told["stages"])
    text = CliRunner().invoke(main, ["doctor", f"{tmp_path / 'mine.py'}:task", "--dir", str(tmp_path)]).stdout
    assert "peak memory" in text
    assert "processes" in text
