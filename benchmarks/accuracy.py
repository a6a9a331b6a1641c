"""Measure accuracy against true retraining over windows and sketch seeds, and write docs/accuracy.md.

    make accuracy                          # or: python benchmarks/accuracy.py --seeds 3

Each figure is that of `benchmarks/fidelity.py`, run in a process of its own. Where a folder with independent checks is
given (--checks, by default ../shared/checks if it is there), its fidelity.py and tasks are run too: another loop,
another oracle, the same product.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
WINDOWS = ["text_24", "text_96", "text_mixed", "digits", "minilm_full", "minilm_lora", "text_384"]
PUBLIC = ["short", "long", "mixed"]
COLUMNS = {
    "spearman": "Spearman",
    "mae_ratio": "mae_ratio",
    "sign": "sign",
    "coverage": "coverage",
    "error_over_std": "half-width / std",
    "parameter_error": "parameter error",
    "cost_runs": "cost in runs",
}


def measure(script: Path, task: str, extra: list[str], threads: int) -> dict:
    """The JSON object a fidelity script prints first. Its exit status only tells of thresholds."""
    command = [sys.executable, str(script), task, "--orders", "32", *extra]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found = json.loads(lines[0])
    print(task, *extra, {key: round(found[key], 3) for key in COLUMNS}, flush=True)
    return found


def row(name: str, found: list[dict]) -> str:
    """Mean over the seeds, and from least to most where they differ."""
    cells = []
    for key in COLUMNS:
        if key not in found[0]:
            cells.append("")
            continue
        values = np.array([one[key] for one in found])
        spread = f" ({values.min():.2f} to {values.max():.2f})" if len(values) > 1 else ""
        cells.append(f"{values.mean():.3f}{spread}")
    return f"| {name} | {found[0]['true_std']:.4f} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--windows", nargs="*", default=WINDOWS)
    parser.add_argument("--checks", type=Path, default=HERE.parents[1] / "shared" / "checks")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "accuracy.md")
    options = parser.parse_args()
    threads = int(os.environ.get("ACCURACY_THREADS", 1))  # more would wait for each other on a busy machine

    head = "| window | std of the true loss | " + " | ".join(COLUMNS.values()) + " |"
    rule = "|---" * (2 + len(COLUMNS)) + "|"
    lines = [
        "# Accuracy", "",
        "Predicted against truly retrained, 32 orders that nothing was tuned on (shuffled steps, group blocks, half",
        "in blocks, a few swaps; every eighth regroups the samples), default settings of `record`, no knob for any",
        "window. mae_ratio is 1 for a constant guess. Coverage is of the stated 90 % interval. Cost is wall time to",
        "record over wall time to train once: recording uses all cores, training one.", "",
        f"Measured {datetime.date.today()} by `make accuracy`: torch {torch.__version__}, Python"
        f" {platform.python_version()}, {os.cpu_count()} cores, CPU.", "",
        f"## Own windows, {options.seeds} seeds of probes and sketch", "",
        "One row is `python benchmarks/fidelity.py windows.py:NAME --seed S` for each S; means, and in brackets the",
        "least and the most over the seeds.", "", head, rule,
    ]  # fmt: skip

    def keep(*new: str) -> None:
        """Written row by row: what was measured stays where the rest is interrupted."""
        lines.extend(new)
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")

    for name in options.windows:
        found = [
            measure(HERE / "fidelity.py", f"windows.py:{name}", ["--seed", str(seed)], threads)
            for seed in range(options.seeds)
        ]
        others = found[0]["others"]
        keep(row(name, found), *(row(f"{name}, {o}", [one | one["others"][o] for one in found]) for o in others))
        proxies = [one["proxy"] | {"true_std": one["true_std"]} for one in found]
        keep(row(f"{name}, proxy on {proxies[0]['effort']:.3g} of each batch", proxies))
    if (options.checks / "fidelity.py").exists():
        keep("", "## Independent checks", "",
             "Another training loop and other tasks, not part of this project; their orders regroup too.", "",
             head, rule)  # fmt: skip
        for name in PUBLIC:
            records = [["--record", json.dumps({"seed": seed})] for seed in range(options.seeds)]
            script = options.checks / "fidelity.py"
            keep(row(name, [measure(script, f"tasks.py:{name}", extra, threads) for extra in records]))


if __name__ == "__main__":
    main()
