"""Sketches against matrices that are whole. Without a GPU Triton's kernels run in its interpreter."""

import os
import subprocess
import sys

import pytest
import torch

from orderscope_kernels.projection import (
    linear_entries,
    linear_projection,
    project,
    rademacher_block,
    random_words,
    sparse_block,
)
from tasks_tiny import generator

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are first imported
DEVICE = "cuda" if GPU else "cpu"
kinds = pytest.mark.parametrize("kind", ["rademacher", "sparse"])


def whole(kind, rank, size, seed, first=0):
    columns = torch.arange(first, first + size)
    if kind == "rademacher":
        return rademacher_block(rank, columns, seed).double()
    values, rows = sparse_block(rank, columns, seed)
    return torch.zeros(rank, size, dtype=torch.float64).scatter_(0, rows, values.double())


@kinds
@pytest.mark.parametrize(("rank", "size"), [(1, 1), (40, 63), (64, 9000)])
def test_projecting_is_multiplying_with_the_matrix(kind, rank, size):
    x = torch.randn(3, size, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(project(x, kind, rank, 5), x @ whole(kind, rank, size, 5).T)


@kinds
def test_layers_add_up(kind):
    """Fused over layers: each has its own columns."""
    x = torch.randn(3, 500, generator=generator(1), dtype=torch.float64)
    parts = project(x[:, :123], kind, 40, 5) + project(x[:, 123:], kind, 40, 5, first=123)
    torch.testing.assert_close(parts, project(x, kind, 40, 5))


def test_random_bits_are_even_and_independent():
    """Each of 32 bits of 40,000 words, and its agreement with the same bit beside it, below it and of the next seed:
    within 5 standard deviations of a half, for 128 of them."""
    columns, words = torch.arange(20_000), torch.arange(2)
    made, other = random_words(3, columns, words), random_words(4, columns, words)
    for a, b in [(made, 0), (made[:, 1:], made[:, :-1]), (made[1], made[0]), (made, other)]:
        for bit in range(32):
            share = (((a ^ b) >> bit) & 1).double().mean()
            assert abs(share - 0.5) < 5 * 0.5 / a.numel() ** 0.5
    assert bool(((made >= 0) & (made < 2**32)).all())


@pytest.mark.parametrize("positions", [1, 5])
def test_a_linear_layers_entries_and_projection_are_those_of_its_gradients(positions):
    g = generator(2)
    inputs, outward = (torch.randn(4, positions, n, generator=g, dtype=torch.float64) for n in (7, 11))
    weight = torch.randn(11, 7, generator=g, dtype=torch.float64, requires_grad=True)
    full = torch.stack([
        torch.autograd.grad(((x @ weight.T) * o).sum(), weight)[0].flatten()
        for x, o in zip(inputs, outward, strict=True)
    ])  # fmt: skip
    entries = torch.randperm(77, generator=g)[:30]
    torch.testing.assert_close(linear_entries(inputs, outward, entries), full[:, entries])
    for kind in ("rademacher", "sparse"):
        found = linear_projection(inputs, outward, kind, 20, 9, first=100)
        torch.testing.assert_close(found, project(full, kind, 20, 9, first=100))


@kinds
@pytest.mark.parametrize(("rows", "rank", "size"), [(1, 1, 1), (17, 40, 63), (2, 33, 1000)])
def test_triton_projects_alike(kind, rows, rank, size):
    pytest.importorskip("triton")
    from orderscope_kernels import triton_projection as kernels

    x = torch.randn(rows, size, generator=generator(1))
    found = kernels.project(x.to(DEVICE), kind, rank, 5, first=2**31 - 10).cpu()  # columns beyond 31 bits
    expected = x.double() @ whole(kind, rank, size, 5, first=2**31 - 10).T
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * size**0.5)


@pytest.mark.parametrize("count", [1, 63, 1000])
def test_triton_takes_the_same_entries(count):
    pytest.importorskip("triton")
    from orderscope_kernels import triton_projection as kernels

    g = generator(2)
    inputs, outward = torch.randn(3, 5, 40, generator=g), torch.randn(3, 5, 30, generator=g)
    entries = torch.randperm(1200, generator=g)[:count]
    found = kernels.linear_entries(*(x.to(DEVICE) for x in (inputs, outward, entries))).cpu()
    torch.testing.assert_close(found, linear_entries(inputs, outward, entries), rtol=1e-5, atol=1e-5)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from orderscope_kernels import triton_projection as kernels

def compiled(kernel, types, constants, capability):
    names = kernel.arg_names
    kinds = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    source = ASTSource(kernel, kinds, {(names.index(n),): v for n, v in constants.items()})
    assert "cubin" in compile(source, target=GPUTarget("cuda", capability, 32)).asm

tile = {"span": kernels.SPAN, "ROWS": kernels.ROWS, "RANK": kernels.WORD, "COLUMNS": kernels.COLUMNS}
types = {"x": "*fp32", "out": "*fp32", "inputs": "*fp32", "gradients": "*fp32", "entries": "*i64", "scale": "fp32"}
types |= {"key": "i64", "first": "i64"}
for capability in (80, 90):
    for sparse in (True, False):
        compiled(kernels.projected, types, {"SPARSE_KIND": sparse, **tile}, capability)
    compiled(kernels.gathered_entries, types, {"ENTRIES": kernels.ENTRIES}, capability)
print("done")
"""


@pytest.mark.slow
def test_every_triton_kernel_compiles_for_real_gpus(tmp_path):
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "done"
