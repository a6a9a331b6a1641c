#!/usr/bin/env python3
"""The long form of tests/hostile: malformed input by the hundred thousand, and every verb killed again and again.

    make torture                                  # or: python benchmarks/torture.py
    python benchmarks/torture.py --kills 60 --flips 0 --expressions 0 --arrays 0

What is tried and what must hold is in tests/torture_cases.py and tests/kill_verbs.py. Prints one line of JSON for each
part when it is finished; a case that fails ends it with a traceback that names case and seed. benchmarks/kills.py kills
`osc.record` alone, and compares its bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PLACES = [str(Path(__file__).parents[1] / folder) for folder in ("src", "kernels", "tests")]
sys.path[:0] = PLACES

from kill_verbs import VERBS, Killing  # noqa: E402
from torture_cases import (  # noqa: E402
    ask,
    constrain,
    contents,
    damage,
    expression,
    made_run,
    numpy_file,
    read_numpy,
    tally,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--expressions", type=int, default=100_000, help="order expressions, and as many constraints")
    parser.add_argument("--arrays", type=int, default=10_000, help="malformed .npy files")
    parser.add_argument("--flips", type=int, default=10_000, help="runs with one file changed")
    parser.add_argument("--kills", type=int, default=500, help="shared out over the verbs")
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=VERBS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    os.environ |= {"PYTHONPATH": os.pathsep.join(PLACES), "ORDERSCOPE_STATE": str(folder)}  # of the killed processes
    seed = options.seed

    def array(draw: random.Random) -> bool:
        (folder / "order.npy").write_bytes(numpy_file(draw))
        return read_numpy(folder / "order.npy")

    made_run(folder / "made")
    sound = contents(folder / "made")
    cases: list[tuple[str, int, Callable[[random.Random], bool]]] = [
        ("expressions", options.expressions, lambda draw: ask(expression(draw))),
        ("constraints", options.expressions, lambda draw: constrain(expression(draw))),
        ("arrays", options.arrays, array),
        ("flips", options.flips, lambda draw: damage(folder / "damaged", sound, draw)),
    ]
    for name, count, case in cases:
        if count:
            began = time.perf_counter()
            fine, refused = tally(count, seed, case)
            tell(name, began, cases=count, accepted=fine, refused=refused)
    for verb in options.verbs if options.kills else ():
        began = time.perf_counter()
        (folder / verb).mkdir()
        killing, draw = Killing(verb, folder / verb), random.Random(f"{seed}-{verb}")
        kills = ended = 0
        while kills < options.kills / len(options.verbs):
            kills += killing.once(draw.randint(1, 4), draw)
            ended += 1
        tell(verb, began, kills=kills, runs=ended)
    shutil.rmtree(folder)


def tell(part: str, began: float, **facts: int) -> None:
    print(json.dumps({"part": part, **facts, "seconds": round(time.perf_counter() - began, 1)}), flush=True)


if __name__ == "__main__":
    main()
