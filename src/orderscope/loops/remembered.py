"""The task of a recorded loop as a Python file next to the run, which the commands use by default.

It is written only where it can be written honestly: functions and classes by the names under which they can be
imported, data by name or as they are, in a file of tensors. The starting weights, the optimizer and the schedule are
read from the record. Where a part has no such name, the run notes which, and the commands say what to give.
"""

from __future__ import annotations

import ast
import functools
import inspect
import io
import re
import sys
import sysconfig
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from orderscope.files import written
from orderscope.loops.first_step import drop_rate
from orderscope.loops.scaling import Scaling
from orderscope.store import RunStore
from orderscope.task import Task
from orderscope.task.rng import kept
from orderscope.trust import run_id, trust

EVENT = "task"  # in the run's journal: where its task is, as `orderscope record` notes it
MISSING = "no task"  # in the run's journal: why none was written
MOST_BYTES = 1 << 26  # largest size of the samples that are written next to the run
MARK = "# Written by Orderscope"
PLAIN = (type(None), bool, int, float, str, bytes)
HARMLESS = {
    "append", "filterwarnings", "insert", "manual_seed", "seed", "set_num_threads", "set_seed", "setdefault",
    "simplefilter", "extend", "update",
}  # fmt: skip
TRAINS = {"Recorder", "TrainerRecorder", "LightningRecorder", "Watcher", "train", "fit", "backward"}


class Unwritable(Exception):
    """A part of the task that cannot be named in a file; the text says what to do."""


