"""Commands killed with SIGKILL, for tests/hostile/test_kills.py and benchmarks/torture.py."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import time
from multiprocessing.synchronize import Event
from pathlib import Path

from orderscope.store import RunStore
from run_bytes import digests

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch._dynamo", "orderscope.report.page", "orderscope.search", "orderscope.studies.validation"]
)
TASKS = "import tasks_tiny\n\ndef char():\n    return tasks_tiny.char()\n"
STUDY = """
task: {task}:char
out: run
recording: {{anchors: 3, probes: 2}}
questions:
  - orders: [reverse]
    train: true
validation: {{orders: 2}}
positions: {{units: 2, places: 2, out: heat.csv}}
proposal: {{budget: 20, verify: 1, out: best.npy}}
report: {{out: report.html}}
"""
VERBS = ("record", "sketch", "validate", "propose", "pack", "report", "export", "run")
LOOKING = ("pack", "report", "export")  # change nothing in the run
ENDED = (0, 3)


def command(verb: str, folder: Path) -> list[str]:
    """A quick call of a verb, about the run in a folder."""
    run, task = folder / "run", f"{folder.parent / 'tortured.py'}:char"
    few = ["--anchors", "3", "--probes", "2"]
    rest = {
        "unsketched": ["record", task, "--out", run, *few, "--no-sketch"],
        "record": ["record", task, "--out", run, *few, "--jobs", "2"],
        "sketch": ["sketch", run, "--jobs", "2"],
        "validate": ["validate", run, "--orders", "3"],
        "propose": ["propose", run, "--budget", "20", "--verify", "1", "--out", folder / "best.npy"],
        "pack": ["pack", run, "--out", folder / "run.h5"],
        "report": ["report", run, "--out", folder / "report.html"],
        "export": ["export", run, "--out", folder / "tables"],
        "run": ["run", folder / "study.yaml"],
    }[verb]
    return [str(word) for word in rest]


def job(words: list[str], ready: Event) -> None:
    import torch

    from orderscope.cli.main import main

    torch.set_num_threads(1)
    ready.set()
    main(words)


def begin(words: list[str]):
    ready = CONTEXT.Event()
    child = CONTEXT.Process(target=job, args=(words, ready))
    child.start()
    assert ready.wait(120)
    return child


def finish(words: list[str]) -> float:
    """Run to the end; the seconds it took."""
    child = begin(words)
    began = time.perf_counter()
    child.join()
    assert child.exitcode in ENDED, f"orderscope {' '.join(words)} ended with {child.exitcode}"
    return time.perf_counter() - began


class Killing:
    """Kills one verb again and again.

    What must hold after each kill: all that is in the run is what was written. And in the end, when the command was
    run once more: the run is whole, and what the command makes is there. Recorded and sketched runs have the bytes of
    one that was left in peace; the output of the others is whole or as it was before.
    """

    def __init__(self, verb: str, folder: Path) -> None:
        self.verb, self.folder = verb, folder
        (folder / "tortured.py").write_text(TASKS)
        self.start = folder / "start"
        self.start.mkdir()
        if verb == "run":
            (self.start / "study.yaml").write_text(STUDY.format(task=folder / "tortured.py"))
        elif verb != "record":
            finish(command("unsketched" if verb == "sketch" else "record", self.start))
        place = self._fresh()
        self.seconds = finish(command(verb, place))
        self.whole = place.rename(folder / "whole")

    def once(self, kills: int, draw: random.Random) -> int:
        """Kill a call up to `kills` times and let it end; how often it was killed."""
        place = self._fresh()
        page = place / "report.html"
        if self.verb == "report":
            page.write_text("the old page")
        killed = 0
        for _ in range(kills):
            child = begin(command(self.verb, place))
            time.sleep(draw.uniform(0, self.seconds))
            child.kill()
            child.join()
            killed += child.exitcode not in ENDED
            if (place / "run" / "manifest.jsonl").exists():
                assert RunStore.open(place / "run").verify() == []
            if self.verb == "report":
                assert page.read_text() in ("the old page", (self.whole / "report.html").read_text())
            for table in (place / "tables").glob("*.csv"):
                assert table.read_bytes() == (self.whole / "tables" / table.name).read_bytes()
            if (place / "run.h5").exists():
                assert (place / "run.h5").read_bytes() == (self.whole / "run.h5").read_bytes()
                (place / "run.h5").unlink()
        finish(command(self.verb, place))
        store = RunStore.open(place / "run")
        assert store.verify() == []
        if self.verb in ("record", "sketch"):
            assert digests(place / "run") == digests(self.whole / "run")
        if self.verb == "run":
            assert store.names("study/") == RunStore.open(self.whole / "run").names("study/")
            assert {path.name for path in place.iterdir()} == {path.name for path in self.whole.iterdir()}
        if self.verb == "export":
            tables = {path.name: path.read_bytes() for path in (self.whole / "tables").iterdir()}
            # A call that is killed while it writes leaves its temporary file behind, and nothing else.
            left = [path for path in (place / "tables").iterdir() if not path.match(".orderscope-*-*.tmp")]
            assert tables == {path.name: path.read_bytes() for path in left}
            assert tables
        for name in {"report": ["report.html"], "pack": ["run.h5"]}.get(self.verb, []):
            assert (place / name).read_bytes() == (self.whole / name).read_bytes()
        assert {"validate": "validation/", "propose": "proposal/"}.get(self.verb, "record/") in "".join(store.names())
        finish(["inspect", str(place / "run")])
        return killed

    def _fresh(self) -> Path:
        """Always the same place: a page names it."""
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        return Path(shutil.copytree(self.start, self.folder / "work"))
