"""What a study file says, checked: its paths before anything is loaded, the rest against its task and its run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orderscope.cli.query import Rates, read_rates
from orderscope.cli.study import RECORDING, Proposal, Question, Slips, Study, recording_facts
from orderscope.cli.tasks import task_file
from orderscope.files import check_output, inside
from orderscope.orders.npy import load_array
from orderscope.store import RunStore
from orderscope.store.names import TASK_SHARD

if TYPE_CHECKING:
    from orderscope.task import Task


class Places:
    """Where the paths of a study lead: what it names is named from its own folder.

    Args:
        file: the study file.
        study: what stands in it.
    """

    def __init__(self, file: Path, study: Study) -> None:
        self.folder, self.study = file.parent, study
        self.run = self.path(study.out)
        place, _, name = study.task.rpartition(":")
        self.spec = f"{self.path(place)}:{name}" if place.endswith(".py") else study.task

    def path(self, text: str) -> Path:
        return Path(os.path.normpath(self.folder / text))

    def optional(self, text: str | None) -> Path | None:
        return None if text is None else self.path(text)

    def order(self, text: str) -> str:
        """An order expression with the paths in it as they are found from here."""
        parts = [part.strip() for part in text.split("|")]
        return "|".join(str(self.path(part)) if part.endswith(".npy") else part for part in parts)

    def rates(self, lr: float | str | None) -> Rates | None:
        """Learning rates. Raises as `read_rates`."""
        if lr is None:
            return None
        text = str(lr)
        return read_rates(str(self.path(text)) if text.endswith(".npy") else text)

    def digest(self, text: str) -> str:
        """An expression with what its files hold in place of their names."""
        return "|".join(self._held(part.strip()) for part in text.split("|"))

    def _held(self, part: str) -> str:
        if not part.endswith(".npy"):
            return part
        array = load_array(str(self.path(part)), "an order")
        return "sha256:" + hashlib.sha256(str(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def check_places(file: Path, study: Study) -> None:
    """Check all of a study that can be checked without its task.

    Args:
        file: the study's file.
        study: what it says.

    Raises:
        WrongStudy: naming everything that is wrong.
    """
    slips, places = Slips(file), Places(file, study)
    place, colon, name = study.task.rpartition(":")
    if not (colon and place and name.isidentifier()):
        slips.add("task", repr(study.task), "file.py:name or module:name", "correct it")
    else:
        with slips.at("task"):
            task_file(places.spec, places.run)
    with slips.at("out"):
        RunStore.check_creatable(places.run)
    recording = study.recording
    if recording.budget is not None:
        for key in ("anchors", "probes", "curvature_rows"):
            if getattr(recording, key) is not None:
                slips.add(f"recording.{key}", "it beside budget", "one or the other", f"leave out budget or {key}")
    for i, text in enumerate(recording.reuse):
        if not places.path(text).exists():
            slips.add(f"recording.reuse[{i}]", f"nothing at {text}", "a .npy file or a recording", "correct the path")
    for i, question in enumerate(study.questions):
        if question.train and question.lr is not None:
            slips.add(f"questions[{i}].train", "it beside lr", "the recorded rates", "leave out train or lr")
        with slips.at(f"questions[{i}].lr"):
            places.rates(question.lr)
    _check_outputs(slips, places)
    slips.tell()


def _check_outputs(slips: Slips, places: Places) -> None:
    study, taken = places.study, dict[str, str]()
    for key, part, suffixes in (
        ("positions.out", study.positions, (".csv", ".npz")),
        ("proposal.out", study.proposal, (".npy",)),
        ("report.out", study.report, ()),
    ):
        if part is None or part.out is None:
            continue
        path = places.path(part.out)
        if suffixes and path.suffix not in suffixes:
            slips.add(key, repr(part.out), f"a file that ends in {' or '.join(suffixes)}", "change its name")
        elif inside(path, places.run):
            slips.add(key, f"{part.out}, inside the run", "a place outside of it", "choose another path")
        elif other := taken.get(os.path.realpath(path)):
            slips.add(key, f"{part.out}, the file of {other} too", "a file of its own", "choose another path")
        else:
            with slips.at(key):
                check_output(path)
        taken[os.path.realpath(path)] = key


def resolved(file: Path, study: Study, task: Task) -> Study:
    """A study with its defaults written out, checked against its task and against the run, where there is one.

    Args:
        file: the study's file.
        study: what it says.
        task: its task.

    Raises:
        WrongStudy: naming everything that is wrong.
    """
    from orderscope.recording.choices import allotted, coordinates_of

    slips, places = Slips(file), Places(file, study)
    names = list(task.metrics)
    losses = [name for name, metric in task.metrics.items() if not callable(metric)]
    for i, question in enumerate(study.questions):
        _check_metrics(slips, f"questions[{i}].metrics", question.metrics, names)
        _check_question(slips, f"questions[{i}]", question, places, task)
    recording = study.recording
    chosen: dict[str, Any] = {"coords": coordinates_of(task) if recording.coords is None else recording.coords}
    if recording.budget is None:
        counts = allotted(task, recording.anchors, recording.probes, recording.curvature_rows, None)
        chosen |= dict(zip(("anchors", "probes", "curvature_rows"), counts, strict=True))
    questions = [q.model_copy(update={"metrics": q.metrics or losses or names}) for q in study.questions]
    done: dict[str, Any] = {"recording": recording.model_copy(update=chosen), "questions": questions}
    needs = ("questions", "validation", "positions", "proposal", "report")
    if not names:
        for key in needs:
            if getattr(study, key):
                slips.add(key, "a task without metrics", "one at least", "add metrics= to the task")
        slips.tell()
    if study.validation is not None:
        _check_metrics(slips, "validation.metrics", study.validation.metrics, names)
        done["validation"] = study.validation.model_copy(update={"metrics": study.validation.metrics or names})
    if study.proposal is not None:
        _check_search(slips, study.proposal, names, task)
        done["proposal"] = study.proposal.model_copy(update={"metric": study.proposal.metric or names[0]})
    if study.report is not None:
        told = study.report.metric
        _check_metrics(slips, "report.metric", [] if told is None else [told], names)
        searched = None if study.proposal is None else study.proposal.metric
        first = searched if isinstance(searched, str) else names[0]
        done["report"] = study.report.model_copy(update={"metric": told or first})
    whole = study.model_copy(update=done)
    _check_run(slips, places, whole, task)
    slips.tell()
    return whole


def _check_metrics(slips: Slips, key: str, asked: list[str], names: list[str]) -> None:
    for name in asked:
        if name not in names:
            slips.add(key, f"metric {name!r}", "one of " + (", ".join(names) or "none"), "name a metric of the task")
    if len(set(asked)) < len(asked):
        slips.add(key, ", ".join(asked), "each metric once", "name it once")


def _check_question(slips: Slips, key: str, question: Question, places: Places, task: Task) -> None:
    from orderscope.orders import resolve

    groups = [task.group_names[code] for code in task.group_codes]
    signals = {"loss": np.zeros(task.samples)}
    for i, text in enumerate(question.orders):
        with slips.at(f"{key}.orders[{i}]"):
            resolve(places.order(text), np.asarray(task.order), groups, signals)
    rates = places.rates(question.lr)
    if rates is not None and rates.values.ndim and len(rates.values) != task.steps:
        slips.add(f"{key}.lr", f"{len(rates.values)} rates", f"{task.steps}, one a step", "correct the file")


def _check_search(slips: Slips, proposal: Proposal, names: list[str], task: Task) -> None:
    from orderscope.search.constraints import Rules, read_constraints

    metric = proposal.metric
    asked = [metric] if isinstance(metric, str) else list(metric or ())
    if metric is not None and not asked:
        slips.add("proposal.metric", "none", "one at least", "name one, or leave the key out")
    _check_metrics(slips, "proposal.metric", asked, names)
    if proposal.schedules and len(asked) > 1:
        slips.add("proposal.schedules", "several metrics", "one, to search schedules", "name one, or leave it out")
    for i, text in enumerate(proposal.constraints):
        with slips.at(f"proposal.constraints[{i}]"):
            Rules(read_constraints([text]), np.asarray(task.order), task.group_codes, list(task.group_names),
                  proposal.regroup is not False)  # fmt: skip


def _check_run(slips: Slips, places: Places, study: Study, task: Task) -> None:
    """A run that is there must be of this task, and recorded as the study says."""
    from orderscope.training import require_recorded

    if not RunStore.is_there(places.run):
        return
    store = RunStore.open(places.run)
    if TASK_SHARD in store:
        with slips.at("task"):
            require_recorded(task, store)
    if RECORDING in store:
        before, now = store.attrs(RECORDING), recording_facts(study)
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                slips.add(
                    f"recording.{name}",
                    f"{now.get(name)!r}",
                    f"{before.get(name)!r}, as {study.out} was recorded",
                    "put it back, or choose another out",
                )
