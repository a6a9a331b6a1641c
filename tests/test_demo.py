"""The demo, on a shorter window: it ends well, and what it prints and writes is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "examples" / "demo.py"


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    options = ["--steps", "6", "--checks", "3", "--budget", "60", "--seconds", "2"]
    (tmp_path / "demo-run").mkdir()
    (tmp_path / "demo-run" / "manifest.jsonl").write_text("left by an earlier demo")
    done = subprocess.run(
        [sys.executable, DEMO, *options], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo-run", "report.html"]
    number = r"\d\.\d+"
    assert re.search(
        rf"groups:names,code,prose +{number} +±{number} +[+−]{number} +{number} +[+−]{number}", done.stdout
    )
    assert re.search(rf"The proposal: {number}, [+−]{number} to the recorded order \(really trained\)", done.stdout)
    assert "Open report.html in a browser." in done.stdout