@dataclass
class Writer:
    """Parts of a task as Python expressions.

    Args:
        run: directory of the run.
    """

    run: Path
    imports: set[str] = field(default_factory=set)
    folders: list[str] = field(default_factory=list)
    scripts: dict[str, str] = field(default_factory=dict)
    stored: dict[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.run.with_name(re.sub(r"\W", "_", self.run.name) + "_task.py")

    @property
    def rows_file(self) -> Path:
        return self.file.with_suffix(".pt")

    def text(self, parts: Mapping[str, Any]) -> str:
        """The file. Raises: Unwritable for the first part that cannot be written."""
        lines = []
        for name, value in parts.items():
            if value is None:
                continue
            lines.append(f"        {name}={self._part(name, value)},")
        top = ["import sys", "from pathlib import Path", *sorted(self.imports), "", "import orderscope as osc"]
        if "scaling" in parts:
            top.append("from orderscope.loops.scaling import Scaling")
        if self.stored:
            top.insert(-1, "import torch\n")
        paths = [f"sys.path.insert(0, {folder!r})" for folder in self.folders]
        return "\n".join(
            [
                f"{MARK} when {self.run.name!r} was recorded: the task that `orderscope query`, `propose` and",
                "# `validate` use for that run. It is Python of yours: change it, or name another file with --task.",
                *top,
                "",
                "HERE = Path(__file__).resolve().parent",
                *paths,
                *([_SCRIPT] if self.scripts else []),
                "",
                "",
                "def task():",
                *([f'    rows = torch.load(HERE / "{self.rows_file.name}", weights_only=True)'] if self.stored else []),
                *(f"    {name} = script({path!r})" for path, name in self.scripts.items()),
                *self._own_imports,
                f"    return osc.recorded(HERE / {self.run.name!r}).task(",
                *lines,
                "        remember=False,",
                "    )",
                "",
            ]
        )

    def __post_init__(self) -> None:
        self._own_imports: list[str] = []

    def _part(self, name: str, value: Any) -> str:
        if name == "model":
            return self._model(value)
        if name == "data":
            return self._rows(name, value)
        if name == "groups":
            return self._stored(name, [str(group) for group in value])
        if name == "metrics":
            each = {
                metric: self.expression(f"metric {metric!r}", v) if callable(v) else self._rows(f"metrics:{metric}", v)
                for metric, v in value.items()
            }
            return "{" + ", ".join(f"{metric!r}: {text}" for metric, text in each.items()) + "}"
        if isinstance(value, Scaling):
            return repr(value)
        return self.expression(name, value)

    def expression(self, what: str, value: Any) -> str:
        """Python source that gives a value: a function, class or object of a module by its name, or a plain value.

        Args:
            what: what the value is called in an error.
            value: as the user passed it.

        Raises:
            Unwritable: nothing importable has this value.
        """
        if isinstance(value, PLAIN):
            return repr(value)
        if isinstance(value, torch.dtype):
            self._import("torch")
            return repr(value)
        if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
            inner = ", ".join(self.expression(what, v) for v in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
        if isinstance(value, functools.partial):
            given = [self.expression(what, v) for v in (value.func, *value.args)]
            given += [f"{key}={self.expression(what, v)}" for key, v in value.keywords.items()]
            self._import("functools")
            return f"functools.partial({', '.join(given)})"
        qualname = getattr(value, "__qualname__", None)
        module = sys.modules.get(getattr(value, "__module__", None) or "")
        if qualname is None or inspect.ismethod(value):
            module, qualname = _global(value)
        if module is None or qualname is None or _reached(module, qualname) is not value:
            what_it_is = "a lambda" if qualname and "<lambda>" in qualname else (
                f"{qualname} inside a function" if qualname else f"an object of {type(value).__name__}"
            )  # fmt: skip
            raise Unwritable(f"{what}= is {what_it_is}: define it at the top of a module, by name")
        return self._named(what, module, qualname)

    def _named(self, what: str, module: Any, qualname: str) -> str:
        file = getattr(module, "__file__", None)
        if module.__name__ == "__main__":
            if file is None or not Path(file).suffix == ".py":
                raise Unwritable(f"{what}= is defined in an interactive session: put it into a file")
            place = str(Path(file).resolve())
            if (line := trains_on_import(Path(place))) is not None:
                raise Unwritable(
                    f"{what}= is defined in {place}, which trains when it is imported (line {line}): put the training "
                    'under if __name__ == "__main__":'
                )
            if qualname.partition(".")[0] not in bound_names(Path(place)):
                raise Unwritable(f"{what}= is made under if __name__: define it at the top of {place}")
            name = self.scripts.setdefault(place, f"script_{len(self.scripts)}")
            return f"{name}.{qualname}"
        root = module.__name__.partition(".")[0]
        if file is not None and root not in ("orderscope", "builtins") and not _installed(Path(file)):
            depth = module.__name__.count(".") + (Path(file).name == "__init__.py")
            folder = str(Path(file).resolve().parents[depth])
            if folder not in self.folders:
                self.folders.append(folder)
        if _reached(sys.modules[root], qualname) is _reached(module, qualname):  # its public name
            module = sys.modules[root]
        self._import(module.__name__)
        return f"{module.__name__}.{qualname}"

    def _import(self, module: str) -> None:
        """Imports inside the function, because they can be resolved only after the folders were added to the path."""
        line = f"    import {module}"
        if line not in self._own_imports and module not in ("builtins",):
            self._own_imports.append(line)

    def _model(self, model: Any) -> str:
        if not isinstance(model, nn.Module):
            return self.expression("model", model)
        kind = self.expression("model", type(model))
        config = getattr(model, "config", None)
        if config is not None and hasattr(config, "to_json_string") and hasattr(type(config), "from_dict"):
            import json

            values = json.loads(config.to_json_string(use_diff=False))
            build = f"{kind}({self.expression('model', type(config))}.from_dict({values!r}))"
            drops = any("drop" in key and isinstance(v, float) and v for key, v in values.items())
        else:
            required = [
                p for p in list(inspect.signature(type(model).__init__).parameters.values())[1:]
                if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            ]  # fmt: skip
            if required or type(model).__module__.startswith("torch."):
                raise Unwritable(
                    f"model= is an object of {type(model).__name__}: give a function at the top of a module that "
                    "builds it"
                )
            with kept():
                fresh = type(model)()
            own, drops = {n: p.shape for n, p in fresh.named_parameters()}, any(map(drop_rate, fresh.modules()))
            if own != {n: p.shape for n, p in model.named_parameters()}:
                raise Unwritable(
                    f"model= was changed after {type(model).__name__}(): give a function at the top of a module that "
                    "builds it as it was trained"
                )
            build = f"{kind}()"
        if drops and not any(map(drop_rate, model.modules())):
            build = f"osc.no_dropout({build})"
        return build if model.training else f"{build}.eval()"

    def _rows(self, name: str, data: Any) -> str:
        with suppress(Unwritable):
            return self.expression(name, data)
        probed = [data[i] for i in range(min(8, len(data)))]
        size = len(_saved(_cloned(probed))) * len(data) / max(1, len(probed))
        if size > MOST_BYTES:
            raise Unwritable(
                f"{name}= takes about {size / 2**20:.0f} MB: make it a function's result at the top of a module"
            )
        rows = _cloned([data[i] for i in range(len(data))])
        try:
            torch.load(io.BytesIO(_saved(rows)), weights_only=True)
        except Exception:
            raise Unwritable(
                f"{name}= has samples of {type(probed[0]).__name__} that are no tensors and plain values: define it at "
                "the top of a module, by name"
            ) from None
        return self._stored(name, rows)

    def _stored(self, name: str, value: Any) -> str:
        self.stored[name] = value
        return f"rows[{name!r}]"


_SCRIPT = '''

def script(path):
    """A script of yours as a module; its part under `if __name__ == "__main__":` is not run."""
    import importlib.util

    sys.path.insert(0, str(Path(path).parent))
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module'''


def remember(run: Path, parts: Mapping[str, Any], task: Task) -> str | None:
    """Write the task file of a run, and note in the run where it lies. Never raises.

    Args:
        run: its directory.
        parts: keyword arguments that the task was made with.
        task: what they made.

    Returns:
        Why it could not be written; None where it was.
    """
    run = run.resolve()
    writer = Writer(run)
    try:
        with kept():
            text = writer.text(parts)
        if writer.file.exists() and not writer.file.read_text(encoding="utf-8").startswith(MARK):
            raise Unwritable(f"{writer.file} is a file of yours")
        if writer.stored:
            with written(writer.rows_file) as file:
                file.write(_saved(writer.stored))
        with written(writer.file) as file:
            file.write(text.encode())
        event = {"event": EVENT, "spec": f"{writer.file}:task", "file": str(writer.file)}
        trust(run_id(task.fingerprint()), writer.file, "task")
        why = None
    except Unwritable as error:
        why = str(error)
        event = {"event": MISSING, "why": why}
    except Exception as error:  # a full disk, data that fail: the training and its record matter more
        return f"{type(error).__name__}: {error}"
    with suppress(Exception), RunStore.create(run) as store:
        last = [e for e in store.journal() if e.get("event") in (EVENT, MISSING)][-1:]
        if not last or {k: last[0].get(k) for k in event} != event:
            store.log(event)
    return why


def trains_on_import(script: Path) -> int | None:
    """The line at which a script does more than define things when it is imported, None where it does not.

    Definitions, imports, assignments and what stands under `if __name__ == "__main__":` count as nothing.
    """
    for node in _top(script):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)):
            continue
        calls = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
        names = {f.attr if isinstance(f, ast.Attribute) else f.id for f in calls
                 if isinstance(f, (ast.Attribute, ast.Name))}  # fmt: skip
        if isinstance(node, (ast.For, ast.While, ast.With)) or names & TRAINS:
            return node.lineno
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = node.value.func
            if not (isinstance(called, ast.Attribute) and called.attr in HARMLESS):
                return node.lineno
    return None


