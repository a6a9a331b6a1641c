"""All that has to be measured on a GPU, in one command and within eight minutes on one H100.

    python benchmarks/gpu.py --out DIR            # writes DIR/gpu.json and DIR/gpu.md

Needs torch, numpy, h5py, click, scipy and triton; of orderscope nothing but this source tree. Every part is a process
of its own (`gpu_parts.py`): one that fails, hangs or breaks the device loses none of the others, and its peak memory is
its own. What it had measured by then is kept, its error is in the JSON, and the exit status is 1.

Without a GPU, or with --tiny, the parts are so small that they say nothing but that they run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "triton", "numpy", "scipy", "h5py", "click")
# Part -> most seconds of it, and what it is. What a part leaves over goes to the later ones: eight minutes in all.
PARTS = {
    "kernels": (140, "The kernels against their plain-torch reference"),
    "replay": (60, "A fused step of a replay against plain torch"),
    "together": (60, "Sixteen orders trained side by side"),
    "language": (200, "A recorded language model: what recording and asking cost, in trainings of the window"),
}
TAIL = 3000  # characters of a lost process's output


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.json and gpu.md")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--tiny", action="store_true", help="so small that it runs on a CPU; without a GPU it is always"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    began, left_over = time.monotonic(), 0.0
    found: dict[str, Any] = {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: installed(name) for name in PACKAGES},
        "parts": {},
    }
    for name in options.parts:
        allowed = PARTS[name][0] + left_over
        part = measured(name, allowed, options.tiny)
        left_over = max(0.0, allowed - part["seconds"])
        found["parts"][name] = part
        found |= {key: part.pop(key) for key in ("device", "tiny") if key in part}
        found["seconds"] = round(time.monotonic() - began, 1)
        write(options.out / "gpu.json", json.dumps(found, indent=1) + "\n")
        write(options.out / "gpu.md", table(found))
        print(section(name, part), flush=True)
    failed = [name for name, part in found["parts"].items() if part["error"]]
    for name in failed:
        print(f"{name} failed:\n{found['parts'][name]['error']}", file=sys.stderr)
    return int(bool(failed))


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def measured(name: str, seconds: float, tiny: bool) -> dict[str, Any]:
    """A part, done by a process of its own: its rows, its peak memory, and its error or None."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"gpu-{name}-") as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, str(HERE / "gpu_parts.py"), name, str(result), "--seconds", str(0.9 * seconds)]
        with (Path(folder) / "output").open("w+") as output:
            process = subprocess.Popen(
                command + ["--tiny"] * tiny, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
            try:
                how = f"ended with status {process.wait(timeout=seconds)}"
            except subprocess.TimeoutExpired:
                how = f"not finished after {seconds:.0f} seconds"
            finally:
                stop(process)
            output.seek(0)
            said = output.read()[-TAIL:]
        part: dict[str, Any] = {"rows": [], "memory": {}, "error": None}
        if result.exists():
            part |= json.loads(result.read_text(encoding="utf-8"))
        if not part.pop("finished", False):
            part["error"] = part["error"] or f"{how}\n{said}"
    return part | {"seconds": round(time.monotonic() - began, 1)}


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a part with all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def write(path: Path, text: str) -> None:
    """As a whole or not at all."""
    new = path.with_suffix(path.suffix + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def table(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in PACKAGES if found["versions"][name])
    head = f"{found.get('device', 'no device')}, Python {found['python']}, {versions}; {found['when']}"
    tiny = "\nIn the tiny form: these figures say only that everything runs.\n" if found.get("tiny") else ""
    return f"{head}\n{tiny}\n" + "\n".join(section(name, part) for name, part in found["parts"].items())


def section(name: str, part: dict[str, Any]) -> str:
    lines = [f"## {PARTS[name][1]}", "", "| what | measured | goal |", "|---|---|---|"]
    lines += [f"| {row['what']} | {figures(row)} | {goal(row)} |" for row in part["rows"]]
    lines += [f"| peak memory, {where} | {size / 2**30:.2f} GiB | |" for where, size in part["memory"].items()]
    lines += [f"| seconds | {part['seconds']:.0f} | |"]
    if part["error"]:
        lines += ["", f"Failed: {part['error'].strip().splitlines()[-1]}"]
    return "\n".join(lines) + "\n"


def figures(row: dict[str, Any]) -> str:
    value, low, high = (f"{row[key]:.4g}" for key in ("value", "low", "high"))
    spread = f" ({low} to {high})" if row["low"] != row["high"] else ""
    return f"{value}{spread} {row['unit']}".strip()


def goal(row: dict[str, Any]) -> str:
    return f"{row['goal']}: {'met' if row['met'] else 'not met'}" if row["goal"] else ""


if __name__ == "__main__":
    sys.exit(main())
