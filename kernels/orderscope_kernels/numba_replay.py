"""The replay on a CPU: numba for what streams memory, torch's matrix products for the curvature.

A step reads every entry of the tables once for neighbouring rows that share it: loops (`numba_loops`) go over blocks of
coordinates outside and over rows inside, so rows should come sorted by their entries. Nothing but the product with the
factor, in the factor's own type, is written beside the states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orderscope_kernels import numba_loops
from orderscope_kernels.reference import Clip, Part, Products, Terms, clip_factor, step_with
from orderscope_kernels.shapes import Bool, Float, Float64, Int32, Int64, Shaped

# Rows of a matrix product are filled up to a multiple of this: few shapes are compiled, and fewer rows take as long.
ALIGN = 32
COLUMNS = 8192  # columns of a long product that are summed at once: all at once take four times as long


def displacement_products(
    theta: Float[Tensor, "states coords"],
    start: Float[Tensor, " coords"],
    at: Int64[Tensor, " rows"],
    table: Shaped[Tensor, "entries coords"],
    index: Int64[Tensor, "rows terms"],
    factor: Float[Tensor, "rank coords"],
    ranges: Int32[Tensor, "rows 2"],
) -> Products:
    """As `reference.displacement_products`; float32 states."""
    rows, terms = index.shape
    square, along = np.zeros(rows), np.zeros((rows, terms))
    d = torch.empty(rows + ALIGN, theta.shape[1], dtype=factor.dtype)
    numba_loops.displace(
        _array(theta), _array(start), _array(at), _array(table), _array(index), _array(d), square, along
    )
    curved = torch.zeros(rows, len(factor))
    for first, last, low, high in _spans(_runs(ranges.numpy())):
        until = first + _aligned(last - first)
        curved[first:last, low:high] = _small_product(factor[low:high], d[first:until]).T[: last - first]
    return Products(torch.from_numpy(square), torch.from_numpy(along), curved)


def affine_weights(
    square: Float[Tensor, " rows"],
    along: Float[Tensor, "rows terms"],
    gram: Float64[Tensor, "units terms terms"],
    unit: Int64[Tensor, " rows"],
    allowed: Bool[Tensor, "rows terms"],
    ridge: float,
    scale: float,
) -> tuple[Float64[Tensor, "rows terms"], Float64[Tensor, "rows terms"], Float64[Tensor, " rows"]]:
    """As `reference.affine_weights`."""
    weights, distance, left = np.empty(along.shape), np.empty(along.shape), np.empty(len(along))
    given = (_array(x) for x in (square.double(), along.double(), gram, unit, allowed))
    numba_loops.weigh(*given, ridge, scale, weights, distance, left)
    return torch.from_numpy(weights), torch.from_numpy(distance), torch.from_numpy(left)


def remainder_coefficients(
    curved: Float[Tensor, "rows rank"],
    crossed: Float[Tensor, "entries rank"],
    index: Int64[Tensor, "rows terms"],
    weights: Float[Tensor, "rows terms"],
    shares: Float[Tensor, "rows pieces"],
    piece: Int64[Tensor, " rank"],
    ranges: Int32[Tensor, "rows 2"],
) -> Float[Tensor, "rows rank"]:
    """As `reference.remainder_coefficients`, float32."""
    out = torch.zeros(curved.shape)
    numba_loops.coefficients(*(_array(x) for x in (curved, crossed, index, weights, shares, piece, ranges, out)))
    return out


def predicted_gradient(terms: Terms) -> Float[Tensor, "rows coords"]:
    """As `reference.predicted_gradient`, float32."""
    out = torch.empty(len(terms.index), terms.factor.shape[1])
    numba_loops.gradient_rows(*_gathered(terms), *_bent(terms), _array(out))
    return out


def replay_step(
    optimizer: str,
    theta: Float[Tensor, "states coords"],
    moments: dict[str, Float[Tensor, "states coords"]],
    at: Int64[Tensor, " rows"],
    terms: Terms,
    parts: Sequence[Part],
    clip: Clip | None = None,
) -> None:
    """As `reference.replay_step`; float32 states, all rows take the step of every part."""
    if optimizer not in STEPS:
        step_with(optimizer, theta, moments, at, predicted_gradient(terms), parts, clip)
        return
    gathered, bent = _gathered(terms), _bent(terms)
    scale = np.ones(len(at), dtype=np.float32)
    if clip is not None:
        square = np.zeros(len(at))
        numba_loops.squares(*gathered, *bent, square)
        norm = torch.from_numpy(square).sqrt() * clip.weight.sqrt()
        norm = torch.where(clip.known.isnan(), norm, clip.known.double())
        scale = clip_factor(norm, clip.max_norm).float().numpy()
    columns = np.array([(part.first, part.last) for part in parts])
    options = {name: [part.options[name] for part in parts] for name in parts[0].options}
    rates = np.stack([np.broadcast_to(np.asarray(lr).reshape(-1), len(at)) for lr in options.pop("lr")], axis=1)
    step, arguments = STEPS[optimizer]
    states, numbers = arguments(moments, list(_rows(options)))
    states, numbers = [_array(theta), *states], np.array(numbers, np.float32)
    step(*states, _array(at), *gathered, *bent, scale, columns, rates.astype(np.float32), numbers)


def _sgd_arguments(moments: dict[str, Tensor], options: list[dict[str, Any]]) -> tuple[list[np.ndarray], list[Any]]:
    """Arrays of the state, and numbers of each part, as `numba_loops.sgd_rows` reads them."""
    buffer = [_array(moments["momentum_buffer"]) if "momentum_buffer" in moments else np.empty((0, 0), np.float32)]
    return buffer, [
        (h["momentum"], 0.0 if h["first"] else h["momentum"], 1.0 if h["first"] else 1 - h["dampening"],
         h["nesterov"], h["weight_decay"], -1.0 if h["maximize"] else 1.0)
        for h in options
    ]  # fmt: skip


def _adam_arguments(moments: dict[str, Tensor], options: list[dict[str, Any]]) -> tuple[list[np.ndarray], list[Any]]:
    """The same, as `numba_loops.adam_rows` reads them."""
    states = [_array(moments[key]) for key in ("exp_avg", "exp_avg_sq")]
    return [*states, _array(moments.get("max_exp_avg_sq", torch.empty(0, 0)))], [
        (1 - h["beta1"], h["beta2"], 1 - h["beta2"], 1 / (1 - h["beta2"] ** h["count"]) ** 0.5, h["eps"],
         0.0 if h["decoupled"] else h["weight_decay"], h["weight_decay"] if h["decoupled"] else 0.0,
         -1.0 if h["maximize"] else 1.0, 1 - h["beta1"] ** h["count"])
        for h in options
    ]  # fmt: skip


def _small_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T in float32 where both have many more columns than rows."""
    if a.shape[1] <= COLUMNS:
        return (a @ b.T).float()
    out = torch.zeros(len(a), len(b))
    for first in range(0, a.shape[1], COLUMNS):
        on = slice(first, first + COLUMNS)
        out += a[:, on] @ b[:, on].T
    return out


