"""`orderscope doctor`: check whether Orderscope works on this machine."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from orderscope import __version__
from orderscope.cli.progress import doing
from orderscope.cli.tasks import Spec, load_task
from orderscope.cli.text import columns, json_option, print_json, say, size
from orderscope.store import RunStore
from orderscope.text import number

REQUIRED = ("numpy", "h5py", "click", "scipy", "jinja2", "matplotlib")
PURPOSES = {
    "numba": "queries in half the time on a CPU",
    "triton": "GPU kernels",
    "rich": "progress bars",
    "study": "orderscope run, which reads study files",
    "parquet": "orderscope export --to parquet",
    "transformers": "recording inside the Hugging Face Trainer",
    "lightning": "recording inside Lightning",
    "peft": "recording adapters, LoRA for one",
    "trl": "recording inside TRL's trainers",
    "scale": "recording on other machines",
}  # descriptions of extras; an extra without one is listed by its name alone
NOT_FOR_USE = {"test", "docs", "smollm"}  # extras for working on orderscope, and for one example
REQUIREMENT = re.compile(r"([\w.-]+).*?extra == ['\"]([\w-]+)['\"]")
LARGE = 32 << 20  # bytes that are written to time the disk


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        what: its name.
        found: what it is here.
        level: "ok", "note" (works, could be better) or "wrong" (something will fail).
        advice: what to do about it.
    """

    what: str
    found: str
    level: str = "ok"
    advice: str = ""


@click.command()
@click.argument("spec", metavar="[TASK]", type=Spec(), required=False)
@click.option(
    "--dir",
    "where",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=".",
    help="Directory where runs will be written; the disk there is tested. Default: the current directory.",
)
@json_option
def doctor(spec: str | None, where: Path, as_json: bool) -> None:
    """Check Python, torch, threads, extras and the disk. Exit code 1 if something will not work.

    With TASK (file.py:name or module:name): what recording it will take, tried on a few steps in --dir. Nothing is left
    there.
    """
    if spec is not None:
        _tell_preflight(spec, where, as_json)
        return
    with doing("look at the machine", quiet=as_json):
        findings = [*_packages(), *_torch(), *_disk(where)]
    wrong = any(finding.level == "wrong" for finding in findings)
    if as_json:
        print_json({"ok": not wrong, "findings": [asdict(finding) for finding in findings]})
    else:
        say(columns([[f.level, f.what, f.found + (f" - {f.advice}" if f.advice else "")] for f in findings], ""))
    click.get_current_context().exit(int(wrong))


def _tell_preflight(spec: str, where: Path, as_json: bool) -> None:
    with doing(f"try a few steps of {spec}", quiet=as_json):
        import torch

        torch.set_num_threads(1)
        from orderscope.recording.preflight import preflight

        found = preflight(load_task(spec), where)
    free = shutil.disk_usage(where).free
    if as_json:
        stages = [asdict(stage) for stage in found.stages]
        print_json({"ok": found.most_disk < free, "stages": stages, "seconds": found.seconds, "jobs": found.jobs,
                    "run": found.run, "cost": found.cost, "disk": found.disk, "most_disk": found.most_disk,
                    "free": free})  # fmt: skip
    else:
        rows = [["stage", "CPU seconds", "peak memory", "disk", "until the table is built"]]
        rows += [[s.name, "" if math.isnan(s.seconds) else number(s.seconds, 3), size(s.memory), size(s.disk),
                  size(s.passing)] for s in found.stages]  # fmt: skip
        say(columns(rows, ""))
        parts = ", ".join(f"{part} {number(runs, 3)}" for part, runs in found.cost.items())
        say(
            f"cost in runs of {number(found.run, 2)} CPU seconds: about {number(sum(found.cost.values()), 3)} ({parts})"
        )
        say(f"recording: about {number(found.seconds, 3)} s with {found.jobs} processes, {size(found.most_disk)} of "
            f"{size(free)} free, of which at most {size(found.disk)} stay")  # fmt: skip
    click.get_current_context().exit(int(found.most_disk >= free))


