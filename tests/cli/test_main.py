"""What every verb shares: help without torch, one line for an error, exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from email.message import Message
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from orderscope.cli import main as module
from orderscope.cli.spoken import as_options
from orderscope.cli.text import columns, plain, size
from orderscope.errors import DamagedRun, IncompleteRun, OrderscopeError

CODE = """
import sys
sys.argv[0] = "orderscope"
from orderscope.cli.main import main
try:
    main()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""


def orderscope(*args: str) -> tuple[int, str, str, bool]:
    """Exit code, output, errors, and whether torch was imported."""
    done = subprocess.run([sys.executable, "-c", CODE, *args], capture_output=True, text=True, check=False)
    *errors, torch = done.stderr.splitlines()
    return done.returncode, done.stdout, "\n".join(errors), torch == "True"


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        *[([verb, "--help"], 0) for verb in module.VERBS],
        ([], 2),
        (["no-such-verb"], 2),
        (["inspect"], 2),
        (["inspect", "--no-such-option", "run"], 2),
        (["pack", "run"], 2),
        (["doctor", "--dir", "no-such-directory"], 2),
        (["inspect", "no-such-run"], 1),
        (["record", "file.py:task"], 2),
        (["record", "no-colon", "--out", "run"], 2),
        (["query", "run"], 2),
        (["query", "no-such-run", "--order", "reverse"], 1),
        (["propose", "run", "--out", "best.txt"], 2),
        (["positions", "run", "--out", "heat.png"], 2),
        (["validate", "run", "--orders", "1"], 2),
        (["report", "run"], 2),
        (["run", "no-such-study.yaml"], 2),
        (["run", str(Path(__file__))], 2),
        (["run", str(Path(__file__).parents[2] / "pyproject.toml")], 1),
        (["export", "run"], 2),
        (["export", "no-such-run", "--out", "tables"], 1),
    ],
    ids=str,
)
def test_help_and_usage_errors_need_no_torch(args: list[str], code: int) -> None:
    got, out, errors, torch = orderscope(*args)
    assert got == code
    assert not torch
    assert bool(out) == (code == 0)
    assert bool(errors) == (code != 0)


def test_help_names_every_verb_with_a_whole_sentence() -> None:
    out = CliRunner().invoke(module.main, ["--help"], terminal_width=80).output
    assert "..." not in out.replace("[ARGS]...", "")
    described = re.split(r"\n  (?=\w)", out[out.index("Commands:") :])[1:]
    assert [line.split()[0] for line in described] == list(module.VERBS)
    assert all(re.search(r"\w\.$", line.strip()) for line in described)


@pytest.mark.parametrize("verb", ["", *(verb for verb in module.VERBS if verb != "export")])
def test_help_fits_80_columns(verb: str) -> None:
    out = CliRunner().invoke(module.main, [*verb.split(), "--help"], terminal_width=80).output
    assert max(map(len, out.splitlines())) <= 80


def test_errors_and_notes_speak_of_options() -> None:
    from orderscope.cli.propose import propose, spoken
    from orderscope.cli.query import query

    assert spoken(["the order regroups samples; regroup=False keeps those recorded", "seconds= allows more",
                   "nothing was searched; anyway=True (--anyway) searches all the same",
                   "repetition was not asked for (allow_other_samples=True)"]) == [
        "the order regroups samples; --keep-batches keeps those recorded", "--seconds allows more",
        "nothing was searched; --anyway searches all the same", "repetition was not asked for"]  # fmt: skip
    assert as_options("found budget=3 runs; change metric= or strategies=", propose) == (
        "found --budget 3 runs; change --metric or strategies=")  # fmt: skip
    assert as_options("Simulator(path, task), or leave out precise=", query) == (
        "--task file.py:name, or leave out --precise")  # fmt: skip
    assert as_options("change budget=", None) == "change budget="


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OrderscopeError("a", "b", "do c"), 1, "orderscope: found a; expected b; do c\n"),
        (DamagedRun("a\n\x1b[2J", "b", "do c"), 4, "orderscope: found a\\n\\x1b[2J; expected b; do c\n"),
        (IncompleteRun("a", "b", "do c"), 5, "orderscope: found a; expected b; do c\n"),
        (PermissionError(13, "Permission denied", "x"), 1, "orderscope: [Errno 13] Permission denied: 'x'\n"),
    ],
)
def test_an_expected_error_is_one_line_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, line: str
) -> None:
    @click.command()
    def fail() -> None:
        raise error

    monkeypatch.setitem(module.VERBS, "fail", f"{__name__}:fail")
    monkeypatch.setattr(module.importlib, "import_module", lambda _: type("Module", (), {"fail": fail}))
    result = CliRunner().invoke(module.main, ["fail"])
    assert (result.exit_code, result.stderr, result.stdout) == (code, line, "")


def test_what_is_not_expected_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(module.VERBS, "fail", f"{__name__}:fail")
    monkeypatch.setattr(module.importlib, "import_module", lambda _: type("Module", (), {"fail": fail}))
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(module.main, ["fail"], catch_exceptions=False)


def test_text() -> None:
    assert plain("ok é\t\x1b[31m\u202e") == "ok é\\t\\x1b[31m\\u202e"
    assert [size(n) for n in (0, 999, 1000, 45_600_000, 2e12)] == ["0 B", "999 B", "1 kB", "45.6 MB", "2 TB"]
    assert columns([["a", "b"], ["long", "\n"]]) == "  a     b\n  long  \\n"


def test_a_file_of_a_package_is_to_be_named_as_a_module(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mine.py").write_text("from .other import task\n", encoding="utf-8")
    code, _, err, _ = orderscope("doctor", f"{package / 'mine.py'}:task")
    assert code == 1
    assert "relative import" in err
    assert "package.module:name" in err


def test_doctor(tmp_path: Path) -> None:
    code, out, _, _ = orderscope("doctor", "--dir", str(tmp_path), "--json")
    facts = json.loads(out)
    found = {finding["what"]: finding for finding in facts["findings"]}
    assert code == 0
    assert facts["ok"]
    assert found["torch.func"]["level"] == found["writing"]["level"] == "ok"
    assert found.keys() >= {"python", "torch", "threads", "h5py", "triton", "disk"}
    assert not list(tmp_path.iterdir())


def test_doctor_lists_the_extras_that_the_package_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from orderscope.cli import doctor

    described = Message()
    for line in ("numpy>=1", 'rich>=13; extra == "rich"', "pydantic>=2.7; extra == 'study'",
                 'no-such-thing>=6; platform_system == "Linux" and extra == "study"',
                 'not.there; extra == "parquet"', 'pytest>=8; extra == "test"'):  # fmt: skip
        described["Requires-Dist"] = line
    monkeypatch.setattr(doctor.importlib.metadata, "metadata", lambda _: described)
    found = {finding.what: finding for finding in doctor._packages()}
    assert [name for name in found if name not in doctor.REQUIRED] == [
        "orderscope", "python", "rich", "study", "parquet"]  # fmt: skip
    assert re.fullmatch(r"pydantic [\d.]+, not no-such-thing", found["study"].found)
    assert found["parquet"].found == "not installed"
    assert found["parquet"].advice == "for orderscope export --to parquet: pip install 'orderscope[parquet]'"
    assert found["rich"].advice == ""


def test_doctor_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from orderscope.cli import doctor

    def fail(_: Path) -> tuple[float, float]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor, "_write_seconds", fail)
    result = CliRunner().invoke(module.main, ["doctor", "--dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "wrong  writing          fails: No space left on device - choose another\n" in result.output
