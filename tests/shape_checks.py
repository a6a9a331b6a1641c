"""What checks types and shapes of the engine's and the kernels' functions while tests run; see conftest.py."""

import ast
import random
from collections.abc import Sequence

from beartype import BeartypeConf, beartype
from beartype._check.code import codemain
from jaxtyping import _import_hook, install_import_hook

# beartype looks at one item of a list, drawn at random. It must not draw from Python's own generator, whose state runs
# record: it gets another one.
codemain.getrandbits = random.Random(0).getrandbits

# A whole number serves as a float, as in Python.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check_public_functions(modules: Sequence[str]) -> None:
    """Check public functions, special methods and dataclasses of these modules, and of those below them, from their
    import on. Inner functions are called the most often and get what public ones have been handed."""
    whole = _import_hook.JaxtypingTransformer.visit_FunctionDef

    def visit(transformer: ast.NodeTransformer, node: ast.FunctionDef) -> ast.AST:
        inner = node.name.startswith("_") and not node.name.endswith("__")
        return node if inner else whole(transformer, node)

    _import_hook.JaxtypingTransformer.visit_FunctionDef = visit
    install_import_hook(list(modules), "shape_checks.checked")
