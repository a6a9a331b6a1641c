"""The loops of `numba_replay`, compiled for the machine they run on, without a compiler.

What was compiled is kept beside this file. Arrays: as `reference` has them; bfloat16 as the 16 bits that it is. Beside
those of `reference`:

    short       the displacements in the type of the curvature's factor, [rows, coords]; written to
    bent        the curvature's part of the gradients, [places, coords]
    place       which row of `bent` belongs to each row, [rows]
    columns     first coordinate of each part of the step and the one after its last, [parts, 2]
    scale       what clipping multiplies each gradient by, [rows]
    lr          learning rates, [rows, parts]
    h           the other options of the step, [parts, numbers], as `numba_replay` arranges them
    square, along, weights, distance, left, out     results, written to; sums are added to what is there
"""

# numba hands an intrinsic its context itself.
# pyright: reportCallIssue=false

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from orderscope_kernels.reference import FAR, JITTER

BLOCK = 2048  # coordinates at once: a dozen entries of a short type and the states then fit the second-level cache
FAST = {"contract", "reassoc", "nsz", "arcp"}  # sums in any order, but nan and inf as they are
FLOAT, HALF = ir.FloatType(), ir.IntType(16)
WORD = ir.IntType(32)


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
def displace(theta, start, at, table, index, short, square, along):
    coords = theta.shape[1]
    memory = np.empty(BLOCK, np.float32)
    for first in range(0, coords, BLOCK):
        last = min(coords, first + BLOCK)
        d = memory[: last - first]
        for i in range(len(at)):
            square[i] += _displacement(theta[at[i], first:last], start[first:last], d, short[i, first:last])
            own, of = along[i], index[i]
            terms = len(of)
            while terms > 0 and of[terms - 1] < 0:
                terms -= 1
            fours = terms - terms % 4
            for j in range(0, fours, 4):
                a, b = table[of[j], first:last], table[of[j + 1], first:last]
                c, e = table[of[j + 2], first:last], table[of[j + 3], first:last]
                found = _dots(d, a, b, c, e)
                for k in range(4):
                    own[j + k] += found[k]
            for j in range(fours, terms):
                own[j] += _dot(d, table[of[j], first:last])


@compiled
def weigh(square, along, gram, unit, allowed, ridge, scale, weights, distance, left):
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
def coefficients(curved, crossed, index, weights, shares, piece, ranges, out):
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
def gradient_rows(table, index, weights, bent, place, out):
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
def squares(table, index, weights, bent, place, square):
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
def adam_rows(theta, exp_avg, exp_avg_sq, largest, at, table, index, weights, bent, place, scale, columns, lr, h):
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
def sgd_rows(theta, buffer, at, table, index, weights, bent, place, scale, columns, lr, h):
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
