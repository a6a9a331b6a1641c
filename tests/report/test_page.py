"""The page: one whole file, well-formed, self-contained, and no name of a run gets out of its text."""

from __future__ import annotations

import base64
import csv
import io
import math
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest

import orderscope as osc
from made_up import DOLLARS, IMAGE, SCRIPT
from orderscope.report.download import csv_link, npy_link
from orderscope.report.page import SECTIONS, unbroken_words, write_report

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
    targets = [attrs["href"] for _, attrs in page.tags if "href" in attrs and "download" not in attrs]
    assert all(target[0] == "#" and target[1:] in ids for target in targets)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    assert {section for tag, attrs in page.tags if tag == "section" and (section := attrs.get("id"))} == {
        "matters", "orders", "proposal", "truth", "steps", "heat", "memory", "recorded", "limits"
    }  # fmt: skip


def files(page: Page) -> dict[str, bytes]:
    """What the page holds to be downloaded, by name."""
    found: dict[str, bytes] = {}
    for tag, attrs in page.tags:
        if "download" in attrs:
            assert tag == "a"
            kind, _, held = attrs["href"].removeprefix("data:").partition(",")
            data = base64.b64decode(held) if kind.endswith(";base64") else unquote_to_bytes(held)
            assert found.setdefault(attrs["download"], data) == data
    return found


def test_every_table_can_be_downloaded(full: tuple[str, Page], hostile: osc.Task) -> None:
    _, page = full
    found = files(page)
    tables = [tag for tag, _ in page.tags].count("table")
    assert sum(name.endswith(".csv") for name in found) >= tables - 1  # the schedule in a few words is told in words
    for name, data in found.items():
        if name.endswith(".csv"):
            header, *rows = csv.reader(io.StringIO(data.decode()))
            assert rows
            assert {len(row) for row in rows} == {len(header)}
    header, *rows = csv.reader(io.StringIO(found["orders-0.csv"].decode()))
    assert header == ["order", "metric", "predicted", "error", "trained", "difference", "verdict"]
    assert [row[0] for row in rows] == ["reference", "shuffle:1", "reverse", "proposal"]
    assert {row[1] for row in rows} == {SCRIPT}
    order = np.load(io.BytesIO(found["proposed-order.npy"]))
    assert (order == np.roll(hostile.order, 2, axis=0)).all()
    assert osc.OrderSampler(order) is not None


def test_a_cell_is_no_formula_and_a_large_order_is_left_out() -> None:
    link = csv_link("x", ["a"], [["=1+1"], ["-2"], [-2.5], [math.nan], [None], ["a,b"]])
    held = unquote_to_bytes(re.search(r'href="data:[^,]*,([^"]*)"', link)[1]).decode()  # type: ignore[index]
    assert held == 'a\n\'=1+1\n\'-2\n-2.5\n""\n""\n"a,b"\n'
    assert npy_link("x", np.arange(1 << 22).reshape(-1, 2), "x") == ""


def test_values_are_told_to_who_points_at_them(full: tuple[str, Page]) -> None:
    text, _ = full
    told = re.findall(r'class="tip"><title>([^<]*)</title>', text)
    assert any(line.startswith("reverse: &lt;script&gt;") and "predicted" in line for line in told)
    assert any(line.startswith("batch of step 0, trained at ") for line in told)
    assert "tip-" not in text


def test_what_to_do_comes_first(full: tuple[str, Page], bare_run: Path, tmp_path: Path) -> None:
    text, _ = full
    first = text[text.index("</h1>") : text.index("<dl")]
    assert "<strong>Use this order.</strong> Truly trained, it is better by 0.040" in first
    assert first.index("Use this order") < first.index("Over 2 unseen orders")
    assert "numpy.load" in first
    assert 'download="proposed-order.npy"' in first
    text, _ = page_of(bare_run, None, tmp_path / "bare.html")
    first = text[text.index("</h1>") : text.index("<dl")]
    assert re.search(r"<code>orderscope \w+ |there is nothing to look for", first)


def test_a_command_breaks_between_words_only(full: tuple[str, Page]) -> None:
    """A line that ends in `--` cannot be typed off; what is copied is the command."""
    (command,) = re.findall(r'<p class="command"><code>(.*?)</code>', full[0])
    assert command == unbroken_words('osc.OrderSampler(numpy.load("proposed-order.npy"))')
    told = unbroken_words("orderscope query <run> --order reverse")
    words = re.findall(r'<span class="word">([^<]*)</span>', told)
    assert words == ["orderscope", "query", "&lt;run&gt;", "--order", "reverse"]
    assert re.sub(r"<[^>]*>", "", told) == "orderscope query &lt;run&gt; --order reverse"
    assert re.search(r"\.word \{ display: inline-block", full[0])


def test_a_number_is_the_same_wherever_it_is_told(full: tuple[str, Page]) -> None:
    """The gain, its cost, and how many true values lie inside."""
    _, page = full
    shown = " ".join(" ".join(page.text).split())
    assert "the proposal best proposed order" not in shown
    assert re.search(r"best proposed order −0\.040 truly trained", shown)
    assert "Truly trained: 2.820, −0.040: better by 0.040" in shown
    assert "trained to confirm it: 2.820, better by 0.040" in shown
    recording, total = re.search(r"equals (\S+) runs", shown), re.search(r"as much as training (\S+) runs", shown)
    assert recording is not None
    assert total is not None
    assert f"recording cost {total[1]} of them" in shown
    held = [int(n) for n in re.findall(r"(\d+) of 2 ", shown[shown.index("inside the 90 % interval") :])][:1]
    assert held == [2]


def contrast(one: str, other: str) -> float:
    """By WCAG 2.1, section 1.4.3."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_in_light_and_dark(full: tuple[str, Page]) -> None:
    text, _ = full
    schemes = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", scheme))
        for name in ("ink", "muted", "accent", "good", "warn", *(f"s{i}" for i in range(6))):
            for ground in ("paper", "raised"):
                assert contrast(colors[name], colors[ground]) >= 4.5, (name, ground)


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


def test_where_predictions_go_wrong(full: tuple[str, Page]) -> None:
    text, page = full
    shown = " ".join(" ".join(page.text).split())
    assert "2 true runs, each predicted without its own states: gradients are off by 3.0 %" in shown
    assert "80 %, comes from step 1." in shown
    assert "Not included: probe-1, whose batches were not recorded." in shown
    told = re.findall(r'class="tip"><title>([^<]*)</title>', text)
    assert any(line.startswith("probe-0: +0.001") and line.endswith("by the true run") for line in told)
    header, first, *_ = csv.reader(io.StringIO(files(page)["steps.csv"].decode()))
    assert header[:3] == ["first_step", "last_step", "gradient_error"]
    assert first[:3] == ["0", "0", "0.03"]


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
    assert f"orderscope inspect {bare_run} --steps --metric {shlex.quote(SCRIPT)} compares" in " ".join(shown.split())
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
    tips = [attrs for _, attrs in page.tags if attrs.get("class") == "tip"]
    assert tips
    assert all(attrs["data-tip"] for attrs in tips)
    assert [attrs["role"] for _, attrs in page.tags if attrs.get("class") == "panel" and "hidden" not in attrs] == [
        "tabpanel", "tabpanel"
    ]  # fmt: skip
