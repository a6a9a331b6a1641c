"""Shapes in signatures are checked while tests run, and no public function of the engine or the kernels lacks them."""

import ast
import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import orderscope.engine
import orderscope_kernels
from orderscope.engine.optimizers import Start
from orderscope_kernels.reference import Part, affine_weights, gather_entries
from shape_checks import checked

ROOMS = [Path(package.__file__).parent for package in (orderscope.engine, orderscope_kernels)]
COMPILED = {"numba_loops.py", "triton_tiles.py", "triton_projection.py"}  # their arguments are pointers or plain arrays


def test_a_wrong_shape_is_refused():
    square, along = torch.ones(3), torch.ones(3, 2)
    gram = torch.eye(2, dtype=torch.float64)[None]
    unit, allowed = torch.zeros(3, dtype=torch.int64), torch.ones(3, 2, dtype=torch.bool)
    affine_weights(square, along, gram, unit, allowed, 0.1, 1.0)
    with pytest.raises(TypeCheckError, match="along"):
        affine_weights(square, along.T, gram, unit, allowed, 0.1, 1.0)
    with pytest.raises(TypeCheckError, match="gram"):
        affine_weights(square, along, gram.float(), unit, allowed, 0.1, 1.0)
    with pytest.raises(TypeCheckError, match="weights"):
        gather_entries(torch.ones(4, 5), torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 1))


def test_fields_that_do_not_fit_together_are_refused():
    start = Start(torch.zeros(4), {"exp_avg": torch.zeros(4)})
    with pytest.raises(TypeCheckError):
        dataclasses.replace(start, theta=torch.zeros(2, 2))


def test_checking_draws_no_random_numbers():
    """A run records the state of Python's generator."""
    before = random.getstate()
    parts = [Part(0, 2, {"lr": 0.1}), Part(2, 3, {"lr": 0.2})]
    assert [part.first for part in _sequence(parts)] == [0, 2]
    assert random.getstate() == before


@checked
def _sequence(parts: Sequence[Part]) -> Sequence[Part]:
    return parts


def bare(annotation: ast.expr | None) -> bool:
    """Whether a tensor or an array is asked for, whatever its shape."""
    text = "" if annotation is None else ast.unparse(annotation)
    return any(part.strip() in ("Tensor", "torch.Tensor", "np.ndarray") for part in text.split("|"))


def test_public_functions_say_shapes():
    found = []
    for file in (file for room in ROOMS for file in sorted(room.rglob("*.py")) if file.name not in COMPILED):
        tree = ast.parse(file.read_text())
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        for node in [*tree.body, *(inner for each in classes for inner in each.body)]:
            if isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__call__"):
                arguments = [*node.args.args, *node.args.kwonlyargs]
                found += [f"{file.stem}.{node.name}({a.arg})" for a in arguments if bare(a.annotation)]
    assert not found, f"no shape: {', '.join(found)}"
