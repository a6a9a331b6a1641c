"""Measure accuracy against true retraining over windows and seeds of probes and sketch; docs/accuracy.md shows it.

    make accuracy                          # or: python benchmarks/accuracy.py --seeds 3

Each figure is that of `benchmarks/fidelity.py`, run in a process of its own. Where a folder with independent checks is
given (--checks, by default ../shared/checks if it is there), its fidelity.py and tasks are run too: another loop,
another oracle, the same product. Every row is put into the data as soon as it is measured, in the place of an older one
of the same window and seed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measured import DATA, merge, origin

HERE = Path(__file__).parent
WINDOWS = ["text_24", "text_96", "text_mixed", "digits", "minilm_full", "minilm_lora", "text_384"]
PUBLIC = {"short": 24, "long": 96, "mixed": 48}  # windows of the independent checks, and their steps
ORDERS = 32
# Figure -> what the fidelity scripts call it.
OWN = {
    **{key: key for key in ("true_std", "spearman", "mae_ratio", "sign", "coverage", "error_over_std")},
    "parameter_error": "parameter_error", "cost_clock": "cost_runs", "answers": "speedup_per_order",
    "megabytes": "megabytes",
}  # fmt: skip
CHECKED = {
    "spearman": "spearman", "mae_ratio": "mae_ratio", "whole_spearman": "whole_spearman", "whole_mae": "whole_mae",
    "regrouped_off": "regrouped_off", "coverage": "coverage", "cost": "cost_cpu", "answers": "speedup_per_order",
    "megabytes": "megabytes", "rival_spearman": "rival_spearman", "rival_mae": "rival_mae",
}  # fmt: skip


def measure(script: Path, task: str, extra: list[str], threads: int) -> dict[str, Any]:
    """The JSON object a fidelity script prints first. Its exit status only tells of thresholds."""
    command = [sys.executable, str(script), task, "--orders", str(ORDERS), *extra]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found = json.loads(lines[0])
    print(task, *extra, figures(found, OWN), flush=True)
    return found


def figures(found: dict[str, Any], names: dict[str, str]) -> dict[str, float]:
    """The figures that a script printed, under our names."""
    return {key: round(found[name], 4) for key, name in names.items() if found.get(name) is not None}


def own_rows(name: str, seed: int, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for the window's first metric, with the proxy's figures, and one for each other metric."""
    came = origin(f"python benchmarks/fidelity.py windows.py:{name} --orders {ORDERS} --seed {seed}")
    proxy = figures(found.get("proxy", {}), {"proxy_spearman": "spearman", "proxy_mae": "mae_ratio"})
    yield {"window": name, "seed": seed, "figures": figures(found, OWN) | proxy} | came
    for other, values in found["others"].items():
        yield {"window": f"{name}, {other}", "seed": seed, "figures": figures(found | values, OWN)} | came


def checked_row(name: str, seed: int, found: dict[str, Any]) -> dict[str, Any]:
    counts = {"steps": PUBLIC[name], "orders": ORDERS}
    came = origin(f"python CHECKS/fidelity.py TASK --orders {ORDERS}")
    return {"window": name, "seed": seed, "figures": counts | figures(found, CHECKED)} | came


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--windows", nargs="*", default=WINDOWS)
    parser.add_argument("--checks", type=Path, default=HERE.parents[1] / "shared" / "checks")
    parser.add_argument("--out", type=Path, default=DATA / "accuracy.json", help="the data that rows are put into")
    options = parser.parse_args()
    threads = int(os.environ.get("ACCURACY_THREADS", 1))  # more would wait for each other on a busy machine
    for name in options.windows:
        for seed in range(options.seeds):
            found = measure(HERE / "fidelity.py", f"windows.py:{name}", ["--seed", str(seed)], threads)
            merge(options.out, "own", own_rows(name, seed, found))
    script = options.checks / "fidelity.py"
    if script.exists():
        for name in PUBLIC:
            for seed in range(options.seeds):
                found = measure(script, f"tasks.py:{name}", ["--record", json.dumps({"seed": seed})], threads)
                merge(options.out, "windows", [checked_row(name, seed, found)])


if __name__ == "__main__":
    main()
