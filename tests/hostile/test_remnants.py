"""What a kill, a shortened manifest or a damaged journal leave: named, skipped, never written over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import orderscope as osc
from commands import answer, call
from orderscope.cli.tasks import load_task
from orderscope.recording.work import complete, further
from orderscope.store import RunStore
from orderscope.studies.validation import unseen_orders
from torture_cases import contents


@pytest.fixture(scope="module")
def validated(recorded: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three orders were trained to check; the command ended before it did more."""
    run = tmp_path_factory.mktemp("validated") / "run"
    shutil.copytree(recorded, run)
    orders, task = list(unseen(run)), load_task(f"{tasks}:char")
    with RunStore.create(run) as store:
        complete(task, store, further(store, "validated-", orders), jobs=1)
    return run


def unseen(run: Path) -> np.ndarray:
    """The orders that `validate --orders 3` asks for."""
    return unseen_orders(osc.Simulator(run), 3, 0)


@pytest.fixture
def run(validated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(validated, tmp_path / "run"))


def cut(run: Path, name: str) -> list[str]:
    """Take a shard's line, and all after it, from the manifest; the files stay. What was named there."""
    lines = (run / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    names = [json.loads(line).get("name") for line in lines]
    keep = names.index(name)
    (run / "manifest.jsonl").write_bytes(b"".join(lines[:keep]))
    return names[keep:]


def shards(run: Path) -> dict[str, bytes]:
    return {name: raw for name, raw in contents(run).items() if name.endswith(".h5")}


def segments(run: Path) -> dict[str, bytes]:
    """What no later shard takes the place of."""
    return {name: raw for name, raw in shards(run).items() if "+segment-" in name}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_kill_between_the_two_files_of_a_validated_run(run: Path, number: int) -> None:
    before = segments(run)
    cut(run, f"record/validated-{number}/segment-001")
    facts = answer("inspect", run)
    assert facts["state"] == "complete"
    assert facts["missing"] == []
    assert facts["remnants"] == [f"validated-{number}"]
    assert f"validated-{number} was interrupted, and is not used" in call("inspect", run).output
    assert answer("query", run, "--order", "reverse")["orders"]
    answer("validate", run, "--orders", 3)
    after = shards(run)
    assert {name: after[name] for name in before} == before  # the same runs under the same names; nothing is lost
    facts = answer("inspect", run)
    assert (facts["state"], facts["remnants"]) == ("complete", [])
    assert {r["name"] for r in facts["runs"] if r["name"].startswith("validated-")} == {
        f"validated-{i}" for i in range(3)
    }


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["record/validated-1/segment-000", "record/validated-2/segment-001"])
def test_a_shortened_manifest(run: Path, name: str, seed: int) -> None:
    """Other orders are validated, or the same again: no shard of a run is written over."""
    before = segments(run)
    gone = cut(run, name)
    facts = answer("inspect", run)
    assert len(facts["unlisted"]) == len(gone)
    shown = call("inspect", run).output
    assert all(f"unlisted: {file}, in no line of the manifest" in shown for file in facts["unlisted"])
    answer("validate", run, "--orders", 3, "--seed", seed)
    after = shards(run)
    assert {name: after[name] for name in before} == before
    assert RunStore.open(run).verify() == []


