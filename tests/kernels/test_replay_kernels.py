"""Every implementation of a step against the plain reference. Without a GPU Triton's kernels run in its interpreter."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from kernel_cases import OPTIMIZERS, TYPES, UNITS, made_clip, made_parts, made_states, made_terms, table_of
from orderscope_kernels import reference
from orderscope_kernels.reference import Part
from orderscope_kernels.replay import OVERRIDE, named, replay_kernels
from tasks_tiny import generator

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are first imported
NEEDS = {"numba": "numba", "triton": "triton"}
kernels = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not installed"))
        for name, module in NEEDS.items()
    ],
)
sizes = pytest.mark.parametrize(("rows", "coords"), [(1, 1), (7, 63), (19, 1000)])
# Sums in another order: float32 rounding of sums of up to 70 + 3 terms of size one to ten.
CLOSE = dict(rtol=2e-5, atol=2e-5)


def on_device(name, values):
    """Tensors, also inside named tuples and dicts, where the kernels of that name want them."""
    if not (GPU and name == "triton"):
        return values
    if isinstance(values, torch.Tensor):
        return values.cuda()
    if isinstance(values, dict):
        return {key: on_device(name, value) for key, value in values.items()}
    return type(values)(*(on_device(name, v) if isinstance(v, torch.Tensor) else v for v in values))


def stepped(name, case, rows, coords, terms, clip=None, lr=None):
    """States after a step, by the kernels of that name."""
    theta, moments, at = made_states(case, coords)
    parts = made_parts(case, coords)
    if lr is not None:
        parts = [part._replace(options=part.options | {"lr": on_device(name, lr)}) for part in parts]
    theta, moments, at = (on_device(name, x) for x in (theta, moments, at[:rows]))
    clip = None if clip is None else on_device(name, clip)
    named(name).replay_step(OPTIMIZERS[case][0], theta, moments, at, on_device(name, terms), parts, clip)
    return {"theta": theta.cpu()} | {key: value.cpu() for key, value in moments.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert bool(values.isfinite().all())
        torch.testing.assert_close(found[key], values, **CLOSE, msg=lambda m, key=key: f"{key}: {m}")


@kernels
@sizes
@pytest.mark.parametrize("case", OPTIMIZERS)
def test_a_step_is_that_of_the_reference(name, case, rows, coords):
    terms = made_terms(rows, coords)
    assert_same(stepped(name, case, rows, coords, terms), stepped("reference", case, rows, coords, terms))


@kernels
@sizes
@pytest.mark.parametrize("case", ["adamw", "momentum"])
def test_clipped_by_known_and_estimated_norms_and_rates_of_single_rows(name, case, rows, coords):
    terms, clip, lr = made_terms(rows, coords), made_clip(rows), torch.linspace(0, 1e-2, rows)[:, None]
    expected = stepped("reference", case, rows, coords, terms, clip, lr)
    assert_same(stepped(name, case, rows, coords, terms, clip, lr), expected)
    if coords > 1:  # long enough to be clipped
        unclipped = stepped("reference", case, rows, coords, terms, None, lr)
        key = "exp_avg" if case == "adamw" else "momentum_buffer"
        assert not torch.equal(expected[key], unclipped[key])


@kernels
@pytest.mark.parametrize("table", TYPES)
def test_tables_of_every_type(name, table):
    terms = made_terms(7, 63, table=TYPES[table])
    if table == "int8":
        terms = terms._replace(weights=terms.weights / 40)
    wide = terms._replace(table=terms.table.float())
    assert_same(stepped(name, "adamw", 7, 63, terms), stepped("reference", "adamw", 7, 63, wide))


@kernels
@pytest.mark.parametrize("counts", [(10, 40, 50), (3, 5, 100), (40, 1, 1), (33, 0, 70)])
def test_fresh_memory_is_written_before_it_is_added_to(name, counts):
    """Rows of a group's whole curvature and of its halves overlap in the factor; torch fills fresh memory with nan."""
    rows, rank = sum(counts), 33
    terms = made_terms(rows, 63, rank=rank)
    ranges = torch.tensor([[0, 16]] * counts[0] + [[0, rank]] * counts[1] + [[16, rank]] * counts[2], dtype=torch.int32)
    used = (torch.arange(rank) >= ranges[:, :1]) & (torch.arange(rank) < ranges[:, 1:])
    terms = terms._replace(ranges=ranges, coefficients=torch.randn(rows, rank, generator=generator(4)) * used)
    found = {}
    for which in ("reference", name):
        theta = on_device(which, torch.zeros(rows, 63))
        torch.use_deterministic_algorithms(which == name)
        try:
            named(which).replay_step(
                "SGD", theta, {}, on_device(which, torch.arange(rows)), on_device(which, terms),
                [Part(0, 63, OPTIMIZERS["plain"][1])],
            )  # fmt: skip
        finally:
            torch.use_deterministic_algorithms(False)
        found[which] = theta.cpu()
    assert_same({"theta": found[name]}, {"theta": found["reference"]})