def _packages() -> Iterator[Finding]:
    yield Finding("orderscope", __version__)
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    for name in REQUIRED:
        version = _version(name)
        yield Finding(name, version) if version else Finding(name, "missing", "wrong", "pip install orderscope")
    for extra, packages in _extras().items():
        versions = {name: _version(name) for name in packages}
        missing = [name for name, version in versions.items() if version is None]
        said = ", ".join(v if len(versions) == 1 else f"{n} {v}" for n, v in versions.items() if v is not None)
        if missing and said:
            said += f", not {', '.join(missing)}"
        purpose = f"for {PURPOSES[extra]}: " if extra in PURPOSES else ""
        advice = f"{purpose}pip install 'orderscope[{extra}]'" if missing else ""
        yield Finding(extra, said or "not installed", "ok", advice)


def _extras() -> dict[str, list[str]]:
    """What each extra of the installed package brings."""
    try:
        described = importlib.metadata.metadata("orderscope")
    except importlib.metadata.PackageNotFoundError:  # run from its source
        return {}
    found: dict[str, list[str]] = {}
    for line in described.get_all("Requires-Dist") or []:
        if (match := REQUIREMENT.match(line)) and match[2] not in NOT_FOR_USE:
            found.setdefault(match[2], []).append(match[1])
    return found


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", f"cannot be imported: {error}", "wrong", "pip install torch")
        return
    yield Finding("torch", torch.__version__)
    threads = torch.get_num_threads()
    advice = "reruns may differ in the last bits, and small models are slower: set OMP_NUM_THREADS=1"
    yield Finding("threads", f"{threads} of {os.cpu_count()} cores", *(("note", advice) if threads > 1 else ()))
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("device", ", ".join(devices) or "cpu")
    yield _attempt(
        "torch.func", lambda: _func_error(torch), "per-sample gradients will fail: install torch 2.10 or newer"
    )
    yield _attempt("same bits twice", lambda: _rerun_error(torch), "resumed runs may differ from uninterrupted ones")


def _disk(where: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(where).free
    yield Finding("disk", f"{size(free)} free", *(("note", "large runs may not fit") if free < 2e9 else ()))
    try:
        small, large = _write_seconds(where)
    except OSError as error:
        yield Finding("writing", f"fails: {error.strerror}", "wrong", "choose another directory with --dir")
        return
    slow = ("note", "recording will wait for the disk") if small > 0.05 or large > 1 else ()
    speed = size(LARGE / large)
    yield Finding("writing", f"a small shard in {small * 1e3:.1f} ms, {speed} a second, synced", *slow)


def _write_seconds(where: Path) -> tuple[float, float]:
    """Median seconds of a shard of 16 kB, and seconds of one of `LARGE` bytes."""
    array = np.random.default_rng(0).standard_normal(LARGE // 8)
    with (
        tempfile.TemporaryDirectory(dir=where, prefix=".orderscope-doctor-") as folder,
        RunStore.create(folder) as store,
    ):
        seconds = []
        for index in range(8):
            began = time.perf_counter()
            store.write(f"shard-{index}", {"x": array[:2048] if index < 7 else array})
            seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[:7])), seconds[7]


def _func_error(torch: Any) -> str:
    """Errors of vmap of grad, and of jvp of grad through attention; empty if both work."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def loss(weight: Any, x: Any) -> Any:
        y = (x @ weight).reshape(1, 1, 4, 4)
        return torch.nn.functional.scaled_dot_product_attention(y, y, y).square().sum()

    weight, x = torch.linspace(-1, 1, 16).reshape(4, 4), torch.linspace(-1, 1, 48).reshape(3, 4, 4)
    with sdpa_kernel(SDPBackend.MATH):
        rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, x)
        one_by_one = torch.stack([torch.func.grad(loss)(weight, row) for row in x])
        torch.func.jvp(lambda w: torch.func.grad(loss)(w, x[0]), (weight,), (weight,))
    return "" if torch.allclose(rows, one_by_one, rtol=1e-4, atol=1e-5) else "vmap of grad is not the gradient"


def _rerun_error(torch: Any) -> str:
    def once() -> Any:
        weight = torch.linspace(-1, 1, 128 * 128).reshape(128, 128).requires_grad_()
        (torch.linspace(0, 1, 64 * 128).reshape(64, 128) @ weight).tanh().square().mean().backward()
        return weight.grad

    return "" if all(torch.equal(once(), once()) for _ in range(5)) else "the same gradient differs between two runs"


def _attempt(what: str, check: Callable[[], str], advice: str) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about its own insides
            error = check()
    except Exception as failure:  # whatever it is, the doctor reports it
        error = f"{type(failure).__name__}: {failure}"
    return Finding(what, error, "wrong", advice) if error else Finding(what, "works")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