def _rows(options: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in zip(*options.values(), strict=True):
        yield dict(zip(options, map(float, values), strict=True))


def _bent(terms: Terms) -> tuple[np.ndarray, np.ndarray]:
    """coefficients @ factor in the factor's type, [places, coords], and where each row lies there, int64 [rows]."""
    ranges = terms.ranges.numpy()
    some = np.where(ranges[:, 0] < ranges[:, 1], np.arange(len(ranges)), 0)
    runs = _runs(ranges[np.maximum.accumulate(some)], ALIGN)  # rows without curvature split no product: they add zeros
    place = np.concatenate([np.arange(first, last) for first, last, *_ in runs])
    height = _aligned(int(place[-1]) + 1)
    out = torch.empty(height, terms.factor.shape[1], dtype=terms.factor.dtype)
    coefficients = torch.zeros(height, terms.factor.shape[0], dtype=terms.factor.dtype)
    coefficients[torch.from_numpy(place)] = terms.coefficients.to(terms.factor.dtype)
    begun = np.zeros(height, dtype=bool)
    for first, last, low, high in _spans(runs):
        until = first + _aligned(last - first)
        product = coefficients[first:until, low:high], terms.factor[low:high]
        fresh = ~begun[first:until]
        if fresh.all():
            torch.mm(*product, out=out[first:until])
        else:
            out[first:until][torch.from_numpy(fresh)] = 0
            out[first:until].addmm_(*product)
        begun[first:until] = True
    out[torch.from_numpy(place[~begun[place]])] = 0
    return _array(out), place


def _aligned(rows: int) -> int:
    return -(-rows // ALIGN) * ALIGN


def _runs(ranges: np.ndarray, apart: int = 1) -> list[tuple[int, int, int, int]]:
    """Neighbouring rows with the same range: (first row, last, low, high), each run moved on to begin at a multiple of
    `apart`."""
    runs, row = [], 0
    for (low, high), same in groupby(ranges.tolist()):
        count = sum(1 for _ in same)
        runs.append((row, row + count, low, high))
        row += -(-count // apart) * apart
    return runs


def _spans(runs: list[tuple[int, int, int, int]]) -> Iterator[tuple[int, int, int, int]]:
    """Neighbouring runs that use a stretch of the factor: (first row, last, low, high), for every stretch between two
    ends of ranges. So what several members of a group use is read once for all of them."""
    for low, high in pairwise(sorted({edge for run in runs for edge in run[2:]})):
        for used, same in groupby(runs, key=lambda run, low=low, high=high: run[2] <= low and high <= run[3]):
            if used:
                together = list(same)
                yield together[0][0], together[-1][1], low, high


def _gathered(terms: Terms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return _array(terms.table), _array(terms.index), _array(terms.weights.float())


def _array(x: Tensor) -> np.ndarray:
    """The memory of a tensor; bfloat16 as the 16 bits that it is."""
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


# Optimizers whose steps are compiled; others take the plain step on gradients from here.
STEPS = {
    "SGD": (numba_loops.sgd_rows, _sgd_arguments),
    "Adam": (numba_loops.adam_rows, _adam_arguments),
    "AdamW": (numba_loops.adam_rows, _adam_arguments),
}
