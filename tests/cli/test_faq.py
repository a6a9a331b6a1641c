"""Commands that the pages name in passing exist, with the options they are given."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from orderscope.cli.main import VERBS, main

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["faq.md", "howto/budget-and-window.md", "howto/play-an-order.md", "howto/sharing.md", "howto/ask-and-tell.md"]


def commands(page: str) -> list[list[str]]:
    """What stands between backticks and begins with `orderscope VERB`."""
    prose = re.sub(r"^```.*?^```$", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    texts = re.findall(r"`([^`]+)`", prose)
    found = [shlex.split(text) for text in texts if re.match(r"([A-Z_]+=\S+ )?orderscope [a-z]", text)]
    return [words[words.index("orderscope") + 1 :] for words in found]


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_exist(page: str) -> None:
    for verb, *words in commands(page):
        assert verb in VERBS
        command = main.get_command(click.Context(main), verb)
        assert command is not None
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= known, f"{verb} has no {given - known}"


def test_there_is_something_to_look_at() -> None:
    assert len(commands("faq.md")) > 10
    questions = re.findall(r"^### (.*)$", (DOCS / "faq.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(questions) == len(set(questions)) >= 12
    assert all(question.endswith("?") for question in questions)
