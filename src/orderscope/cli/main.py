"""`orderscope`: loads the command that is called, and turns errors into messages and exit codes."""

from __future__ import annotations

import errno
import importlib
import os
import re

import click

from orderscope import __version__
from orderscope.cli import RUN
from orderscope.cli.spoken import as_options
from orderscope.cli.text import say
from orderscope.errors import OrderscopeError, ended_by_task
from orderscope.files import ADVICE
from orderscope.text import plain, plain_lines

# A verb's module must not import torch before the verb is run: help would then take seconds.
VERBS = {
    "record": "orderscope.cli.record:record",
    "sketch": "orderscope.cli.sketch:sketch",
    "query": "orderscope.cli.query:query",
    "propose": "orderscope.cli.propose:propose",
    "validate": "orderscope.cli.validate:validate",
    "positions": "orderscope.cli.positions:positions",
    "report": "orderscope.cli.report:report",
    "export": "orderscope.cli.export:export",
    "inspect": "orderscope.cli.inspect:inspect",
    "pack": "orderscope.cli.pack:pack",
    "run": "orderscope.cli.run:run",
    "doctor": "orderscope.cli.doctor:doctor",
}
INTERRUPTED = 130
SENTENCE = re.compile(r".*?(\.(?= |$)|$)")


class Verbs(click.Group):
    """Loads a command's module when it is called; turns an expected error into one line and its exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, name = VERBS[cmd_name].split(":")
        return getattr(importlib.import_module(module), name)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            error.message = plain_lines(error.message)  # pyright: ignore[reportAttributeAccessIssue]
            raise
        except OrderscopeError as error:
            self._end(ctx, as_options(str(error), self._called(ctx)), error.exit_code)
        except SystemExit as stop:  # raised by the user's code: click uses its own exception
            self._end(ctx, str(ended_by_task(stop)), 1)
        except KeyboardInterrupt:
            self._end(ctx, interrupted(ctx), INTERRUPTED)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            advice = ADVICE.get(error.errno or 0)
            self._end(ctx, str(error) + (f"; {advice}" if advice else ""), 1)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List each command with the first sentence of its help, not cut off."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            assert command is not None
            rows.append((name, SENTENCE.match(" ".join((command.help or "").split("\n\n")[0].split()))[0]))  # type: ignore[index]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _called(self, ctx: click.Context) -> click.Command | None:
        """The command that was called."""
        return self.get_command(ctx, ctx.invoked_subcommand) if ctx.invoked_subcommand else None

    @staticmethod
    def _end(ctx: click.Context, line: str, code: int) -> None:
        say(f"orderscope: {plain(line)}", err=True)
        ctx.exit(code)


def interrupted(ctx: click.Context) -> str:
    """The message after an interrupt: what is kept, and how to resume."""
    run = ctx.meta.get(RUN)
    kept = f"what was finished is kept in {run}" if run is not None and os.path.isdir(run) else "nothing was changed"
    return f"interrupted; {kept}: run the same command again to resume"


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="orderscope")
def main() -> None:
    """Record one training run, and predict its result under any other order of the same samples.

    Exit codes: 0 done, 1 an expected error, 2 wrong usage, 3 a prediction is not trusted, 4 the run is
    damaged, 5 the run is incomplete and can be resumed, 130 interrupted.
    """
