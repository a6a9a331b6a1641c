"""The check that a fresh machine can install what is pinned, without an index: a stand-in answers for uv."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "resolve.py"
CONFLICT = "error: No solution found when resolving dependencies\n  cause: torch==2.13.0 depends on triton==3.7.1"
AWAY = "error: Request failed after 3 retries\n  cause: Failed to fetch\n  cause: Connection refused (os error 111)"

# Writes down what it was asked; answers as the first of `answers` whose words are all in the arguments.
STAND_IN = """#!{python}
import json, os, sys
asked = {{"arguments": sys.argv[1:], "environment": dict(os.environ), "stdin": sys.stdin.read()}}
with open("{folder}/asked.jsonl", "a") as file:
    print(json.dumps(asked), file=file)
for words, code, out, err in {answers!r}:
    if all(word in sys.argv for word in words):
        print(out)
        print(err, file=sys.stderr)
        sys.exit(code)
"""
FOUND = ([], 0, "torch==2.13.0\ntriton==3.7.1\nnvidia-cublas==13.1\nJinja2==3.1.6\ncuda_toolkit==13.0", "")
NO_INDEX = (["--no-cache"], 2, "", AWAY)


def resolved(folder: Path, *answers: tuple) -> tuple[int, str, list[dict]]:
    """Exit status and output, and what uv was asked."""
    uv = folder / "uv"
    uv.write_text(STAND_IN.format(python=sys.executable, folder=folder, answers=answers))
    uv.chmod(0o755)
    (folder / "constraints.txt").write_text("# Pins\ntorch==2.13.0\ntriton==3.7.1\njinja2==3.1.6\n")
    environment = os.environ | {"PIP_FIND_LINKS": "/wheels", "UV_INDEX": "file:///local", "HTTPS_PROXY": "there"}
    done = subprocess.run(
        [sys.executable, SCRIPT, "--uv", uv, "--root", folder], capture_output=True, text=True, env=environment
    )
    assert not done.stderr
    lines = (folder / "asked.jsonl").read_text().splitlines()
    return done.returncode, done.stdout, [json.loads(line) for line in lines]


def test_what_resolves_everywhere_passes(tmp_path):
    code, told, asked = resolved(tmp_path, FOUND)
    assert code == 0
    assert told == (
        "resolves on a fresh machine: demo, test; linux x86-64, linux arm64, macOS arm64; Python 3.11, 3.14\n"
    )
    assert len(asked) == 12
    for one in asked:
        assert not any(name.startswith(("PIP_", "UV_")) for name in one["environment"])
        assert one["environment"]["HTTPS_PROXY"] == "there"
        assert "--no-config" in one["arguments"]


def test_what_does_not_resolve_fails(tmp_path):
    code, told, _ = resolved(tmp_path, (["aarch64-manylinux_2_28", "3.14", "test"], 1, "", CONFLICT), FOUND)
    assert code == 1
    assert told == f"does not resolve: test for linux arm64, Python 3.14:\n{CONFLICT}\n"


def test_without_an_index_nothing_is_said(tmp_path):
    code, told, asked = resolved(tmp_path, ([], 2, "", AWAY))
    assert code == 0
    assert told == "not checked: no index (Connection refused (os error 111))\n"
    assert len(asked) == 2


def test_an_index_that_is_lost_on_the_way_does_not_hide_what_failed_before(tmp_path):
    code, told, _ = resolved(tmp_path, (["demo"], 0, "", ""), (["numba", "3.11"], 1, "", CONFLICT), ([], 2, "", AWAY))
    assert code == 1
    assert "does not resolve: demo for linux x86-64, Python 3.11" in told
    assert "not checked: no index" in told


def test_another_error_of_uv_fails_where_the_index_answers(tmp_path):
    code, told, _ = resolved(tmp_path, (["--no-cache"], 0, "", ""), ([], 2, "", "error: unknown option"))
    assert code == 1
    assert "error: unknown option" in told


def test_it_asks_for_what_the_makefile_installs(tmp_path):
    makefile = (SCRIPT.parents[1] / "Makefile").read_text()
    asked = [one["arguments"] for one in resolved(tmp_path, FOUND)[2]]
    extras = {",".join(b for a, b in pairwise(arguments) if a == "--extra") for arguments in asked}
    assert set(re.findall(r"-e '\.\[(.*)\]'", makefile)) == extras


@pytest.mark.parametrize("name", ["numpy", "nvidia.cublas", "cuda_toolkit"])
def test_only_torchs_own_may_be_without_a_pin(name, tmp_path):
    code, told, _ = resolved(tmp_path, ([], 0, f"torch==2.13.0\n{name}==1.0", ""))
    assert code == int(name == "numpy")
    assert ("not pinned in constraints.txt: numpy" in told) == (name == "numpy")


def test_uv_itself_without_a_network(tmp_path):
    """The words and exit statuses that the check goes by are those of the pinned uv."""
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("uv is not installed")
    environment = os.environ | {"HTTPS_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, SCRIPT, "--uv", uv], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("not checked: no index (")
