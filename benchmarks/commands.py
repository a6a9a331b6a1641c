"""What the commands cost on the demo's run, as ratios to importing torch.

    python benchmarks/commands.py [--run demo-run]

Each command is a process of its own; so is `python -c "import torch"`, right before it. The figure is the CPU time
of one over that of the other, the median of some rounds with the least and the most. The rows go into the data
that docs/benchmarks.md shows. Without --run the demo's recording is made first.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measured import DATA, merge, origin

ROUNDS = 3
EXAMPLE = Path(__file__).parents[1] / "examples" / "characters.py"
COMMANDS = {
    "query RUN --order reverse": ["query", "RUN", "--order", "reverse"],
    "query RUN, 20 orders": ["query", "RUN", *(word for seed in range(20) for word in ("--order", f"shuffle:{seed}"))],
    "inspect RUN": ["inspect", "RUN"],
    "report RUN": ["report", "RUN", "--out", "PAGE"],
    "propose RUN --verify 0": ["propose", "RUN", "--verify", "0", "--metric", "eval", "--anyway"],
}
ORDERSCOPE = [sys.executable, "-c", "from orderscope.cli.main import main; main()"]
UNTRUSTED = 3


def cpu(words: list[str]) -> float:
    """CPU seconds of a process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if done.returncode not in (0, UNTRUSTED):
        sys.exit(f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="the demo's run, or another; default: recorded now")
    parser.add_argument("--out", type=Path, default=DATA / "benchmarks.json", help="the data that rows are put into")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run, page = Path(folder, "run"), Path(folder, "report.html")
        if options.run is None:
            cpu([*ORDERSCOPE, "record", f"{EXAMPLE}:task", "--out", str(run)])
        else:
            shutil.copytree(options.run, run)
        for name, words in COMMANDS.items():
            told = [{"RUN": str(run), "PAGE": str(page)}.get(word, word) for word in words]
            cpu([*ORDERSCOPE, *told])  # what it keeps in the run is there from now on
            found = []
            for _ in range(ROUNDS):
                torch = cpu([sys.executable, "-c", "import torch"])
                found.append(cpu([*ORDERSCOPE, *told]) / torch)
            figures = {"ratio": statistics.median(found), "least": min(found), "most": max(found)}
            figures = {key: round(value, 2) for key, value in figures.items()}
            print(name, figures, flush=True)
            command = "python benchmarks/commands.py"
            merge(
                options.out, "commands", [{"command_line": f"orderscope {name}", "figures": figures} | origin(command)]
            )


if __name__ == "__main__":
    main()
