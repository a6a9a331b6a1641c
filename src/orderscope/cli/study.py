"""A study file: everything that is done with one task, as it is written and as it is checked.

It is read by `orderscope run`. Needs pydantic, and pyyaml for YAML: the extra `study`.

Past 400 lines: the schema of a study file beside the checks of each of its parts.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orderscope.cli.query import Rates, read_rates
from orderscope.cli.tasks import task_file
from orderscope.errors import OrderscopeError
from orderscope.files import check_output, inside, open_given
from orderscope.orders.npy import load_array
from orderscope.store import RunStore
from orderscope.store.names import TASK_SHARD

if TYPE_CHECKING:
    from orderscope.task import Task

SUFFIXES = (".yaml", ".yml", ".toml")
RECORDING = "study/recording"  # the shard with how a run was recorded
LONGEST = 60  # characters of a wrong value that are shown

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]


class Part(BaseModel):
    """A mapping in which no other key may stand, and every value has its type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Recording(Part):
    """Keywords of `orderscope.record`."""

    anchors: Count | None = None
    probes: Natural | None = None
    budget: Annotated[float, Field(ge=1)] | None = None
    sample_anchors: Natural | None = None
    coords: Count | None = None
    curvature_rows: Count | None = None
    seed: Natural = 0
    jobs: Count | None = None
    reuse: list[Text] = []


class Question(Part):
    """What `orderscope query` is asked."""

    orders: Annotated[list[Text], Field(min_length=1)]
    metrics: list[Text] = []
    precise: bool = False
    estimator: Literal["carried", "replay", "impulse", "fut", "fut2"] = "carried"
    lr: float | Text | None = None
    train: bool = False


class Checks(Part):
    """Unseen orders that are trained, as by `orderscope validate`."""

    orders: Annotated[int, Field(ge=2)] = 16
    metrics: list[Text] = []
    seed: Natural = 0


class Positions(Part):
    """A map, as by `orderscope positions`."""

    units: Count | None = None
    places: Annotated[int, Field(ge=2)] | None = None
    verify: Natural = 0
    out: Text | None = None


class Proposal(Part):
    """A search, as by `orderscope propose`."""

    metric: Text | list[Text] | dict[str, float] | None = None
    maximize: bool = False
    constraints: list[Text] = []
    schedules: bool = False
    verify: Natural = 3
    budget: Count = 2000
    regroup: bool | None = None
    anyway: bool = False
    searched: Annotated[float, Field(gt=0, le=1)] = 0.5
    rounds: Count = 1
    seconds: Annotated[float, Field(gt=0)] | None = None
    seed: Natural = 0
    out: Text | None = None


class Report(Part):
    """The page of `orderscope report`."""

    out: Text
    metric: Text | None = None


class Study(Part):
    """The whole file."""

    task: Text
    out: Text
    threads: Count = 1
    recording: Recording = Recording()
    questions: list[Question] = []
    validation: Checks | None = None
    positions: Positions | None = None
    proposal: Proposal | None = None
    report: Report | None = None


class WrongStudy(Exception):
    """All that is wrong with a study file."""

    def __init__(self, errors: list[OrderscopeError]) -> None:
        super().__init__("\n".join(map(str, errors)))
        self.errors = errors


class Slips:
    """What is wrong with a file, collected."""

    def __init__(self, file: Path) -> None:
        self.file, self.errors = file, list[OrderscopeError]()

    def add(self, key: str, found: str, expected: str, todo: str) -> None:
        """Note one thing that is wrong.

        Args:
            key: of the file, as `recording.budget`; empty for the file as a whole.
            found: what was found.
            expected: what would have been right.
            todo: what to do.
        """
        where = f"{self.file}: {key}: " if key else f"{self.file}: "
        self.errors.append(OrderscopeError(f"{where}{found}", expected, todo))

    @contextmanager
    def at(self, key: str) -> Iterator[None]:
        """What is raised inside is wrong with this key."""
        try:
            yield
        except OrderscopeError as error:
            self.add(key, error.found, error.expected, error.todo)

    def tell(self) -> None:
        """Raises: WrongStudy where anything was found."""
        if self.errors:
            raise WrongStudy(self.errors)