def test_a_manifest_that_has_lost_what_was_dropped_is_damage(run: Path) -> None:
    """Shards that later ones took the place of are gone: an older manifest names files that are missing."""
    answer("validate", run, "--orders", 3)
    before = shards(run)
    dropped = [line for line in (run / "manifest.jsonl").read_bytes().splitlines() if b'"dropped"' in line]
    name = json.loads(dropped[-1])["dropped"]
    lines = (run / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (run / "manifest.jsonl").write_bytes(b"".join(lines[: lines.index(dropped[-1] + b"\n")]))
    done = call("inspect", run)
    assert done.exit_code == 4
    assert f"shard {name} " in done.output
    assert {key: raw for key, raw in shards(run).items() if key in before} == before


def test_a_shard_whose_file_was_there_is_set_aside(made: Path) -> None:
    (made / "new.h5").write_bytes(b"of somebody")
    (made / "new.h5.aside-0").write_bytes(b"of somebody else")
    with RunStore.create(made) as store:
        assert store.unlisted() == ["new.h5", "new.h5.aside-0"]
        store.write("new", {"x": np.ones(3)})
        assert store.read("new")["x"].tolist() == [1, 1, 1]
        assert store.unlisted() == ["new.h5.aside-0", "new.h5.aside-1"]
    assert (made / "new.h5.aside-1").read_bytes() == b"of somebody"
    assert (made / "new.h5.aside-0").read_bytes() == b"of somebody else"


def test_a_shard_of_the_same_bytes_is_taken(made: Path) -> None:
    cut(made, "validation/000")
    raw = (made / "validation+000.h5").read_bytes()
    with RunStore.create(made) as store:
        store.write("validation/000", {"order": np.arange(96).reshape(1, 24, 4)}, {"noise_floor": {}})
        assert store.unlisted() == []
    assert (made / "validation+000.h5").read_bytes() == raw


def test_numbers_of_answers_go_on_after_what_is_there(made: Path) -> None:
    (made / "proposal+007.h5").write_bytes(b"")
    with RunStore.create(made) as store:
        assert store.next_name("validation/") == "validation/001"
        assert store.next_name("proposal/") == "proposal/008"
        assert store.next_name("positions/") == "positions/000"
        assert store.next_number("record/validated-") == 1
        assert store.next_number("record/confirmed-") == 0


def test_a_bit_of_the_journal(made: Path) -> None:
    """Each is found, whatever it changes; inspect says how many lines are ignored, and does not fail."""
    file = made / "journal.jsonl"
    sound = file.read_bytes()
    whole = RunStore.open(made).journal()
    for at in range(0, len(sound), 7):
        raw = bytearray(sound)
        raw[at] ^= 1 << at % 7
        file.write_bytes(raw)
        store = RunStore.open(made)
        told = [
            {key: value for key, value in event.items() if key in whole[0] | whole[-1]} for event in store.journal()
        ]
        assert all(any(event.items() <= known.items() for known in whole) for event in told), at
        assert store.ignored() + len(store.journal()) >= len(whole) - 1
    facts = answer("inspect", made, code=5)
    assert facts["ignored_lines"] == 1
    assert "  ignored: 1 lines of the journal" in call("inspect", made).output


@pytest.mark.parametrize("line", [
    {"event": "segment", "run": "reference", "index": [], "seconds": "much"}, {"event": "segment"},
    {"event": "segment", "run": "reference", "index": 0, "train_seconds": None, "seconds": {}},
    {"event": "sketched", "unit": 3, "seconds": float("nan")}, {"event": "work finished", "seconds": [1]},
    {"event": "query", "orders": 3}, {"event": "query", "orders": [3, None]}, {"event": "task", "spec": 3},
    {"event": []}, {"event": "task", "spec": "x.py:a", "file": 3},
], ids=str)  # fmt: skip
def test_an_event_that_is_not_what_it_should_be(made: Path, line: dict) -> None:
    with RunStore.create(made) as store:
        store.log(line)
    assert call("inspect", made).exit_code == 5


def test_lines_of_an_older_version_are_read(made: Path) -> None:
    with open(made / "journal.jsonl", "a") as file:
        file.write('{"event": "query", "orders": ["interleave"]}\n')
    store = RunStore.open(made)
    assert store.journal()[-1] == {"event": "query", "orders": ["interleave"]}
    assert store.ignored() == 0


def test_what_follows_a_torn_line_is_read(made: Path) -> None:
    with open(made / "journal.jsonl", "a") as file:
        file.write('{"event": "que')
    with RunStore.create(made) as store:
        store.log({"event": "new"})
        assert store.journal()[-1] == {"event": "new"}
        assert store.ignored() == 1


def test_shards_of_a_worker_are_added_all_or_none(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orderscope.store import run as module

    with RunStore.create(made) as store:
        annex = store.annex()
        annex.write("one", {"x": np.ones(3)})
        annex.write("two", {"x": np.ones(3)})
        sound = (made / "manifest.jsonl").read_bytes()

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(module, "_write_whole", full)
        with pytest.raises(OSError, match="No space"):
            store.adopt(annex.written)
        assert (made / "manifest.jsonl").read_bytes() == sound
        monkeypatch.undo()
        calls = []
        monkeypatch.setattr(module, "_write_whole", lambda *args: calls.append(args))
        store.adopt(annex.written)
        assert len(calls) == 1
        assert calls[0][1].count(b"\n") == 2
