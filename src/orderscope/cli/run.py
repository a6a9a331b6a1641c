"""`orderscope run`: carry out a study file, part by part, each part once."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from orderscope.cli import RUN
from orderscope.cli import positions as maps
from orderscope.cli import propose as proposing
from orderscope.cli import query as querying
from orderscope.cli import record as recording
from orderscope.cli import validate as validating
from orderscope.cli.kept import end, keep, try_writing
from orderscope.cli.options import set_threads
from orderscope.cli.progress import doing, progress_bars
from orderscope.cli.query import UNTRUSTED
from orderscope.cli.tasks import load_task, remember_task, shun
from orderscope.cli.text import json_option, plain, print_json, say, size
from orderscope.errors import DamagedRun, OrderscopeError
from orderscope.store import RunStore
from orderscope.store.names import FURTHER, TABLE

if TYPE_CHECKING:
    from orderscope.cli.study import Question, Study
    from orderscope.task import Task

PLAN = "study/plan-"
REPORTED = "study report"


@click.command()
@click.argument("file", metavar="STUDY", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Check the study, print it with its defaults written out, and end.")
@json_option
def run(file: Path, dry_run: bool, as_json: bool) -> None:
    """Carry out a study file: record, query, validate, map positions, propose, report.

    STUDY is a .yaml or .toml file. It is checked whole before anything starts, and kept in the run with its defaults
    written out. Paths in it are named from its own folder.

    If it is interrupted and called again, it resumes; finished parts are printed again and not repeated. Exit code 3
    where an answer is outside what can be trusted.
    """
    try:
        from orderscope.cli import study as studies
        from orderscope.cli import study_checks as checks
    except ImportError:
        raise OrderscopeError(
            "no pydantic here", "pydantic, which checks study files", "pip install 'orderscope[study]'"
        ) from None
    if file.suffix not in studies.SUFFIXES:
        raise click.BadParameter(f"{file}: a study ends in {', '.join(studies.SUFFIXES)}", param_hint="STUDY")
    try:
        study = studies.read_study(file)
        places = checks.Places(file, study)
        click.get_current_context().meta[RUN] = places.run
        shun(places.run)
        checks.check_places(file, study)
        if not as_json:
            say(f"{file}: loading task {study.task}", err=True)
        with doing("load torch and the task", quiet=as_json):
            set_threads(study.threads)
            task = load_task(places.spec, places.run)
        study = checks.resolved(file, study, task)
    except studies.WrongStudy as wrong:
        for error in wrong.errors:
            say(f"orderscope: {plain(str(error))}", err=True)
        click.get_current_context().exit(1)
    facts = study.model_dump(mode="json")
    if dry_run:
        if as_json:
            print_json({"study": str(file), "resolved": facts})
        else:
            studies.as_text(facts, say)
        return
    work = Work(file, study, task, as_json)
    work.all()
    if as_json:
        print_json({"study": str(file), "run": str(places.run), "resolved": facts, **work.told})
    end("; ".join(work.failed) or None, 0 if work.trusted else UNTRUSTED)


class Work:
    """The parts of a study. What each found is a shard `study/KIND-KEY` of the run, the key made of what was asked, so
    that no part is done twice.

    Attributes:
        told: results of each part, as JSON values.
        failed: files that could not be written, and why.
        trusted: whether every answer lies inside what can be trusted.
    """

    def __init__(self, file: Path, study: Study, task: Task, quiet: bool) -> None:
        from orderscope.cli.study_checks import Places

        self.file, self.study, self.task, self.quiet = file, study, task, quiet
        self.places = Places(file, study)
        self.run = self.places.run
        self.told: dict[str, Any] = {"done_before": []}
        self.failed: list[str] = []
        self.trusted = True

    def all(self) -> None:
        self.recording()
        self.told["questions"] = [self.question(i, question) for i, question in enumerate(self.study.questions)]
        if self.study.validation is not None:
            self.told["validation"] = self.validation(self.study.validation)
        if self.study.positions is not None:
            self.told["positions"] = self.positions(self.study.positions)
        if self.study.proposal is not None:
            self.told["proposal"] = self.proposal(self.study.proposal)
        if self.study.report is not None:
            self.told["report"] = self.report(self.study.report)

    def recording(self) -> None:
        from orderscope.cli.study import RECORDING, recording_facts

        done = RunStore.is_there(self.run) and bool(RunStore.open(self.run).names(f"{TABLE}left-out-"))
        self._head("recording", str(self.run), done=done)
        remember_task(self.run, self.places.spec, self.task)
        facts = self.study.model_dump(mode="json")
        with RunStore.create(self.run) as store:
            if RECORDING not in store:
                store.write(RECORDING, {}, recording_facts(self.study))
            if not any(store.attrs(name).get("study") == facts for name in store.names(PLAN)):
                store.write(store.next_name(PLAN), {}, {"study": facts})
        options = self.study.recording.model_dump()
        options["reuse"] = [self.places.path(text) for text in options["reuse"]]
        began = time.monotonic()
        recording.train(self.task, self.run, self.quiet, **options)
        found = recording.summary(self.run, timed=False)
        found["runs"] = [name for name in found["runs"] if not name.startswith(FURTHER)]
        self.told["recording"] = {key: value for key, value in found.items() if key not in ("seconds_of", "bytes")}
        if not self.quiet:
            recording.show({**found, "seconds": time.monotonic() - began})

    def question(self, index: int, question: Question) -> dict[str, Any]:
        """Answer a question; each order is predicted once, and training results are stored order by order."""
        asked = question.model_dump(mode="json", exclude={"orders"})
        if question.lr is not None:
            asked["lr"] = self.places.digest(str(question.lr))
        names = [_name("answer", {**asked, "order": self.places.digest(text)}) for text in question.orders]
        told = f"question {index + 1} of {len(self.study.questions)}"
        new = [i for i, name in enumerate(names) if self._found(name) is None and names.index(name) == i]
        self._head(told, ", ".join(question.orders), done=not new)
        answers: dict[str, dict[str, Any]] = {}
        sim: Any = self._simulator() if new else None
        for some in [[i] for i in new] if question.train else [new] if new else []:
            facts = querying.ask(
                sim, [self.places.order(question.orders[i]) for i in some], metrics=question.metrics,
                precise=question.precise, estimator=question.estimator, rates=self.places.rates(question.lr),
                train=question.train, quiet=self.quiet,
            )  # fmt: skip
            for i, row in zip(some, facts["orders"], strict=True):
                answers[names[i]] = self._keep(names[i], {"metrics": facts["metrics"], "row": row})
        found = [answers.get(name) or self._found(name) or {} for name in names]
        rows = [_numbers(one["row"]) | {"order": text} for one, text in zip(found, question.orders, strict=True)]
        facts = {
            "estimator": question.estimator,
            "lr": None if question.lr is None else str(question.lr),
            "model_run_for": querying.models_run(
                self.run, question.metrics, precise=question.precise, estimator=question.estimator
            ),
            "metrics": found[0]["metrics"],
            "orders": rows,
        }
        self.trusted &= querying.is_trusted(facts)
        if not self.quiet:
            querying.show(facts)
        return facts

    def validation(self, asked: Any) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            return validating.check(self._simulator(), orders=asked.orders, metrics=asked.metrics, seed=asked.seed,
                                    quiet=self.quiet)  # fmt: skip

        facts = self._once("validation", asked, f"{asked.orders} unseen orders", work)
        if not self.quiet:
            validating.show({**facts, "run": str(self.run)})
        return facts

    def positions(self, asked: Any) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            _, kept = maps.mapped(
                self._simulator(), units=asked.units, places=asked.places, verify=asked.verify, quiet=self.quiet
            )
            return {"kept": _kept(kept)}

        from orderscope.answers.stored import json_value
        from orderscope.studies.heatmap import Heat

        name = self._once("positions", asked, "moving batches", work)["kept"]
        store = RunStore.open(self.run)
        heat = Heat(**store.read(name), metric=store.attrs(name)["metric"])
        if not self.quiet:
            maps.show(self.run, heat)
        self._write(asked.out, "map", lambda path: maps.write_heat(path, heat))
        return {"kept": name, "out": asked.out, "metric": heat.metric, **json_value(heat.arrays())}

    def proposal(self, asked: Any) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            options = asked.model_dump(exclude={"out"})
            _, facts = proposing.search(self._simulator(), quiet=self.quiet, partial=False, **options)
            return {key: facts[key] for key in ("schedule", "trusted") if key in facts} | {"kept": _kept(facts["kept"])}

        stage = self._once("proposal", asked, f"{asked.budget} orders scored at most", work)
        store = RunStore.open(self.run)
        order = store.read(stage["kept"], ["order"])["order"]
        facts = {**store.attrs(stage["kept"]), **stage, "out": asked.out}
        self.trusted &= bool(facts["trusted"])
        if not self.quiet:
            proposing.show({**facts, "out": None})
        self._write(asked.out, "order", lambda path: proposing.write_order(path, order))
        return facts | {"order": np.asarray(order).tolist()}

    def report(self, asked: Any) -> dict[str, Any]:
        """Write the report, unless neither the file nor the run has changed since it was written."""
        out = self.places.path(asked.out)
        store = RunStore.open(self.run)
        written = [event for event in store.journal() if event.get("event") == REPORTED]
        state = {"head": store.head, "metric": asked.metric}
        done = out.is_file() and any(event.get("sha256") == _sha256(out) and event.get("state") == state
                                     for event in written[-1:])  # fmt: skip
        self._head("report", asked.out, done=done)
        if not done:
            from orderscope.report.page import write_report

            with progress_bars(quiet=self.quiet) as progress:
                write_report(self._simulator(), out, metric=asked.metric, progress=progress)
            keep(self.run, lambda store: _log(store, {"event": REPORTED, "sha256": _sha256(out), "state": state}))
        if not self.quiet:
            say(f"{plain(str(out))}: {size(out.stat().st_size)}, open it in a browser")
        return {"file": str(out), "bytes": out.stat().st_size}

    def _simulator(self) -> Any:
        """The simulator, opened again for every part, since orders trained by one part improve predictions of the
        next."""
        with doing(f"open {self.run}", quiet=self.quiet):
            from orderscope.simulation.simulator import Simulator

            return Simulator(self.run, self.task)

    def _once(self, kind: str, asked: Any, words: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        name = _name(kind, asked.model_dump(mode="json", exclude={"out"}))
        found = self._found(name)
        self._head(kind, words, done=found is not None)
        return self._keep(name, work()) if found is None else found

    def _found(self, name: str) -> dict[str, Any] | None:
        """The stored result of a part. Raises DamagedRun if it is not in the form that such a part writes."""
        store = RunStore.open(self.run)
        if name not in store:
            return None
        found = store.attrs(name).get("found")
        if not isinstance(found, dict):
            raise DamagedRun(f"shard {name} without an answer", "what orderscope run writes", "choose another out")
        return found

    def _keep(self, name: str, found: dict[str, Any]) -> dict[str, Any]:
        from orderscope.answers.stored import json_value

        found = json_value(found)
        keep(self.run, lambda store: store.write(name, {}, {"found": found}) or name)
        return found

    def _write(self, out: str | None, what: str, write: Callable[[Path], None]) -> None:
        path = self.places.optional(out)
        failed = try_writing(path, write)
        if failed:
            self.failed.append(failed)
        elif path is not None and not self.quiet:
            say(f"{what} written to {plain(str(path))}")

    def _head(self, part: str, words: str, *, done: bool = False) -> None:
        if done:
            self.told["done_before"].append(part)
        if not self.quiet:
            say(f"\n== {plain(part)}: {plain(words)}" + (" (done before)" if done else ""))


def _name(kind: str, asked: dict[str, Any]) -> str:
    """Name of the shard for a question; equal questions have equal names."""
    return f"study/{kind}-{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]}"


def _kept(name: str | None) -> str:
    if name is None:
        raise OrderscopeError("an answer that could not be kept in the run", "a run that can be written to",
                              "make room or free the run, and run the study again")  # fmt: skip
    return name


def _log(store: RunStore, event: dict[str, Any]) -> str:
    store.log(event)
    return REPORTED


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """A row in which JSON's None is not a number again."""
    metrics = {
        name: {key: math.nan if value is None else value for key, value in values.items()}
        for name, values in row["metrics"].items()
    }
    return {**row, "metrics": metrics}