@kernels
def test_a_short_factor_costs_its_rounding_and_no_more(name):
    terms = made_terms(19, 1000, factor=torch.bfloat16)
    wide = terms._replace(factor=terms.factor.float())
    found, exact = (stepped(n, "plain", 19, 1000, t)["theta"] for n, t in ((name, terms), ("reference", wide)))
    # Sums of 35 products of size one, each coefficient rounded to 8 bits, times a rate of 0.01.
    assert (found - exact).abs().max() < 0.01 * 35 * 5 * 2.0**-8


@kernels
@sizes
@pytest.mark.parametrize("rank", [1, 33])
def test_products_are_those_of_the_reference(name, rows, coords, rank):
    g = generator(3)
    theta, start = torch.randn(rows + 2, coords, generator=g), torch.randn(coords, generator=g)
    theta[1] = torch.nan  # a state that is not asked for
    at = torch.randperm(rows + 2, generator=g)
    at = at[at != 1][:rows]
    terms = made_terms(rows, coords, rank=rank)
    table = table_of(torch.float32, len(terms.table), coords, g)
    arguments = (theta, start, at, table, terms.index, terms.factor, terms.ranges)
    found = named(name).displacement_products(*(on_device(name, x) for x in arguments))
    expected = reference.displacement_products(*(x.double() if x.is_floating_point() else x for x in arguments))
    for key in ("square", "along", "curved"):
        # Float32 sums of up to 1,000 products of size one.
        torch.testing.assert_close(getattr(found, key).cpu().double(), getattr(expected, key), rtol=1e-5, atol=1e-3)


@kernels
def test_no_entry_has_no_product(name):
    g = generator(3)
    theta, start, at = torch.randn(4, 100, generator=g), torch.randn(100, generator=g), torch.arange(4)
    table = torch.randn(6, 100, generator=g)
    table[0] = torch.nan  # what -1 must not be read as
    index = torch.tensor([[1, 2, 3, 4, 5], [2, 1, -1, -1, -1], [3, -1, -1, -1, -1], [5, 4, 3, 2, -1]])
    nothing = torch.zeros(0, 100), torch.zeros(4, 2, dtype=torch.int32)
    found = named(name).displacement_products(*(on_device(name, x) for x in (theta, start, at, table, index, *nothing)))
    expected = torch.einsum("rc,rjc->rj", (theta - start).double(), table[index.clamp_min(1)].double())
    expected[index < 0] = 0
    torch.testing.assert_close(found.along.cpu().double(), expected, rtol=1e-5, atol=1e-4)


@kernels
@pytest.mark.parametrize("short", [torch.bfloat16])
def test_products_with_a_short_table_and_factor(name, short):
    g = generator(3)
    theta, start = torch.randn(19, 1000, generator=g), torch.randn(1000, generator=g)
    terms = made_terms(19, 1000, rank=33)
    table, factor = (torch.randn(n, 1000, generator=g).to(short) for n in (len(terms.table), 33))
    arguments = (theta, start, torch.arange(19), table, terms.index, factor, terms.ranges)
    found = named(name).displacement_products(*(on_device(name, x) for x in arguments))
    expected = reference.displacement_products(*(x.double() if x.is_floating_point() else x for x in arguments))
    torch.testing.assert_close(found.along.cpu().double(), expected.along, rtol=1e-5, atol=1e-3)
    # The displacement is rounded to 8 bits: 1,000 errors of up to 2^-9 of products of size one and a half; perhaps the
    # sum too.
    allowed = 5 * 1.5 * 2.0**-9 * 1000**0.5 + 2.0**-8 * expected.curved.abs().max()
    assert (found.curved.cpu() - expected.curved).abs().max() < allowed


