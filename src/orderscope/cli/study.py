"""A study file, which describes all the work on one task: its schema, and how it is read.

It is read by `orderscope run`; what it says is checked in `study_checks`. Needs pydantic, and pyyaml for YAML: the
extra `study`.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orderscope.errors import OrderscopeError
from orderscope.files import open_given

if TYPE_CHECKING:
    pass

SUFFIXES = (".yaml", ".yml", ".toml")
RECORDING = "study/recording"  # the shard with how a run was recorded
LONGEST = 60  # most characters shown of a wrong value

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]


class Part(BaseModel):
    """A mapping with known keys only, whose values have the right type."""

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
    """Orders and options of `orderscope query`."""

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
    """All errors in a study file."""

    def __init__(self, errors: list[OrderscopeError]) -> None:
        super().__init__("\n".join(map(str, errors)))
        self.errors = errors


class Slips:
    """Collects the errors in a study file."""

    def __init__(self, file: Path) -> None:
        self.file, self.errors = file, list[OrderscopeError]()

    def add(self, key: str, found: str, expected: str, todo: str) -> None:
        """Add one error.

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
        """Attribute errors raised inside to this key."""
        try:
            yield
        except OrderscopeError as error:
            self.add(key, error.found, error.expected, error.todo)

    def tell(self) -> None:
        """Raise WrongStudy if there are errors."""
        if self.errors:
            raise WrongStudy(self.errors)


def read_study(file: Path) -> Study:
    """Read a study file and check its form.

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
        raise OrderscopeError(
            f"bytes that are no UTF-8 ({error.reason})", "text in UTF-8", "save the file as UTF-8"
        ) from None
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
        """Refuse duplicate keys: the second would silently replace the first."""

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
    """Key -> found, expected, what to do. For a value that may have several types, all of them are expected."""
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


def recording_facts(study: Study) -> dict[str, Any]:
    """The settings that a recording depends on; the number of processes is not one."""
    return study.recording.model_dump(mode="json", exclude={"jobs"})


def as_text(facts: dict[str, Any], show: Callable[[str], None]) -> None:
    """Print a resolved study for a person: as YAML, or as JSON where pyyaml is missing."""
    try:
        import yaml
    except ImportError:
        show(json.dumps(facts, indent=2))
    else:
        show(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100).rstrip())
