"""The replay on a GPU, in Triton: two passes over the states a step, three with clipping.

products   d = theta - start is formed in registers and multiplied with the entries of its unit and with a tile of the
           factor; coordinates are split over programs and their partial sums added up afterwards, in a fixed order.
step       the gradient of a tile of rows and coordinates is formed in registers, the optimizer's step taken on it.
squares    with clipping the norm is needed before the step, so the gradient is formed once more beforehand: reading the
           tables twice is cheaper than writing and reading rows x coordinates.
"""

# Type checkers do not know what Triton makes of arguments.
# pyright: reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from orderscope_kernels import reference
from orderscope_kernels.reference import (
    Clip,
    Part,
    Products,
    Terms,
    affine_weights,
    clip_factor,
    remainder_coefficients,
)
from orderscope_kernels.shapes import Float, Int32, Int64, Shaped
from orderscope_kernels.triton_tiles import (
    COORDS,
    RANK,
    ROWS,
    SPAN,
    adam_step,
    anchor_products,
    curvature_products,
    gradient_squares,
    sgd_step,
)

__all__ = ["affine_weights", "displacement_products", "remainder_coefficients", "replay_step"]

_Arguments = tuple[list[Tensor], list[float], dict[str, bool]]


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
    (rows, terms), coords, rank = index.shape, theta.shape[1], len(factor)
    parts = triton.cdiv(coords, SPAN)
    square, along = theta.new_empty(parts, rows), theta.new_empty(parts, rows, terms)
    anchor_products[(rows, parts)](
        theta, start, at, table, index, square, along, rows, coords, terms, SPAN,
        TERMS=triton.next_power_of_2(terms), COORDS=COORDS,
    )  # fmt: skip
    curved = theta.new_empty(parts, rows, rank)
    if rank:
        grid = (triton.cdiv(rows, ROWS), triton.cdiv(rank, RANK), parts)
        curvature_products[grid](
            theta, start, at, factor, ranges, curved, rows, coords, rank, SPAN, ROWS=ROWS, RANK=RANK, COORDS=COORDS
        )
    return Products(square.sum(0), along.sum(0), curved.sum(0))


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
        reference.replay_step(optimizer, theta, moments, at, terms, parts, clip)
        return
    (rows, count), coords, rank = terms.index.shape, theta.shape[1], len(terms.factor)
    weights, coefficients = terms.weights.float().contiguous(), terms.coefficients.float().contiguous()
    gathered = (terms.table, terms.index.contiguous(), weights, terms.factor, coefficients, terms.ranges.contiguous())
    sizes, tile = (rows, coords, count, rank), dict(ROWS=ROWS, RANK=RANK, COORDS=COORDS)
    scale = theta.new_ones(rows)
    if clip is not None:
        pieces = triton.cdiv(coords, COORDS)
        square = theta.new_empty(pieces, rows)
        gradient_squares[(triton.cdiv(rows, ROWS), pieces)](*gathered, square, *sizes, **tile)
        norm = square.double().sum(0).sqrt() * clip.weight.sqrt()
        scale = clip_factor(torch.where(clip.known.isnan(), norm, clip.known.double()), clip.max_norm).float()
    for part in parts:
        h = part.options
        lr = torch.as_tensor(h["lr"], dtype=theta.dtype, device=theta.device).reshape(-1).expand(rows).contiguous()
        grid = (triton.cdiv(rows, ROWS), triton.cdiv(part.last - part.first, COORDS))
        kernel, arguments = STEPS[optimizer]
        states, numbers, flags = arguments(theta, moments, h)
        sign = -1.0 if h["maximize"] else 1.0
        kernel[grid](
            theta, *states, at, *gathered, scale, lr, *sizes, part.first, part.last, *numbers, sign, **flags, **tile
        )


def _sgd_arguments(theta: Tensor, moments: dict[str, Tensor], h: dict[str, Any]) -> _Arguments:
    """State, numbers and flags of `sgd_step`; `theta` stands for a state that there is not."""
    first = bool(h["first"])
    numbers = [h["momentum"], 0.0 if first else h["momentum"], 1.0 if first else 1 - h["dampening"], h["weight_decay"]]
    flags = dict(MOMENTUM=h["momentum"] != 0, NESTEROV=bool(h["nesterov"]))
    return [moments.get("momentum_buffer", theta)], numbers, flags


def _adam_arguments(theta: Tensor, moments: dict[str, Tensor], h: dict[str, Any]) -> _Arguments:
    """The same of `adam_step`."""
    decay, largest = float(h["weight_decay"]), moments.get("max_exp_avg_sq")
    states = [moments["exp_avg"], moments["exp_avg_sq"], theta if largest is None else largest]
    numbers = [
        1 - h["beta1"], h["beta2"], 1 - h["beta2"], 1 - h["beta1"] ** h["count"],
        (1 - h["beta2"] ** h["count"]) ** -0.5, h["eps"], 0.0 if h["decoupled"] else decay,
        decay if h["decoupled"] else 0.0,
    ]  # fmt: skip
    return states, numbers, dict(AMSGRAD=largest is not None)


# Optimizers whose steps are kernels; others take the plain step.
STEPS = {"SGD": (sgd_step, _sgd_arguments), "Adam": (adam_step, _adam_arguments), "AdamW": (adam_step, _adam_arguments)}