def read_study(file: Path) -> Study:
    """A study as it is written, its form checked.

    Raises:
        WrongStudy: it is no YAML or TOML, or keys or values are wrong.
        OrderscopeError: it cannot be read, or pyyaml is missing.
    """
    slips = Slips(file)
    with slips.at(""):
        found = _parsed(file)
    slips.tell()
    if not isinstance(found, dict):
        slips.add(
            "", f"a {type(found).__name__}", "keys and values, task and out among them", "see docs/howto/study.md"
        )
        slips.tell()
    for key, value in found.items():
        if value is None:
            slips.add(str(key), "no value", "one; {} takes every default of a section", "give one, or remove the key")
    slips.tell()
    try:
        return Study.model_validate(found)
    except ValidationError as error:
        for key, wrong in _wrong(found, error).items():
            slips.add(key, *wrong)
    raise WrongStudy(slips.errors)


def _parsed(file: Path) -> Any:
    with open_given(file) as stream:
        raw = stream.read()
    todo = "correct it"
    try:
        text = raw.decode("utf-8")
        if file.suffix == ".toml":
            return tomllib.loads(text)
        return _yaml(text)
    except UnicodeDecodeError as error:
        raise OrderscopeError(f"bytes that are no UTF-8 ({error.reason})", "text in UTF-8", "save it so") from None
    except tomllib.TOMLDecodeError as error:
        raise OrderscopeError(f"{error}", "TOML", todo) from None
    except (ValueError, RecursionError) as error:
        raise OrderscopeError(f"{error}", "YAML" if file.suffix != ".toml" else "TOML", todo) from None


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise OrderscopeError(
            "YAML, and no pyyaml here", "pyyaml, which reads it", "pip install 'orderscope[study]', or write TOML"
        ) from None

    class Loader(yaml.SafeLoader):
        """Refuses a key that stands twice: the second would silently win."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                name = getattr(key, "value", None)
                if isinstance(name, str) and (name in seen or seen.add(name)):
                    line = key.start_mark.line + 1
                    raise OrderscopeError(f"key {name!r} twice, again in line {line}", "each key once", "remove one")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}"
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise OrderscopeError(f"{problem}{where}", "YAML", "correct it") from None


def _wrong(found: Any, error: ValidationError) -> dict[str, tuple[str, str, str]]:
    """Key -> found, expected, what to do; of a value that may be of several types, all of them."""
    told: dict[str, tuple[str, str, str]] = {}
    for one in error.errors(include_url=False):
        kind, place, value = one["type"], list(one["loc"]), one["input"]
        key = _key(found, place if kind != "missing" else place[:-1])
        if kind == "missing":
            key = ".".join(filter(None, (key, str(place[-1]))))
            told[key] = ("nothing", f"the key {place[-1]}, which is needed", "add it")
        elif kind == "extra_forbidden":
            names = _names(place[:-1])
            near = difflib.get_close_matches(str(place[-1]), names, 1)
            todo = f"did you mean {near[0]}?" if near else "correct or remove it"
            told[key] = ("an unknown key", "one of " + ", ".join(names), todo)
        else:
            expected = one["msg"].removeprefix("Input should be ")
            expected = f"{told[key][1]}, or {expected}" if key in told else expected
            shown = repr(value)
            told[key] = (shown if len(shown) <= LONGEST else shown[:LONGEST] + "…", expected, "correct it")
    return told


def _key(found: Any, place: list[Any]) -> str:
    """A place in the file as text: questions[0].lr. Names of types, of which one may be, are no part of it."""
    text = ""
    for part in place:
        inner = isinstance(found, dict) and part in found
        if not inner and not (isinstance(found, list) and isinstance(part, int)):
            break
        text += f"[{part}]" if isinstance(found, list) else f".{part}" if text else str(part)
        found = found[part]
    return text


def _names(place: list[Any]) -> list[str]:
    """The keys that may stand in a part."""
    parts: dict[str, type[Part]] = {
        "recording": Recording, "questions": Question, "validation": Checks, "positions": Positions,
        "proposal": Proposal, "report": Report,
    }  # fmt: skip
    return list((parts[place[0]] if place else Study).model_fields)


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


def recording_facts(study: Study) -> dict[str, Any]:
    """What a recording depends on: the number of processes is none of it."""
    return study.recording.model_dump(mode="json", exclude={"jobs"})


def as_text(facts: dict[str, Any], show: Callable[[str], None]) -> None:
    """Print a resolved study for a person: as YAML, or as JSON where pyyaml is missing."""
    try:
        import yaml
    except ImportError:
        show(json.dumps(facts, indent=2))
    else:
        show(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100).rstrip())
