"""What the library says of its arguments, said of the command's options: `budget=` is `--budget` at a shell."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

ARGUMENT = re.compile(r"\b([a-z][a-z_]*)=(True|False|None\b)?")
NO_OPTION = re.compile(r" \([a-z][a-z_]*=True\)")
SIMULATOR = re.compile(r"Simulator\(path, task\)")
TASK = "--task file.py:name"


def as_options(text: str, command: click.Command | None) -> str:
    """A line of the library with the options of a command in place of Python arguments; others stay as they are.

    Example:
        >>> from orderscope.cli.propose import propose
        >>> as_options("regroup=False keeps those recorded; change budget=", propose)
        '--keep-batches keeps those recorded; change --budget'
    """
    if command is None:
        return text
    known = dict(_options(command))

    def said(found: re.Match[str]) -> str:
        option = known.get(found[1])
        if option is None:
            return found[0]
        no = option.secondary_opts[-1:] or option.opts[-1:]
        name = no[0] if found[2] == "False" else max(option.opts, key=len)
        return name if option.is_flag or found.end() == len(text) or text[found.end()] in " ,;)" else f"{name} "

    told = ARGUMENT.sub(said, text)
    if "task" in known:
        told = SIMULATOR.sub(TASK, told)
    told = re.sub(r"(--[\w-]+) \(\1\)", r"\1", told)
    return NO_OPTION.sub("", told)


def _options(command: click.Command) -> Iterator[tuple[str, click.Option]]:
    """Options by the names that the library has for them."""
    for option in command.params:
        if isinstance(option, click.Option):
            for name in {option.name or "", *(opt.lstrip("-").replace("-", "_") for opt in option.opts)}:
                yield name, option
