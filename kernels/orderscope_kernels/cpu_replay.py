"""The replay on a CPU: numba for what streams memory, torch's matrix products for the curvature.

A step reads every entry of the tables once for neighbouring rows that share it: loops go over blocks of coordinates
outside and over rows inside, so rows should come sorted by their entries. Nothing but the product with the factor, in
the factor's own type, is written beside the states.

numba compiles for the machine it runs on, without a compiler, and keeps what it compiled beside this file.
"""

# numba hands an intrinsic its context itself.
# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from orderscope_kernels.reference import FAR, JITTER, Clip, Part, Products, Terms, clip_factor, step_with

BLOCK = 2048  # coordinates at once: a dozen entries of a short type and the states stay in the second cache
ALIGN = 32  # rows of a matrix product come in multiples of this: few shapes are compiled, and fewer rows take as long
COLUMNS = 8192  # of a long product at once: the whole at once is four times slower
FAST = {"contract", "reassoc", "nsz", "arcp"}  # sums in any order, but nan and inf as they are
FLOAT, HALF = ir.FloatType(), ir.IntType(16)
WORD = ir.IntType(32)


def displacement_products(
    theta: Tensor, start: Tensor, at: Tensor, table: Tensor, index: Tensor, factor: Tensor, ranges: Tensor
) -> Products:
    """As `reference.displacement_products`; float32 states."""
    rows, terms = index.shape
    square, along = np.zeros(rows), np.zeros((rows, terms))
    d = torch.empty(rows + ALIGN, theta.shape[1], dtype=factor.dtype)
    _displace(_array(theta), _array(start), _array(at), _array(table), _array(index), _array(d), square, along)
    curved = torch.zeros(rows, len(factor))
    for first, last, low, high in _spans(_runs(ranges.numpy())):
        until = first + _aligned(last - first)
        curved[first:last, low:high] = _small_product(factor[low:high], d[first:until]).T[: last - first]
    return Products(torch.from_numpy(square), torch.from_numpy(along), curved)


