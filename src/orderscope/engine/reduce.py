"""A window on fewer coordinates and a lower rank: less exact, many times quicker, for searches."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from orderscope.engine.anchors import AnchorSpace
from orderscope.engine.metrics import Expansion
from orderscope.engine.optimizers import Start
from orderscope.engine.window import Window, compress, stands_for

KNOWN_RIDGE = 0.01


def some_coordinates(window: Window, count: int, seed: int) -> Tensor:
    """`count` of the window's m coordinates, ascending; all where there are no more."""
    if count >= window.coords:
        return torch.arange(window.coords)
    return torch.randperm(window.coords, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def reduced(
    window: Window, chosen: Tensor, *, energy: float, dtype: torch.dtype | None = None, halves: bool = True
) -> Window:
    """The same window on the chosen coordinates, [m'] indices into [0, m), its curvature compressed to `energy`.

    Sums over coordinates stay unbiased: the weight of each grows by m / m'.

    Args:
        dtype: of gradients and anchors: bfloat16, or int8 for gradients on anchors in bfloat16; as they are if not
            given.
        halves: whether the curvature's halves are still to be told apart. Where only the whole is replayed they are
            compressed together, and fewer rows hold as much.
    """
    grows = window.coords / len(chosen)
    dynamics, places = window.dynamics, chosen.numpy()
    slices = []
    for part in dynamics.slices:
        low, high = np.searchsorted(places, [part.coords.start, part.coords.stop])
        if high > low:
            slices.append(dataclasses.replace(part, coords=slice(int(low), int(high))))
    start = Start(dynamics.start.theta[chosen], {k: v[chosen] for k, v in dynamics.start.moments.items()})
    anchors = window.anchors
    some = window.table[:, :, chosen]
    own = slice(len(anchors.shared), None)
    table, scale = quantised(some, dtype or window.table.dtype)
    return dataclasses.replace(
        window,
        dynamics=dataclasses.replace(dynamics, start=start, slices=tuple(slices), weight=dynamics.weight * grows),
        anchors=AnchorSpace(
            anchors.shared[:, chosen],
            anchors.own[:, :, chosen],
            start.theta,
            ridge=anchors.ridge,
            dtype=dtype and torch.bfloat16,
        ),
        stands=stands_for(some[:, own], window.norms, window.known[:, own], dynamics.weight * grows),
        table=table,
        table_scale=scale,
        sample_rows=window.sample_rows[:, :, chosen],
        factors=tuple(_compressed(pair, chosen, grows**0.5, energy, halves) for pair in window.factors),
        final=window.final[chosen],
    )


def _compressed(
    pair: tuple[Tensor, Tensor], chosen: Tensor, weight: float, energy: float, halves: bool
) -> tuple[Tensor, Tensor]:
    first, second = (half[:, chosen] * weight for half in pair)
    if halves:
        return compress(first, energy), compress(second, energy)
    return compress(torch.cat([first, second]), energy), second[:0]


def quantised(table: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A table [..., m] in a type, and for int8 the scale of each row [...]: its largest entry is 127."""
    if dtype != torch.int8:
        return table.to(dtype).contiguous(), None
    scale = table.abs().amax(-1).float() / 127
    return (table / scale.clamp_min(1e-30)[..., None]).round_().to(torch.int8), scale


def reduced_expansion(expansion: Expansion, states: Tensor, chosen: Tensor) -> Expansion:
    """A metric's expansion from the chosen coordinates of the weights.

    The products A d of a curved loss cancel: a sum over a sample of coordinates has an error as large as the value. But
    most of a displacement lies in the span of states that are known in full. That part's products are exact, only the
    remainder's are estimated, a regression estimator:

        A d ~ sum_k c_k A d_k + (m / m')^(1/2) A_S (d_S - sum_k c_k d_k,S),  c by ridge regression of d_S on the d_k,S.

    The slope's weight is m / m', the Horvitz-Thompson estimate. For the products that would be unbiased too, but noisy:
    their squares then rank worse.

    It is linear in d_S, and so is the slope's: both are weights of the chosen coordinates, worked out once.

    Args:
        states: [states, m], known in full.
        chosen: indices into [0, m), [m'].

    Source: Saerndal, Swensson and Wretman, "Model Assisted Survey Sampling", 1992, chapter 6.
    """
    full = states - expansion.center
    known = full[:, chosen].double()
    gram = known @ known.T
    ridge = KNOWN_RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    weights = torch.cat([expansion.gradient[None], expansion.factor])
    grows = len(expansion.center) / len(chosen)
    plain = weights[:, chosen].double() * torch.tensor([grows] + [grows**0.5] * len(expansion.factor))[:, None]
    missed = (full @ weights.T).double() - known @ plain.T
    folded = (plain + torch.linalg.solve(gram + ridge, missed).T @ known).to(full.dtype)
    return Expansion(expansion.center[chosen], expansion.value, folded[0].clone(), folded[1:].contiguous())


def moved(expansion: Expansion, device: torch.device) -> Expansion:
    """The same on a device."""
    tensors = {name: x.to(device) for name, x in vars(expansion).items() if isinstance(x, Tensor)}
    return dataclasses.replace(expansion, **tensors)
