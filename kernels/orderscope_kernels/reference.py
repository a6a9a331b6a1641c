"""The arithmetic of a replay in plain torch: what every kernel must reproduce.

Shapes: `rows` of states that take a step together, `coords` carried coordinates, `entries` of a table (its rows: one
gradient or one state each), `terms` entries that a row uses, `rank` rows of the curvature's factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from orderscope_kernels.optimizers import KINDS
from orderscope_kernels.shapes import Bool, Float, Float64, Int32, Int64, Shaped

JITTER = 1e-6  # added to the diagonal of the anchors' system, in units of their scale, so that it can be solved
FAR = 1e6  # added for an anchor that may not be used: its weight is then next to nothing, and set to 0


class Terms(NamedTuple):
    """A predicted gradient that is not formed yet,

        g[i] = sum_j weights[i, j] table[index[i, j]]  +  coefficients[i] @ factor.

    Args:
        table: [entries, coords]: float32, float64, bfloat16, or int8 whose scale is part of the weights.
        index: int64 [rows, terms].
        weights: [rows, terms].
        factor: [rank, coords].
        coefficients: [rows, rank], zero outside a row's range.
        ranges: int32 [rows, 2], the rows of the factor that a row uses, from and to.
    """

    table: Tensor
    index: Tensor
    weights: Tensor
    factor: Tensor
    coefficients: Tensor
    ranges: Tensor


class Part(NamedTuple):
    """Coordinates that step alike.

    Args:
        first, last: their range in [0, coords).
        options: what `Kind.update` reads; `lr` may be [rows, 1].
        among: which of the rows take the step, int64, or None for all.
    """

    first: int
    last: int
    options: dict[str, Any]
    among: Tensor | None = None


class Clip(NamedTuple):
    """Clipping as torch.nn.utils.clip_grad_norm_.

    Args:
        max_norm: the bound.
        weight: [rows], what a carried coordinate stands for in the squared norm: P / m, or what known norms show.
        known: [rows], norms that are known; not a number where they are to be estimated from the coordinates.
    """

    max_norm: float
    weight: Tensor
    known: Tensor


class Products(NamedTuple):
    """Products of displacements d = theta - start.

    Args:
        square: d . d, [rows].
        along: table[index] . d, [rows, terms].
        curved: A d, [rows, rank].
    """

    square: Tensor
    along: Tensor
    curved: Tensor


def displacement_products(
    theta: Float[Tensor, "states coords"],
    start: Float[Tensor, " coords"],
    at: Int64[Tensor, " rows"],
    table: Shaped[Tensor, "entries coords"],
    index: Int64[Tensor, "rows terms"],
    factor: Float[Tensor, "rank coords"],
    ranges: Int32[Tensor, "rows 2"],
) -> Products:
    """All the inner products that a step needs of the states, in one pass over them.

    Args:
        theta: [states, coords].
        start: [coords].
        at: int64 [rows], which states.
        table: known displacements, [entries, coords].
        index: int64 [rows, terms], the entries to multiply each row with; -1 at a row's end for none, product 0.
        factor: A, [rank, coords].
        ranges: int32 [rows, 2], rows of the factor to multiply with; the other products are zero.
    """
    d = theta[at] - start
    curved = d.new_zeros(len(at), len(factor))
    for rows, (low, high) in by_range(ranges):
        curved[rows, low:high] = (d[rows].to(factor.dtype) @ factor[low:high].T).to(d.dtype)
    return Products((d * d).sum(1), entry_products(table, index, d), curved)


def affine_weights(
    square: Float[Tensor, " rows"],
    along: Float[Tensor, "rows terms"],
    gram: Float64[Tensor, "units terms terms"],
    unit: Int64[Tensor, " rows"],
    allowed: Bool[Tensor, "rows terms"],
    ridge: float,
    scale: float,
) -> tuple[Float64[Tensor, "rows terms"], Float64[Tensor, "rows terms"], Float64[Tensor, " rows"]]:
    """Affine weights of displacements d among those of their unit, d_j, from inner products: they minimise

        | d - sum_j w_j d_j |^2  +  ridge * sum_j w_j^2 | d - d_j |^4 / scale,    sum_j w_j = 1.

    Args:
        square: d . d, [rows].
        along: d_j . d, [rows, terms].
        gram: d_i . d_j of each unit, float64 [units, terms, terms].
        unit: int64 [rows].
        allowed: bool [rows, terms], which d_j may weigh in.
        ridge: strength of the penalty, without unit.
        scale: unit of squared distances, > 0.

    Returns:
        weights [rows, terms]; |d - d_j|^2, infinite where not allowed, [rows, terms]; |d - sum_j w_j d_j|^2 / scale,
        [rows]. All float64.
    """
    length, along, gram = square.double(), along.double(), gram[unit]
    distance = (length[:, None] - 2 * along + gram.diagonal(dim1=1, dim2=2)).clamp_min(0)
    penalty = ridge * distance**2 / scale + JITTER * scale + (~allowed) * (FAR * scale)
    solved = torch.linalg.solve(gram + torch.diag_embed(penalty), torch.stack([along, torch.ones_like(along)], -1))
    fitted, ones = solved[..., 0], solved[..., 1]
    weights = fitted + ones * ((1 - fitted.sum(1)) / ones.sum(1))[:, None]
    weights = weights * allowed
    weights = weights / weights.sum(1, keepdim=True)
    left = length - 2 * (weights * along).sum(1) + torch.einsum("rj,rjk,rk->r", weights, gram, weights)
    return weights, distance.masked_fill(~allowed, torch.inf), left.clamp_min(0) / scale


def remainder_coefficients(
    curved: Float[Tensor, "rows rank"],
    crossed: Float[Tensor, "entries rank"],
    index: Int64[Tensor, "rows terms"],
    weights: Float[Tensor, "rows terms"],
    shares: Float[Tensor, "rows pieces"],
    piece: Int64[Tensor, " rank"],
    ranges: Int32[Tensor, "rows 2"],
) -> Float[Tensor, "rows rank"]:
    """Coefficients of the factor's rows in the curvature times a remainder,

        c[i, r] = shares[i, piece[r]] * (curved[i, r] - sum_j weights[i, j] crossed[index[i, j], r]).

    Args:
        curved: A d, [rows, rank].
        crossed: the same of the entries, [entries, rank].
        index: int64 [rows, terms].
        weights: [rows, terms].
        shares: what each piece of the factor counts for each row, [rows, pieces]; zero outside the row's range.
        piece: of each row of the factor, int64 [rank].
        ranges: int32 [rows, 2], the rows of the factor that a row uses; the other coefficients are zero.
    """
    return shares[:, piece] * (curved - gather_entries(crossed, index, weights))


def predicted_gradient(terms: Terms) -> Float[Tensor, "rows coords"]:
    """g as in `Terms`, [rows, coords]."""
    gradient = gather_entries(terms.table, terms.index, terms.weights)
    for rows, (low, high) in by_range(terms.ranges):
        if high > low:
            coefficients = terms.coefficients[rows, low:high].to(terms.factor.dtype)
            gradient[rows] += (coefficients @ terms.factor[low:high]).to(gradient.dtype)
    return gradient


def replay_step(
    optimizer: str,
    theta: Float[Tensor, "states coords"],
    moments: dict[str, Float[Tensor, "states coords"]],
    at: Int64[Tensor, " rows"],
    terms: Terms,
    parts: Sequence[Part],
    clip: Clip | None = None,
) -> None:
    """Predict the gradient of some states and take the optimizer's step in place.

    Args:
        optimizer: one of `orderscope_kernels.optimizers.KINDS`.
        theta: [states, coords].
        moments: its state by key, [states, coords] each.
        at: int64 [rows], the states that step.
        terms: their gradients.
        parts: what steps alike.
        clip: clipping, or None.
    """
    step_with(optimizer, theta, moments, at, predicted_gradient(terms), parts, clip)


def step_with(
    optimizer: str,
    theta: Float[Tensor, "states coords"],
    moments: dict[str, Float[Tensor, "states coords"]],
    at: Int64[Tensor, " rows"],
    gradient: Float[Tensor, "rows coords"],
    parts: Sequence[Part],
    clip: Clip | None = None,
) -> None:
    """`replay_step` with the gradient given, [rows, coords], not yet clipped; the other arguments as there.

    Args:
        optimizer: one of `orderscope_kernels.optimizers.KINDS`.
        theta: [states, coords]; changed.
        moments: its state by key, [states, coords] each; changed.
        at: int64 [rows], the states that step.
        gradient: [rows, coords], not yet clipped.
        parts: what steps alike.
        clip: clipping, or None.
    """
    if clip is not None:
        norm = torch.where(
            clip.known.isnan(),
            gradient.norm(dim=1) * clip.weight.to(gradient.dtype).sqrt(),
            clip.known.to(gradient.dtype),
        )
        gradient = gradient * clip_factor(norm, clip.max_norm).unsqueeze(1)
    optimizer_step(optimizer, theta, moments, at, gradient, parts)


def optimizer_step(
    optimizer: str,
    theta: Float[Tensor, "states coords"],
    moments: dict[str, Float[Tensor, "states coords"]],
    at: Int64[Tensor, " rows"],
    gradient: Float[Tensor, "rows coords"],
    parts: Sequence[Part],
) -> None:
    """`replay_step` with the gradient given, [rows, coords], already clipped; the other arguments as there.

    Args:
        optimizer: one of `orderscope_kernels.optimizers.KINDS`.
        theta: [states, coords]; changed.
        moments: its state by key, [states, coords] each; changed.
        at: int64 [rows], the states that step.
        gradient: [rows, coords], already clipped.
        parts: what steps alike.
    """
    # A view where every state steps, in its place: nothing is copied.
    update = KINDS[optimizer].update
    whole = len(at) == len(theta) and bool((at == torch.arange(len(at), device=at.device)).all())
    for part in parts:
        among = slice(None) if part.among is None else part.among
        rows, on = at[among], slice(part.first, part.last)
        options = dict(part.options)
        if isinstance(options["lr"], Tensor):
            options["lr"] = options["lr"][among]
        view = whole and part.among is None
        take = slice(None) if view else rows
        own = {key: values[take, on] for key, values in moments.items()}
        weights, grad = theta[take, on], gradient[among, on]
        update(weights, grad, own, options)
        if not view:
            theta[take, on] = weights
            for key, values in own.items():
                moments[key][take, on] = values


def clip_factor(norm: Float[Tensor, "*rows"], max_norm: float) -> Float[Tensor, "*rows"]:
    """What torch.nn.utils.clip_grad_norm_ multiplies gradients of this norm by.

    Args:
        norm: of the gradients, [...].
        max_norm: the bound.
    """
    return (max_norm / (norm + 1e-6)).clamp_max(1.0)


def gather_entries(
    table: Shaped[Tensor, "entries coords"], index: Int64[Tensor, "rows terms"], weights: Float[Tensor, "rows terms"]
) -> Float[Tensor, "rows coords"]:
    """Weighted sums of entries, out[i] = sum_j weights[i, j] table[index[i, j]].

    An entry with weight one beside zeros comes back with its own bits.

    Args:
        table: [entries, coords].
        index: int64 [rows, terms].
        weights: [rows, terms]; sums are of this dtype where the table's is shorter.
    """
    if table.dtype == weights.dtype:
        return F.embedding_bag(index, table, mode="sum", per_sample_weights=weights)
    places = torch.arange(1, index.shape[1] + 1, device=index.device)
    lengths = F.pad((weights != 0) * places, (1, 0)).amax(1)
    out = weights.new_zeros(len(index), table.shape[1])
    for rows, length in by_value(lengths):  # rows of few terms are filled up with zeros beside rows of many
        part = out.new_zeros(len(rows), table.shape[1])
        for j in range(length):
            part.addcmul_(table[index[rows, j]].to(out.dtype), weights[rows, j, None])
        out[rows] = part
    return out


def entry_products(
    table: Shaped[Tensor, "entries coords"], index: Int64[Tensor, "rows terms"], rows: Float[Tensor, "rows coords"]
) -> Float[Tensor, "rows terms"]:
    """Inner products of rows with entries, out[i, j] = table[index[i, j]] . rows[i]; [rows, terms].

    Args:
        table: [entries, coords].
        index: which entries each row is multiplied with, int64 [rows, terms]; -1 at a row's end for no entry.
        rows: [rows, coords].
    """
    out = torch.zeros(index.shape, dtype=rows.dtype, device=rows.device)
    distinct, which = torch.unique(index, dim=0, return_inverse=True)
    for entries, (of, _) in zip(distinct, by_value(which), strict=True):
        some = entries[entries >= 0]
        out[of, : len(some)] = rows[of] @ table[some].to(rows.dtype).T
    return out


def by_value(values: Int64[Tensor, " rows"]) -> Iterator[tuple[Tensor, int]]:
    """Rows of each value that occurs, with the value, ascending; values int64 [rows]."""
    order = torch.argsort(values, stable=True)
    distinct, counts = torch.unique_consecutive(values[order], return_counts=True)
    yield from zip(order.split(counts.tolist()), distinct.tolist(), strict=True)


def by_range(ranges: Int32[Tensor, "rows 2"]) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Rows of each range of the factor, and the range."""
    distinct, which = torch.unique(ranges, dim=0, return_inverse=True)
    for rows, value in by_value(which):
        low, high = distinct[value].tolist()
        yield rows, (low, high)