@kernels
def test_entries_beyond_two_to_the_31_numbers(name):
    """Addresses are of 64 bits. What is not written of the table is never read, so it takes no memory."""
    coords = 1 << 20
    table = torch.empty(2050, coords, dtype=torch.int8)
    table[2049] = torch.arange(coords) % 100
    terms = made_terms(1, 1, rank=1)._replace(
        table=table, index=torch.tensor([[2049]]), weights=torch.ones(1, 1), factor=torch.zeros(1, coords)
    )
    theta = on_device(name, torch.zeros(1, coords))
    parts = [made_parts("plain", 1)[-1]._replace(first=coords - 200, last=coords)]
    parts[0].options.update(weight_decay=0.0, lr=1.0)
    named(name).replay_step("SGD", theta, {}, on_device(name, torch.tensor([0])), on_device(name, terms), parts)
    assert torch.equal(theta[0, -200:].cpu(), -table[2049, -200:].float())


def test_the_choice(monkeypatch):
    monkeypatch.delenv(OVERRIDE, raising=False)
    assert replay_kernels(torch.zeros(1, 1, dtype=torch.float64)) is reference
    assert replay_kernels(torch.zeros(1, 1), separate=True) is reference
    assert replay_kernels(torch.zeros(1, 1)) is named("numba")
    monkeypatch.setenv(OVERRIDE, "reference")
    assert replay_kernels(torch.zeros(1, 1)) is reference


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from orderscope_kernels import triton_tiles as kernels

def signature(kernel, types, constants):
    names = kernel.arg_names
    kinds = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    return ASTSource(kernel, kinds, {(names.index(n),): v for n, v in constants.items()})

floats = "theta start square along curved weights coefficients scale lr".split()
floats += "exp_avg exp_avg_sq max_exp_avg_sq buffer".split()
numbers = "blend beta2 rest correction1 root eps coupled decoupled sign momentum kept taken decay".split()
types = dict.fromkeys(floats, "*fp32") | dict.fromkeys(numbers, "fp32")
types |= {"at": "*i64", "index": "*i64", "ranges": "*i32"}
tile = {"ROWS": kernels.ROWS, "RANK": kernels.RANK, "COORDS": kernels.COORDS}
made = 0
for capability, shorts in ((80, ("*bf16",)), (90, ("*fp32", "*i8"))):
    for short in shorts:
        factor = "*fp32" if short == "*fp32" else "*bf16"
        own = types | {"table": short, "factor": factor}
        for kernel, constants in (
            (kernels.anchor_products, {"span": 4096, "TERMS": 16, "COORDS": kernels.COORDS}),
            (kernels.curvature_products, {"span": 4096, **tile}),
            (kernels.gradient_squares, tile),
            (kernels.adam_step, {"AMSGRAD": False, **tile}),
            (kernels.adam_step, {"AMSGRAD": True, **tile}),
            (kernels.sgd_step, {"MOMENTUM": True, "NESTEROV": True, **tile}),
            (kernels.sgd_step, {"MOMENTUM": False, "NESTEROV": False, **tile}),
        ):
            code = compile(signature(kernel, own, constants), target=GPUTarget("cuda", capability, 32))
            assert "cubin" in code.asm
            made += 1
