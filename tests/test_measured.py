"""Figures in the docs and in README are those of docs/measured, and figures of other defaults are marked as old."""

from __future__ import annotations

import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import orderscope
from orderscope.recording import budget

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FILES = sorted(path.stem for path in (DOCS / "measured").glob("*.json") if path.stem != "defaults")
PAGES = [*DOCS.rglob("*.md"), ROOT / "README.md"]
COMMON = {"figures", "date", "machine", "torch", "python", "command"}


def benchmark(name: str) -> ModuleType:
    """A module of benchmarks/, whose modules import each other by their bare names."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
        return importlib.import_module(name)


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with a copy of the data that tests may write."""
    module = benchmark("measured")
    for path in (DOCS / "measured").glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(module, "DATA", tmp_path)
    return module


def tables() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (name, table, content)
        for name in FILES
        for table, content in json.loads((DOCS / "measured" / f"{name}.json").read_text()).items()
    ]


def test_readme_has_the_figures_of_the_data(measured: ModuleType) -> None:
    text = (ROOT / "README.md").read_text()
    assert len(measured.MARK.findall(text)) >= 3
    assert text == measured.filled_in(text), "run `python benchmarks/measured.py`, which writes README's figures anew"


def test_no_figure_of_readme_is_written_by_hand(measured: ModuleType) -> None:
    """Every line of its tables is made of the data; a comment at the beginning of a line would hide that line."""
    text = (ROOT / "README.md").read_text()
    rest = measured.MARK.sub("", text)
    assert re.findall(r"^\|.*", rest, re.MULTILINE) == []
    assert re.findall(r"^<!-- (?!table|-->).*", text, re.MULTILINE) == []


@pytest.mark.parametrize(
    ("name", "table", "content"), tables(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_row_says_where_it_comes_from(
    name: str, table: str, content: dict[str, Any], measured: ModuleType
) -> None:
    stamps = json.loads((DOCS / "measured" / "defaults.json").read_text())
    of = content["of"]
    assert of in ("estimates", "search", None)
    expected = COMMON | set(content["key"]) | ({"defaults"} if of else set())
    for row in content["rows"]:
        assert set(row) == expected, row
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"]), row
        assert set(row["machine"]) == {"cores", "load"}, row
        assert of is None or row["defaults"] in stamps, row
        used = measured.over_seeds([row], content["key"])[0]
        assert any(measured.cell(pattern, used) for pattern in content["columns"].values())
    shown = [
        page for page in PAGES if re.search(rf"\{{measured\}} {name} {table}$|`{name} {table} ", page.read_text(), re.M)
    ]
    assert shown, f"no page shows {table} of {name}.json"


def test_stamps_are_of_their_settings(measured: ModuleType) -> None:
    stamps = json.loads((DOCS / "measured" / "defaults.json").read_text())
    assert {measured.stamp(settings) for settings in stamps.values()} == set(stamps)


def test_no_page_has_a_measured_table_of_its_own() -> None:
    """But for the log, which is a diary, and the page that explains the columns."""
    for page in DOCS.rglob("*.md"):
        if page.name == "log.md":
            continue
        heads = re.findall(r"^(\|.*\|)\n\|-", page.read_text(), re.MULTILINE)
        named = [head for head in heads if re.search(r"Spearman|mae_ratio|coverage|half-width", head)]
        assert not named, f"{page.name}: put {named[0]} into docs/measured, and show it with a `measured` block"


def test_another_default_marks_figures_as_old(measured: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    name, table = "window", "lengths"
    row = {"steps": 7, "seed": 0, "figures": {"seconds": 0.5}} | measured.origin("a command")
    measured.merge(measured.DATA / "window.json", table, [row])
    before, _, _ = measured.markdown(name, table).partition(measured.OLD)
    assert "| 7 | 0.5 |" in before
    assert measured.OLD not in measured.span(f"{name} {table} {{seconds:.1f}} steps=7")

    monkeypatch.setattr(budget, "DEFAULT", replace(budget.DEFAULT, probes=budget.DEFAULT.probes + 5))
    new, _, old = measured.markdown(name, table).partition(measured.OLD)
    assert "| 7 |" not in new
    assert "| 7 | 0.5 |" in old
    assert f"probes: {budget.DEFAULT.probes - 5}, now {budget.DEFAULT.probes}" in old
    assert measured.span(f"{name} {table} {{seconds:.1f}} steps=7") == "0.5 (by an earlier version)"

    again = {"steps": 7, "seed": 1, "figures": {"seconds": 0.7}} | measured.origin("a command")
    measured.merge(measured.DATA / "window.json", table, [again])
    new, _, old = measured.markdown(name, table).partition(measured.OLD)
    assert "| 7 | 0.7 |" in new
    assert "| 7 |" not in old


def test_rows_of_a_benchmark_become_a_table(measured: ModuleType) -> None:
    accuracy = benchmark("accuracy")
    printed = {
        "true_std": 0.01, "spearman": 0.9, "mae_ratio": 0.2, "sign": 0.9, "coverage": 0.95, "error_over_std": 0.3,
        "parameter_error": 0.5, "cost_runs": 20.0, "speedup_per_order": 5.0, "megabytes": 80.0,
        "proxy": {"spearman": 0.5, "mae_ratio": 0.6}, "others": {"accuracy": {"spearman": 0.7, "mae_ratio": 0.4}},
    }  # fmt: skip
    for seed, shift in enumerate((0.0, 0.05)):
        rows = list(accuracy.own_rows("tiny", seed, printed | {"spearman": printed["spearman"] + shift}))
        measured.merge(measured.DATA / "accuracy.json", "own", rows)
    text = measured.markdown("accuracy", "own")
    assert re.search(r"^\| tiny \| 0.0100 \| 0.925 \(0.900 to 0.950\) \| 0.200 \|.* 0.50, 0.60 \|$", text, re.MULTILINE)
    assert re.search(r"^\| tiny, accuracy \| 0.0100 \| 0.700 \| 0.400 \|", text, re.MULTILINE)
    kept = json.loads((measured.DATA / "accuracy.json").read_text())["own"]["rows"]
    assert [row["seed"] for row in kept if row["window"] == "tiny"] == [0, 1]


def test_the_page_on_how_it_is_built_names_modules_that_exist() -> None:
    page = (DOCS / "inside.md").read_text()
    packages = [
        name for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    ]
    assert len(packages) > 15
    for name in packages:
        importlib.import_module(f"orderscope.{name}")
    files = re.findall(r"`(\w+(?:/\w+)+\.py)`", page)
    assert len(set(files)) > 15
    for file in files:
        importlib.import_module(f"orderscope.{file.removesuffix('.py').replace('/', '.')}")
    names = [path for path in re.findall(r"`([A-Za-z]+(?:\.[A-Za-z]\w*)+)(?:\(\w+\))?`", page) if path[-3:] != ".md"]
    assert len(names) > 3
    for path in names:
        first, *rest = path.split(".")
        value: Any = orderscope.Simulator if first == "Simulator" else importlib.import_module(f"orderscope.{first}")
        for name in rest:
            value = getattr(value, name)
    assert list(dict.fromkeys(re.findall(r"^(\d)\. ", page, re.MULTILINE))) == [str(n) for n in range(1, 9)]
