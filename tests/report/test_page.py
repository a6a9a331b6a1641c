"""The page: one whole file, well-formed, self-contained, and no name of a run gets out of its text."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

import orderscope as osc
from made_up import DOLLARS, IMAGE, SCRIPT
from orderscope.report.page import SECTIONS, write_report

CHROMIUM = shutil.which("chromium")
VOID = {"meta", "br", "img", "input", "link", "hr"}
LOADS = {"src", "srcset", "data", "action", "poster", "background", "xlink:href"}


class Page(HTMLParser):
    """Checks nesting while reading, and keeps what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"an attribute twice in {self.get_starttag_text()}"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def page_of(run: Path, task: osc.Task | None, out: Path) -> tuple[str, Page]:
    sections = write_report(osc.Simulator(run, task), out)
    assert len(sections) == len(SECTIONS)
    text = out.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def full(full_run: Path, hostile: osc.Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    return page_of(full_run, hostile, tmp_path_factory.mktemp("page") / "report.html")


def test_well_formed(full: tuple[str, Page]) -> None:
    text, page = full
    assert text.startswith("<!doctype html>")
    assert page.open == []
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    targets = [attrs["href"] for _, attrs in page.tags if "href" in attrs]
    assert all(target[0] == "#" and target[1:] in ids for target in targets)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    assert {section for tag, attrs in page.tags if tag == "section" and (section := attrs.get("id"))} == {
        "matters", "orders", "proposal", "truth", "heat", "memory", "recorded", "limits"
    }  # fmt: skip


def test_nothing_is_fetched(full: tuple[str, Page]) -> None:
    text, page = full
    assert not re.search(r"https?:|//\w+\.|@import|url\((?!#)", text)
    assert not [tag for tag, attrs in page.tags if LOADS & attrs.keys() or tag in ("link", "iframe", "object", "base")]


def test_names_stay_text(full: tuple[str, Page]) -> None:
    text, page = full
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [tag for tag, attrs in page.tags if tag == "img" or any(name.startswith("on") for name in attrs)]
    assert "\x1b" not in text
    shown = " ".join(page.text)
    for name in (SCRIPT, IMAGE, DOLLARS, "c\\x1b[2J"):
        assert name in shown
    assert "<b>run & co" in shown


def test_colours_are_the_page_s(full: tuple[str, Page]) -> None:
    text, _ = full
    body = text[text.index("<body>") :]
    assert "#0101" not in body
    assert "DejaVu" not in body
    used = set(re.findall(r"var\(--(\w+)\)", text))
    defined = set(re.findall(r"--(\w+):", text))
    assert used <= defined


def test_the_same_run_gives_the_same_bytes(
    full: tuple[str, Page], full_run: Path, hostile: osc.Task, tmp_path: Path
) -> None:
    assert page_of(full_run, hostile, tmp_path / "again.html")[0] == full[0]


def test_what_is_missing_is_said(bare_run: Path, tmp_path: Path) -> None:
    _, page = page_of(bare_run, None, tmp_path / "report.html")
    shown = " ".join(page.text)
    for words in ("No order has been proposed yet", "No position map yet", "noise floor has not been measured"):
        assert words in shown
    assert "moves the final <script>" in shown


def test_a_page_about_an_unknown_metric_is_refused(bare_run: Path, tmp_path: Path) -> None:
    with pytest.raises(osc.OrderscopeError, match="found metric 'nope'; expected one of <script>"):
        write_report(osc.Simulator(bare_run), tmp_path / "x.html", metric="nope")
    assert not (tmp_path / "x.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_in_a_browser(full_run: Path, hostile: osc.Task, tmp_path: Path) -> None:
    """Its script runs without an error, and the policy in its head stops nothing of its own."""
    page_of(full_run, hostile, tmp_path / "report.html")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr", "--dump-dom", f"file://{tmp_path / 'report.html'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr
    page = Page(done.stdout)
    classes = [attrs.get("class") for _, attrs in page.tags]
    assert classes.count("tablist") == 2
    chosen = [attrs for _, attrs in page.tags if attrs.get("aria-selected") == "true"]
    assert len(chosen) == 2
    assert [attrs["role"] for _, attrs in page.tags if attrs.get("class") == "panel" and "hidden" not in attrs] == [
        "tabpanel", "tabpanel"
    ]  # fmt: skip
