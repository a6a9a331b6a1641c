"""The documentation builds without a warning, needs no network to be read, and does what it says.

Blocks of a page are run in their order, in one directory and one Python session:

    ```python     is executed; a ```text block right after it is what it prints, but for the figures
    ```console    lines that begin with "$ orderscope" are run; what is shown under one are lines of its output, by
                  their first word, and headings of tables as a whole but for figures
    <!-- needs: NAME -->    before a block: it is run only where that module can be imported
    ```bash, ```{code-block} and others are not run

Figures that are shown must be near those now printed, on the kind of machine the pages were written on; seconds and
costs are those of one machine, and are not compared. `REWRITE_DOCS=1 python -m pytest tests/test_docs.py` writes all
lines anew that print other figures.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import orderscope as osc
from orderscope.cli.main import VERBS, main

DOCS = Path(__file__).parents[1] / "docs"
HOW_TO = sorted(path.name for path in (DOCS / "howto").glob("*.md") if path.stem != "index")
FENCE = re.compile(
    r"(?:^<!-- needs: (?P<needs>\S+) -->\n\s*)?^(?P<fence>`{3,})(?P<language>\w+)\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
VERDICT = "noise of a difference"
HEADINGS = ("batch", "metric", "order", "part")  # how the first lines of tables begin
WRITTEN_ON = ("Linux", "x86_64", "3.11.7")  # texts of the tutorial come with Python
OF_THE_MACHINE = re.compile(
    r"in runs|equal cost|trains in|CPU|task: /|…|[kMG]B.*[kMG]B"
)  # lines that others print otherwise
FIGURE = re.compile(r"[-+−±]?\d[\d,.]*(?:e[-+]?\d+)?")
COMPARED = re.compile(FIGURE.pattern + r"(?![\d.,]*\s?m?s\b)")  # all but seconds
NEAR, UNITS = (
    0.05,
    5,
)  # how far a figure may be off: as a share, or in units of its last digit; rounding differs by less
UNTRUSTED = 3  # exit code of a command whose answer is printed but not to be trusted


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int
    needs: str | None


def blocks(page: Path) -> list[Block]:
    source = page.read_text(encoding="utf-8")
    return [
        Block(m["language"], m["text"], source[: m.start("text")].count("\n") + 1, m["needs"])
        for m in FENCE.finditer(source)
    ]


def run_page(page: Path, *, to_the_digit: bool = False) -> int:
    """Run a page's blocks in the working directory; how many were run."""
    seen = str.strip if to_the_digit else masked
    names: dict[str, Any] = {"__name__": page.stem}
    found = blocks(page)
    count, stale = 0, []
    for block, after in zip(found, [*found[1:], None], strict=False):
        if block.language not in ("python", "console") or (block.needs and not importable(block.needs)):
            continue
        count += 1
        if block.language == "console":
            stale += run_commands(page, block)
            continue
        printed = io.StringIO()
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        if after is not None and after.language == "text":
            where = f"{page.name}, line {after.line}"
            assert seen(printed.getvalue()) == seen(after.text), f"{where}: now prints\n{printed.getvalue()}"
            stale += stale_lines(page, after.line, after.text, printed.getvalue())
    assert not stale, "these lines no longer hold; see the top of this file\n" + "\n".join(stale)
    return count


def importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def run_commands(page: Path, block: Block) -> list[str]:
    """Run a block's commands; which lines that are shown have other figures now."""
    stale = []
    text = block.text.replace("\\\n", " ")
    commands = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert not commands[0].strip(), f"{page.name}, line {block.line}: output before a command"
    for part in commands[1:]:
        command, _, shown = part.partition("\n")
        program, *arguments = shlex.split(command)
        assert program == "orderscope", f"{page.name}, line {block.line}: {command}"
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code in (0, UNTRUSTED), f"{page.name}, line {block.line}: {command}\n{result.output}"
        stale += stale_lines(page, block.line, shown, result.stdout)
        words = {first_word(line) for line in result.stdout.splitlines()}
        if VERDICT in result.stdout:  # which one it is hangs on the texts that this Python brings
            shown = "\n".join(line for line in shown.splitlines() if VERDICT not in line)
        missing = [line for line in shown.splitlines() if first_word(line) not in words | {"", "#", "…"}]
        whole = {masked(line) for line in result.stdout.splitlines()}
        missing += [line for line in shown.splitlines() if first_word(line) in HEADINGS and masked(line) not in whole]
        assert not missing, f"{page.name}, {command}: no longer prints\n{missing}\nbut\n{result.stdout}"
    return stale


def stale_lines(page: Path, start: int, shown: str, printed: str) -> list[str]:
    """Lines of a block from line `start` on that are not printed so, each with what is printed instead."""
    if (platform.system(), platform.machine(), platform.python_version()) != WRITTEN_ON:
        return []
    rewriting = bool(os.environ.get("REWRITE_DOCS"))
    now: dict[str, list[str]] = {}
    for line in printed.splitlines():
        now.setdefault(masked(line), []).append(line)
    stale, seen = {}, dict.fromkeys(now, 0)
    for line in filter(str.strip, shown.splitlines()):
        words = masked(line)
        if OF_THE_MACHINE.search(line):
            continue
        if words not in now:
            stale[line] = None
        elif line not in now[words] if rewriting else not any(near(line, other) for other in now[words]):
            stale[line] = now[words][min(seen[words], len(now[words]) - 1)]
        seen[words] = seen.get(words, 0) + 1
    if rewriting:
        lines = page.read_text(encoding="utf-8").splitlines(keepends=True)
        for line, new in stale.items():
            if new is not None:
                lines[lines.index(line + "\n", start - 1)] = new.rstrip() + "\n"
        page.write_text("".join(lines), encoding="utf-8")
        stale = {line: new for line, new in stale.items() if new is None}
    return [f"{page.name}, from line {start}: {line}\n    now: {new or printed}" for line, new in stale.items()]