def affine_weights(
    square: Tensor, along: Tensor, gram: Tensor, unit: Tensor, allowed: Tensor, ridge: float, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.affine_weights`."""
    weights, distance, left = np.empty(along.shape), np.empty(along.shape), np.empty(len(along))
    given = (_array(x) for x in (square.double(), along.double(), gram, unit, allowed))
    _weigh(*given, ridge, scale, weights, distance, left)
    return torch.from_numpy(weights), torch.from_numpy(distance), torch.from_numpy(left)


def remainder_coefficients(
    curved: Tensor, crossed: Tensor, index: Tensor, weights: Tensor, shares: Tensor, piece: Tensor, ranges: Tensor
) -> Tensor:
    """As `reference.remainder_coefficients`, float32."""
    out = torch.zeros(curved.shape)
    _coefficients(*(_array(x) for x in (curved, crossed, index, weights, shares, piece, ranges, out)))
    return out


def predicted_gradient(terms: Terms) -> Tensor:
    """As `reference.predicted_gradient`, float32."""
    out = torch.empty(len(terms.index), terms.factor.shape[1])
    _gradient(*_gathered(terms), *_bent(terms), _array(out))
    return out


def replay_step(
    optimizer: str,
    theta: Tensor,
    moments: dict[str, Tensor],
    at: Tensor,
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
        _squares(*gathered, *bent, square)
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
    """Arrays of the state, and numbers of each part, as `_sgd` reads them."""
    buffer = [_array(moments["momentum_buffer"]) if "momentum_buffer" in moments else np.empty((0, 0), np.float32)]
    return buffer, [
        (h["momentum"], 0.0 if h["first"] else h["momentum"], 1.0 if h["first"] else 1 - h["dampening"],
         h["nesterov"], h["weight_decay"], -1.0 if h["maximize"] else 1.0)
        for h in options
    ]  # fmt: skip


def _adam_arguments(moments: dict[str, Tensor], options: list[dict[str, Any]]) -> tuple[list[np.ndarray], list[Any]]:
    """The same, as `_adam` reads them."""
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


@intrinsic
def _wide(typingctx: Any, x: Any) -> Any:
    """Any of the tables' types as float32; uint16 are the upper bits of one."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if x == types.uint16:
            return builder.bitcast(builder.shl(builder.zext(args[0], WORD), WORD(16)), FLOAT)
        return builder.sitofp(args[0], FLOAT) if x == types.int8 else args[0]

    return types.float32(x), generate


@intrinsic
def _narrow(typingctx: Any, x: Any, like: Any) -> Any:
    """A float32 in the type of `like`, rounded to nearest, ties to even."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if like != types.uint16:
            return args[0]
        bits = builder.bitcast(args[0], WORD)
        odd = builder.and_(builder.lshr(bits, WORD(16)), WORD(1))
        return builder.trunc(builder.lshr(builder.add(bits, builder.add(odd, WORD(0x7FFF))), WORD(16)), HALF)

    return like(types.float32, like), generate


def compiled(function: Any) -> Any:
    """Compile when first called; what was compiled is kept where there is a place for it."""
    options: dict[str, Any] = dict(fastmath=FAST, error_model="numpy", nogil=True)
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # neither this folder nor the user's can be written to
        return numba.njit(function, **options)


@compiled
def _dot(d, entry):
    total = np.float32(0)
    for k in range(len(d)):
        total += d[k] * _wide(entry[k])
    return total


@compiled
def _dots(d, a, b, c, e):
    """Four products at once: d is read once for them."""
    first, second, third, fourth = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for k in range(len(d)):
        x = d[k]
        first += x * _wide(a[k])
        second += x * _wide(b[k])
        third += x * _wide(c[k])
        fourth += x * _wide(e[k])
    return first, second, third, fourth


@compiled
def _displacement(theta, start, d, short):
    total = np.float32(0)
    for k in range(len(d)):
        x = theta[k] - start[k]
        d[k] = x
        short[k] = _narrow(x, short[k])
        total += x * x
    return total


@compiled
def _displace(theta, start, at, table, index, short, square, along):
    coords = theta.shape[1]
    memory = np.empty(BLOCK, np.float32)
    for first in range(0, coords, BLOCK):
        last = min(coords, first + BLOCK)
        d = memory[: last - first]
        for i in range(len(at)):
            square[i] += _displacement(theta[at[i], first:last], start[first:last], d, short[i, first:last])
            own, of = along[i], index[i]
            fours = len(of) - len(of) % 4
            for j in range(0, fours, 4):
                a, b = table[of[j], first:last], table[of[j + 1], first:last]
                c, e = table[of[j + 2], first:last], table[of[j + 3], first:last]
                found = _dots(d, a, b, c, e)
                for k in range(4):
                    own[j + k] += found[k]
            for j in range(fours, len(of)):
                own[j] += _dot(d, table[of[j], first:last])


@compiled
def _weigh(square, along, gram, unit, allowed, ridge, scale, weights, distance, left):
    """The system of each row by its triangles, L D L^T: no root, so rounding may leave it a little indefinite."""
    terms = along.shape[1]
    lower, pivot, ones = np.empty((terms, terms)), np.empty(terms), np.empty(terms)
    for i in range(len(unit)):
        known, w = gram[unit[i]], weights[i]
        for j in range(terms):
            far = max(square[i] - 2 * along[i, j] + known[j, j], 0.0)
            distance[i, j] = far if allowed[i, j] else np.inf
            total = known[j, j] + ridge * far * far / scale + JITTER * scale
            if not allowed[i, j]:
                total += FAR * scale
            fitted, one = along[i, j], 1.0
            for k in range(j):
                product = known[j, k]
                for m in range(k):
                    product -= lower[j, m] * lower[k, m] * pivot[m]
                lower[j, k] = product / pivot[k]
                total -= lower[j, k] * product
                fitted -= lower[j, k] * w[k]
                one -= lower[j, k] * ones[k]
            pivot[j], w[j], ones[j] = total, fitted, one
        sum_fitted, sum_ones = 0.0, 0.0
        for j in range(terms - 1, -1, -1):
            fitted, one = w[j] / pivot[j], ones[j] / pivot[j]
            for k in range(j + 1, terms):
                fitted -= lower[k, j] * w[k]
                one -= lower[k, j] * ones[k]
            w[j], ones[j] = fitted, one
            sum_fitted += fitted
            sum_ones += one
        total = 0.0
        for j in range(terms):
            w[j] = w[j] + ones[j] * (1 - sum_fitted) / sum_ones if allowed[i, j] else 0.0
            total += w[j]
        rest = square[i]
        for j in range(terms):
            w[j] /= total
            rest -= 2 * w[j] * along[i, j]
            for k in range(j):
                rest += 2 * w[j] * w[k] * known[j, k]
            rest += w[j] * w[j] * known[j, j]
        left[i] = max(rest, 0.0) / scale


@compiled
def _coefficients(curved, crossed, index, weights, shares, piece, ranges, out):
    for i in range(len(index)):
        low, high = ranges[i, 0], ranges[i, 1]
        own, of = out[i, low:high], piece[low:high]
        for j in range(index.shape[1]):
            _add(own, weights[i, j], crossed[index[i, j], low:high])
        _remain(own, curved[i, low:high], shares[i], of)


@compiled
def _remain(own, curved, shares, piece):
    for r in range(len(own)):
        own[r] = shares[piece[r]] * (curved[r] - own[r])


@compiled
def _add(g, weight, entry):
    for k in range(len(g)):
        g[k] += weight * _wide(entry[k])


@compiled
def _add_four(g, w, x, y, z, a, b, c, d):
    for k in range(len(g)):
        g[k] += w * _wide(a[k]) + x * _wide(b[k]) + y * _wide(c[k]) + z * _wide(d[k])


@compiled
def _copy(g, bent):
    for k in range(len(g)):
        g[k] = _wide(bent[k])


@compiled
def _sum(g, table, index, weights, bent, first, last, used):
    """g of one row on some coordinates; `used` is memory for the terms that weigh in, four of which are added at once:
    g is then read and written once for them."""
    _copy(g, bent[first:last])
    count = 0
    for j in range(len(index)):
        if weights[j] != 0:
            used[count] = j
            count += 1
    fours = count - count % 4
    for n in range(0, fours, 4):
        j, k, p, q = used[n], used[n + 1], used[n + 2], used[n + 3]
        a, b = table[index[j], first:last], table[index[k], first:last]
        c, d = table[index[p], first:last], table[index[q], first:last]
        _add_four(g, weights[j], weights[k], weights[p], weights[q], a, b, c, d)
    for n in range(fours, count):
        j = used[n]
        _add(g, weights[j], table[index[j], first:last])


@compiled
def _gradient(table, index, weights, bent, place, out):
    coords, used = bent.shape[1], np.empty(index.shape[1], np.int64)
    for first in range(0, coords, BLOCK):
        last = min(coords, first + BLOCK)
        for i in range(len(index)):
            _sum(out[i, first:last], table, index[i], weights[i], bent[place[i]], first, last, used)


@compiled
def _square(g):
    total = np.float32(0)
    for k in range(len(g)):
        total += g[k] * g[k]
    return total


@compiled
def _squares(table, index, weights, bent, place, square):
    coords = bent.shape[1]
    memory, used = np.empty(BLOCK, np.float32), np.empty(index.shape[1], np.int64)
    for first in range(0, coords, BLOCK):
        last = min(coords, first + BLOCK)
        g = memory[: last - first]
        for i in range(len(index)):
            _sum(g, table, index[i], weights[i], bent[place[i]], first, last, used)
            square[i] += _square(g)


@compiled
def _adam_row(theta, exp_avg, exp_avg_sq, g, scale, lr, h):
    blend, beta2, rest, root, eps, coupled, decoupled = h[0], h[1], h[2], h[3], h[4], h[5], h[6]
    sign, size, keep = scale * h[7], lr / h[8], np.float32(1) - lr * decoupled
    for k in range(len(g)):
        x = sign * g[k] + coupled * theta[k]
        first = exp_avg[k] + blend * (x - exp_avg[k])
        second = beta2 * exp_avg_sq[k] + rest * x * x
        exp_avg[k] = first
        exp_avg_sq[k] = second
        theta[k] = keep * theta[k] - size * first / (root * np.sqrt(second) + eps)


@compiled
def _amsgrad_row(theta, exp_avg, exp_avg_sq, largest, g, scale, lr, h):
    blend, beta2, rest, root, eps, coupled, decoupled = h[0], h[1], h[2], h[3], h[4], h[5], h[6]
    sign, size, keep = scale * h[7], lr / h[8], np.float32(1) - lr * decoupled
    for k in range(len(g)):
        x = sign * g[k] + coupled * theta[k]
        first = exp_avg[k] + blend * (x - exp_avg[k])
        second = beta2 * exp_avg_sq[k] + rest * x * x
        exp_avg[k] = first
        exp_avg_sq[k] = second
        largest[k] = max(largest[k], second)
        theta[k] = keep * theta[k] - size * first / (root * np.sqrt(largest[k]) + eps)


@compiled
def _adam(theta, exp_avg, exp_avg_sq, largest, at, table, index, weights, bent, place, scale, columns, lr, h):
    memory, used = np.empty(BLOCK, np.float32), np.empty(index.shape[1], np.int64)
    for part in range(len(columns)):
        for first in range(columns[part, 0], columns[part, 1], BLOCK):
            last = min(columns[part, 1], first + BLOCK)
            g = memory[: last - first]
            for i in range(len(at)):
                _sum(g, table, index[i], weights[i], bent[place[i]], first, last, used)
                own, moment = theta[at[i], first:last], exp_avg[at[i], first:last]
                second = exp_avg_sq[at[i], first:last]
                if len(largest):
                    top = largest[at[i], first:last]
                    _amsgrad_row(own, moment, second, top, g, scale[i], lr[i, part], h[part])
                else:
                    _adam_row(own, moment, second, g, scale[i], lr[i, part], h[part])


@compiled
def _plain_row(theta, g, scale, lr, h):
    for k in range(len(g)):
        theta[k] -= lr * (scale * h[5] * g[k] + h[4] * theta[k])


@compiled
def _momentum_row(theta, buffer, g, scale, lr, h):
    momentum, kept, taken, nesterov, decay, sign = h[0], h[1], h[2], h[3], h[4], h[5]
    for k in range(len(g)):
        x = scale * sign * g[k] + decay * theta[k]
        moved = kept * buffer[k] + taken * x
        buffer[k] = moved
        theta[k] -= lr * (x + momentum * moved if nesterov != 0 else moved)


@compiled
def _sgd(theta, buffer, at, table, index, weights, bent, place, scale, columns, lr, h):
    memory, used = np.empty(BLOCK, np.float32), np.empty(index.shape[1], np.int64)
    for part in range(len(columns)):
        for first in range(columns[part, 0], columns[part, 1], BLOCK):
            last = min(columns[part, 1], first + BLOCK)
            g = memory[: last - first]
            for i in range(len(at)):
                _sum(g, table, index[i], weights[i], bent[place[i]], first, last, used)
                if h[part, 0] != 0:
                    moment = buffer[at[i], first:last]
                    _momentum_row(theta[at[i], first:last], moment, g, scale[i], lr[i, part], h[part])
                else:
                    _plain_row(theta[at[i], first:last], g, scale[i], lr[i, part], h[part])


# Optimizers whose steps are compiled; others take the plain step on gradients from here.
STEPS = {"SGD": (_sgd, _sgd_arguments), "Adam": (_adam, _adam_arguments), "AdamW": (_adam, _adam_arguments)}