print(made)
"""


@pytest.mark.slow
def test_every_triton_kernel_compiles_for_real_gpus(tmp_path):
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "21"


@pytest.mark.parametrize("orders", [1, 40])  # within the padding of a matrix product, and beyond it
def test_numba_writes_all_of_a_gradient_where_members_share_the_factor(orders, monkeypatch):
    """Rows of one half, of both and of the other half overlap in pairs; memory that is not written yet is poisoned."""
    numba_replay = pytest.importorskip("orderscope_kernels.numba_replay")
    rank, rows = 70, 3 * orders
    terms = made_terms(rows, 63, rank=rank)
    ranges = torch.tensor([[0, 30], [0, rank], [30, rank]]).repeat_interleave(orders, 0).int()
    column = torch.arange(rank)
    used = (column >= ranges[:, :1]) & (column < ranges[:, 1:])
    terms = terms._replace(coefficients=torch.randn(rows, rank, generator=generator(7)) * used, ranges=ranges)
    expected, empty = reference.predicted_gradient(terms), torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size, **options).fill_(torch.nan))
    torch.testing.assert_close(numba_replay.predicted_gradient(terms), expected, **CLOSE)


@kernels
def test_rows_without_curvature_come_between_others(name):
    """Their neighbours' products are padded over them and must not count again for the rows behind."""
    rank, rows = 40, 12
    terms = made_terms(rows, 63, rank=rank)
    ranges = torch.tensor([[0, 25]] * 8 + [[25, rank]] * 4).int()
    ranges[[0, 2, 5, 9]] = 0
    column = torch.arange(rank)
    used = (column >= ranges[:, :1]) & (column < ranges[:, 1:])
    terms = terms._replace(coefficients=torch.randn(rows, rank, generator=generator(8)) * used, ranges=ranges)
    theta, part = torch.zeros(rows, 63), made_parts("plain", 63)[-1]
    part = part._replace(first=0, options=part.options | {"weight_decay": 0.0, "lr": 1.0})
    moved = {}
    for which in ("reference", name):
        states, at, asked = (on_device(which, x) for x in (theta.clone(), torch.arange(rows), terms))
        named(which).replay_step("SGD", states, {}, at, asked, [part])
        moved[which] = states.cpu()
    torch.testing.assert_close(moved[name], moved["reference"], **CLOSE)


@kernels
@pytest.mark.parametrize("terms", [1, 4, 13])
def test_affine_weights_are_those_of_the_reference(name, terms):
    """Some anchors are not allowed; two are one state; one row lies on an anchor."""
    g = generator(9)
    known = torch.randn(UNITS, terms, 50, generator=g, dtype=torch.float64)
    known[1, -1] = known[1, 0]
    unit = torch.arange(23) % UNITS
    d = torch.randn(23, 50, generator=g, dtype=torch.float64)
    d[6] = known[1, 0]
    allowed = torch.rand(23, terms, generator=g) > 0.3
    allowed[:, 0] = True
    arguments = ((d * d).sum(1), (known[unit] @ d[:, :, None])[..., 0], known @ known.transpose(1, 2), unit, allowed)
    expected = reference.affine_weights(*arguments, 0.1, 50.0)
    found = named(name).affine_weights(*(on_device(name, x) for x in arguments), 0.1, 50.0)
    for ours, theirs in zip(found, expected, strict=True):
        # The jitter is 1e-6 of the scale, so the system's condition is at most some 1e7 in float64.
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-7, atol=1e-7)


@kernels
def test_coefficients_of_the_remainder_are_those_of_the_reference(name):
    g, terms = generator(10), made_terms(19, 5, rank=33)
    used = (torch.arange(33) >= terms.ranges[:, :1]) & (torch.arange(33) < terms.ranges[:, 1:])
    piece = torch.arange(33) // 16 % 2
    shares = torch.rand(19, 2, generator=g) * torch.stack([used[:, piece == k].any(1) for k in (0, 1)], 1)
    curved = torch.randn(19, 33, generator=g) * used
    crossed = torch.randn(len(terms.table), 33, generator=g)
    arguments = (curved, crossed, terms.index, terms.weights, shares, piece, terms.ranges)
    expected = reference.remainder_coefficients(*arguments)
    found = named(name).remainder_coefficients(*(on_device(name, x) for x in arguments))
    torch.testing.assert_close(found.cpu() * used, expected * used, **CLOSE)
    assert not bool((found.cpu() * ~used).any()) or name != "numba"