def near(shown: str, printed: str) -> bool:
    return all(
        abs(value(a) - value(b)) <= max(NEAR * abs(value(b)), UNITS * last_digit(a))
        for a, b in zip(COMPARED.findall(shown), COMPARED.findall(printed), strict=True)
    )


def value(figure: str) -> float:
    return float(figure.rstrip(".,").replace(",", "").replace("−", "-").replace("±", ""))


def last_digit(figure: str) -> float:
    """Size of one unit of the last digit that is written."""
    mantissa, _, power = figure.rstrip(".,").partition("e")
    return 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2]))


@pytest.mark.parametrize(
    ("shown", "printed", "good"),
    [
        ("reverse 2.8552 ±0.00088 +0.01805 yes", "reverse 2.8552 ±0.00091 +0.01809 yes", True),
        ("reverse 2.8552 ±0.00088 +0.01805 yes", "reverse 2.8552 ±0.00088 +0.01505 yes", False),
        ("rows 260,600", "rows 255,000", True),
        ("change −0.0029 of 3", "change 0.0029 of 3", False),
        ("held 4.8e-05", "held 9.8e-05", False),
        ("35.4 MB, in 5.4 s", "35.9 MB, in 75.1 s", True),
        ("35.4 MB, in 5.4 s", "49.9 MB, in 5.4 s", False),
    ],
)
def test_figures_are_compared(shown: str, printed: str, good: bool) -> None:
    assert masked(shown) == masked(printed)
    assert near(shown, printed) is good


def first_word(line: str) -> str:
    return masked(line.strip().partition(" ")[0])


def masked(text: str) -> str:
    """Without figures, and the spaces that align them: those depend on the machine's rounding."""
    return re.sub(r"[ \t]+", " ", FIGURE.sub("#", text)).strip()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to work in, but for the task that the pages speak of."""
    return enter(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the tutorial's run in it, as-recorded."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = enter(tmp_path_factory.mktemp("docs"), monkeypatch)
        result = CliRunner().invoke(main, ["record", "my_run.py:task", "--out", "run"])
    assert result.exit_code == 0, result.output
    (folder / "run").rename(folder / "as-recorded")
    return folder


@pytest.fixture
def recorded(run: Path, here: Path) -> Path:
    """An empty directory but for the tutorial's run as it was recorded, whatever other pages did with theirs."""
    shutil.copytree(run / "as-recorded", here / "run")
    return here


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in `folder`, and put back afterwards what commands change: the path, and the module of the task."""
    for name in ("my_run.py", "study.yaml"):
        shutil.copy(DOCS / name, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.delitem(sys.modules, "my_run", raising=False)
    return folder


def test_the_tutorial(here: Path) -> None:
    assert run_page(DOCS / "tutorial.md") == 10
    assert (here / "report.html").is_file()


@pytest.mark.parametrize("page", HOW_TO)
def test_how_to(page: str, recorded: Path) -> None:
    if not run_page(DOCS / "howto" / page):
        pytest.skip("its blocks need what is not installed")


def test_what_is_not_trusted(recorded: Path) -> None:
    assert run_page(DOCS / "untrusted.md")


def test_the_plan_is_arithmetic(recorded: Path) -> None:
    assert run_page(DOCS / "scale-plan.md", to_the_digit=True) == 3


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(name)
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", str(out / "doctrees"), str(DOCS)]
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [*command, str(out / "html")], capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out / "html"


def test_the_site_builds_without_a_warning(site: Path) -> None:
    assert (site / "index.html").is_file()
    assert len(list(site.rglob("*.html"))) > len(HOW_TO)


def test_the_site_needs_no_network(site: Path) -> None:
    fetched = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=["'](?:https?:)?//[^"']*["'][^>]*>""")
    found = {page.name: fetched.findall(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    assert {name: links for name, links in found.items() if links} == {}


def test_formulas_are_drawn(site: Path) -> None:
    page = (site / "concepts" / "engine.html").read_text(encoding="utf-8")
    assert page.count("<math ") > 10
    assert "merror" not in page


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    missing = [name for name in osc.__all__ if not name.startswith("_") and f'id="orderscope.{name}"' not in page]
    assert not missing, f"add {missing} to docs/api.md"


def test_every_command_is_in_the_reference(site: Path) -> None:
    page = (site / "cli.html").read_text(encoding="utf-8")
    assert [verb for verb in VERBS if f"orderscope {verb} [OPTIONS]" not in page] == []


def test_contributing_leads_to_rooms_that_exist() -> None:
    """Each path of the table, and each name in capitals in some module of the row's room."""
    root = DOCS.parent
    rows = [line for line in (root / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| a")]
    assert len(rows) >= 8
    for row in rows:
        _, what, room, test, *_rest = (cell.strip() for cell in row.split("|"))
        for cell in (room, test):
            paths = re.findall(r"`((?:src|kernels|tests|docs)/[^`]*)`", cell)
            assert paths, what
            missing = [path for path in paths if not (root / path).exists()]
            assert not missing, (what, missing)
        source = "\n".join(
            file.read_text()
            for path in re.findall(r"`((?:src|kernels)/[^`]*)`", room)
            for file in ([root / path] if path.endswith(".py") else (root / path).rglob("*.py"))
        )
        for name in re.findall(r"`([A-Z][A-Z_]+)`", room):
            assert re.search(rf"^{name}\b", source, re.MULTILINE), (what, name)
