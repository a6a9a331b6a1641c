"""Messages of the library in terms of a command's options: `budget=` becomes `--budget`."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

ARGUMENT = re.compile(r"\b([a-z][a-z_]*)=(True|False|None\b)?")
NO_OPTION = re.compile(r" \([a-z][a-z_]*=True\)")
SIMULATOR = re.compile(r"Simulator\(path, task\)")
TASK = "--task file.py:name"


def as_options(text: str, command: click.Command | None) -> str:
    """A message of the library with Python arguments replaced by the options of a command; other arguments stay.

    Example:
        >>> from orderscope.cli.propose import propose
        >>> as_options("regroup=False keeps those recorded; change budget=", propose)
        '--keep-batches keeps those recorded; change --budget'
    """
    if command is None:
        return text
    known = dict(_options(command))

    def replacement(match: re.Match[str]) -> str:
        option = known.get(match[1])
        if option is None:
            return match[0]
        no = option.secondary_opts[-1:] or option.opts[-1:]
        name = no[0] if match[2] == "False" else max(option.opts, key=len)
        return name if option.is_flag or match.end() == len(text) or text[match.end()] in " ,;)" else f"{name} "

    line = ARGUMENT.sub(replacement, text)
    if "task" in known:
        line = SIMULATOR.sub(TASK, line)
    line = re.sub(r"(--[\w-]+) \(\1\)", r"\1", line)
    return NO_OPTION.sub("", line)


def _options(command: click.Command) -> Iterator[tuple[str, click.Option]]:
    """Pairs of the library's name of an argument and the command's option."""
    for option in command.params:
        if isinstance(option, click.Option):
            for name in {option.name or "", *(opt.lstrip("-").replace("-", "_") for opt in option.opts)}:
                yield name, option
