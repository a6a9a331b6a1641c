"""Runs `orderscope` in this process."""

from __future__ import annotations

import json
from unittest.mock import patch

from click.testing import CliRunner, Result

from orderscope.cli import progress
from orderscope.cli.main import main


def call(*args: object) -> Result:
    """What a command printed, and its exit code. What goes on is not told: that hangs on how busy the machine is."""
    with patch.object(progress, "SOON", 3600.0):
        return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


def answer(*args: object, code: int = 0) -> dict:
    """What a command printed with --json."""
    result = call(*args, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)
