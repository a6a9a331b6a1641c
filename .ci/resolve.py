"""Whether a fresh machine can install what the Makefile installs: pyproject.toml under constraints.txt.

    make resolve

Asks the default package index, for other platforms too. Local wheels and settings hide what a fresh machine meets, so
pip's and uv's are left out here. Ends with 1 where something does not resolve, has no wheel or is not pinned. Without
an index nothing can be said: then it says so, and ends with 0.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETS = {
    "demo": ["--extra", "numba", "--extra", "rich", "--extra", "study"],
    "test": ["--extra", "test"],
}  # as the Makefile
PLATFORMS = {
    "linux x86-64": "x86_64-manylinux_2_28",
    "linux arm64": "aarch64-manylinux_2_28",
    "macOS arm64": "aarch64-apple-darwin",
}
MACOS = "14.0"  # the oldest that torch has wheels for
PYTHONS = ("3.11", "3.14")  # the oldest and the newest that the Makefile looks for
TOOLS = "pip\nsetuptools\nwheel\n"  # the Makefile installs them first
UNPINNED = ("cuda-", "nvidia-")  # torch pins them itself, see constraints.txt
UNSOLVED = "No solution found"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uv", default=str(Path(sys.executable).with_name("uv")), help="the uv to ask")
    parser.add_argument("--root", type=Path, default=ROOT, help="where pyproject.toml and constraints.txt are")
    options = parser.parse_args()
    pins = pinned(options.root / "constraints.txt")
    failed, unreached = [], ""
    for (name, extras), (platform, tag), python in product(SETS.items(), PLATFORMS.items(), PYTHONS):
        what = f"{name} for {platform}, Python {python}"
        asked = ["pyproject.toml", "-", "--constraints", "constraints.txt", "--only-binary", ":all:", *extras]
        done = compiled(options, [*asked, "--python-platform", tag, "--python-version", python])
        if done.returncode == 0:
            loose = sorted(n for n in set(names(done.stdout)) - pins if not n.startswith(UNPINNED))
            if loose:
                failed.append(f"{what}: not pinned in constraints.txt: {', '.join(loose)}")
        elif UNSOLVED not in done.stderr and not index_there(options):
            unreached = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1].strip()
            break
        else:
            failed.append(f"{what}:\n{done.stderr.strip()}")
    for text in failed:
        print(f"does not resolve: {text}")
    if unreached:
        print(f"not checked: no index ({unreached.removeprefix('cause: ')})")
    elif not failed:
        print(f"resolves on a fresh machine: {', '.join(SETS)}; {', '.join(PLATFORMS)}; Python {', '.join(PYTHONS)}")
    return int(bool(failed))


def compiled(options: argparse.Namespace, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """What uv makes of these requirements, beside those of its standard input."""
    return subprocess.run(
        [
            options.uv, "pip", "compile", "--no-config", "--no-python-downloads", "--python", sys.executable, "--quiet",
            "--no-header", "--no-annotate", *arguments,
        ],
        input=TOOLS, cwd=options.root, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip


def environment() -> dict[str, str]:
    """This one without what pip and uv are told here. Proxies and certificates stay: they are the way to the index."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_"))}
    return kept | {"MACOSX_DEPLOYMENT_TARGET": MACOS}


def index_there(options: argparse.Namespace) -> bool:
    """Whether the index answers at all."""
    return compiled(options, ["-", "--no-cache"]).returncode == 0


def pinned(path: Path) -> set[str]:
    return set(names(path.read_text(encoding="utf-8")))


def names(text: str) -> list[str]:
    """Of lines NAME==VERSION, in the form in which indexes compare them."""
    return [re.sub(r"[-_.]+", "-", name).lower() for name in re.findall(r"^([\w.-]+)==", text, re.MULTILINE)]


if __name__ == "__main__":
    sys.exit(main())
