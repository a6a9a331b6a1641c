"""Public functions and classes say what their arguments are, so that nobody has to read their code for it."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import orderscope as osc
import orderscope_kernels

ROOMS = [Path(osc.__file__).parent / "engine", Path(orderscope_kernels.__file__).parent]
COMPILED = {"compiled", "jit", "intrinsic"}  # loops inside a kernel: their module says what its arrays are
FROM_OTHERS = {"LightningRecorder"}  # its methods are Lightning's, with Lightning's arguments
SAME = re.compile(r"(?:^As|[Aa]rguments[^.]*? as) `(?:\w+\.)*(\w+)`")  # as another function, which names them


@dataclass(frozen=True)
class Documented:
    """A public function, method or class.

    Args:
        name: with its module or class.
        parameters: of a call, without `self`.
        text: its docstring.
    """

    name: str
    parameters: list[str]
    text: str

    @property
    def section(self) -> list[str]:
        """Names under "Args:"."""
        found = re.search(r"^Args:\n((?: .*\n?|\n)*)", self.text, re.MULTILINE)
        named = re.findall(r"^    (\*{0,2}\w[\w, *]*):", found[1] if found else "", re.MULTILINE)
        return [part.strip(" *") for names in named for part in names.split(",")]

    def missing(self, known: set[str]) -> list[str]:
        """Parameters that are not explained; `known`: functions to which a docstring may point."""
        pointed = SAME.search(self.text)
        if len(self.parameters) < 2 or (pointed and pointed[1] in known):
            return []
        return [name for name in self.parameters if name.strip("*") not in self.section]


def of_class(node: ast.ClassDef, module: str) -> Iterator[Documented]:
    text = ast.get_docstring(node) or ""
    methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
    start = next((method for method in methods if method.name == "__init__"), None)
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign) and "init=False" not in ast.unparse(part)]
    names = [ast.unparse(part.target) for part in fields if not ast.unparse(part.target).startswith("_")]
    made = any("dataclass" in ast.unparse(mark) for mark in node.decorator_list)
    made |= "NamedTuple" in map(ast.unparse, node.bases)
    own = parameters(start)[1:] if start else names if made else []
    if "Made by `" not in text:  # not by a call
        yield Documented(f"{module}.{node.name}", own, text)
    for method in methods:
        if not method.name.startswith("_") and node.name not in FROM_OTHERS:
            static = "staticmethod" in map(ast.unparse, method.decorator_list)
            mine = parameters(method) if static else parameters(method)[1:]
            yield Documented(f"{module}.{node.name}.{method.name}", mine, ast.get_docstring(method) or "")


def parameters(node: ast.FunctionDef) -> list[str]:
    given = node.args
    named = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [*named, *(f"*{given.vararg.arg}" for _ in [0] if given.vararg),
            *(f"**{given.kwarg.arg}" for _ in [0] if given.kwarg)]  # fmt: skip


def documented(source: str, module: str, only: str | None = None) -> Iterator[Documented]:
    """What a module offers; `only`: one name of it."""
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
            continue
        if only not in (None, node.name):
            continue
        if isinstance(node, ast.ClassDef):
            yield from of_class(node, module)
        elif not COMPILED & {part.split(".")[-1].split("(")[0] for part in map(ast.unparse, node.decorator_list)}:
            yield Documented(f"{module}.{node.name}", parameters(node), ast.get_docstring(node) or "")


def public() -> list[Documented]:
    found = []
    for name in osc.__all__:
        value = getattr(osc, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            found += documented(Path(inspect.getfile(value)).read_text(), value.__module__, value.__name__)
    for room in ROOMS:
        for file in sorted(room.rglob("*.py")):
            found += documented(file.read_text(), ".".join((room.name, *file.relative_to(room).with_suffix("").parts)))
    return found


def test_arguments_of_the_public_api_are_documented() -> None:
    every = public()
    assert len(every) > 200
    known = {one.name.split(".")[-1] for one in every if one.section}
    known |= {name for one in every for name in one.section}  # `Kind.back` is explained in the table of kinds
    left = {one.name: missing for one in every if (missing := one.missing(known))}
    assert not left, f"add them to the section Args: of the docstring: {left}"


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("Sum.", ["a", "b"]),
        ("Sum.\n\nArgs:\n    a: one number.", ["b"]),
        ("Sum.\n\nArgs:\n    a, b: numbers.", []),
        ("Sum.\n\nArgs:\n    a: one number,\n        b: not a name here.\n    b: another.", []),
        ("As `other.known`.", []),
        ("As `unknown`.", ["a", "b"]),
    ],
)
def test_what_counts_as_documented(text: str, missing: list[str]) -> None:
    (one,) = documented(f"def add(a, b):\n    '''{text}'''", "module")
    assert one.missing({"known"}) == missing
