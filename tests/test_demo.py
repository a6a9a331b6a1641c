"""The demo, on a shorter window, with no more than `make demo` installs: it ends well, and its answers are there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "demo.py"

# Python runs it at the start: other packages are then not there.
HIDING = """
import sys
from importlib.machinery import PathFinder

HIDDEN = {hidden!r}

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
"""


def installed_for_the_demo() -> set[str]:
    """Distributions that the Makefile's first stage brings along, beside orderscope itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["numba"], *extras["rich"]]
    found: set[str] = set()
    while asked:
        wanted = Requirement(asked.pop())
        name = canonicalize_name(wanted.name)
        if name in found or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        try:
            asked += requires(name) or []
        except PackageNotFoundError:
            continue
        found.add(name)
    return found


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    own = installed_for_the_demo() | {"orderscope"}
    hidden = sorted(n for n, of in packages_distributions().items() if not own & {canonicalize_name(d) for d in of})
    assert {"pytest", "sklearn", "transformers"} <= set(hidden)
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(HIDING.format(hidden=hidden))
    path = os.pathsep.join(map(str, [site, ROOT / "src", ROOT / "kernels"]))
    options = ["--steps", "6", "--checks", "3", "--budget", "60", "--seconds", "2"]
    folder = tmp_path / "folder"
    (folder / "demo-run").mkdir(parents=True)
    (folder / "demo-run" / "manifest.jsonl").write_text("left by an earlier demo")
    done = subprocess.run(
        [sys.executable, DEMO, *options], cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["demo-run", "report.html"]
    number = r"\d\.\d+"
    assert re.search(
        rf"groups:names,(code,prose)? +{number} +±{number} +[+−]{number} +{number} +[+−]{number}", done.stdout
    )
    assert re.search(rf"The proposal: {number}, [+−]{number} to the recorded order \(really trained\)", done.stdout)
    assert "Open report.html in a browser." in done.stdout