def bound_names(script: Path) -> set[str]:
    """Names that a script binds when it is imported."""
    found = set()
    for node in _top(script):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        else:
            found |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return found


def _top(script: Path) -> list[ast.stmt]:
    """Statements of a script outside of its `if __name__ == "__main__":`."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    return [
        node for node in tree.body
        if not (isinstance(node, ast.If) and any(isinstance(n, ast.Name) and n.id == "__name__"
                                                 for n in ast.walk(node.test)))
    ]  # fmt: skip


def _global(value: Any) -> tuple[Any, str | None]:
    """The module and name of a global object, where it has any."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file is None or _installed(Path(file)):
            continue
        for name, other in list(vars(module).items()):
            if other is value and name.isidentifier():
                return module, name
    return None, None


def _reached(module: Any, qualname: str) -> Any:
    return functools.reduce(lambda held, name: getattr(held, name, None), qualname.split("."), module)


def _installed(file: Path) -> bool:
    paths = sysconfig.get_paths()
    return any(file.is_relative_to(paths[key]) for key in ("stdlib", "platstdlib", "purelib", "platlib"))


def _cloned(tree: Any) -> Any:
    """Tensors of their own: a view would be written with all that it is a part of."""
    return tree_map(lambda leaf: leaf.detach().cpu().clone() if isinstance(leaf, torch.Tensor) else leaf, tree)


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
