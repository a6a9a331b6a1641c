"""Pseudo-gradients from targets that the user's own function draws, for losses that cannot be split from the outputs.

If the loss is a negative log-likelihood -log p(y | x; theta), the gradient at a target y drawn from p(. | x; theta) has
mean zero and the Fisher matrix as its second moment, which for the usual output layers is the Gauss-Newton matrix.
Source: Martens, "New insights and perspectives on the natural gradient method", 2020, sections 5 and 9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from orderscope.sketching.coordinates import Coordinates
from orderscope.sketching.gradients import Point, chunks, join, sample_gradients
from orderscope.sketching.pseudo_gradients import BLOCK
from orderscope.sketching.taps import NO_TAPS, Taps

Targets = Callable[[Any, Any, torch.Generator], Any]


def target_gradients(
    at: Point,
    targets: Targets,
    batch_of: Callable[[Any], Any],
    ids: Any,
    coordinates: Coordinates,
    *,
    draws: int,
    seed: int,
    micro_batch: int,
    dtype: torch.dtype | None = None,
    taps: Taps = NO_TAPS,
) -> Tensor:
    """Gradients of each sample at `draws` drawn targets, [len(ids), draws, m].

    Args:
        at: weights, moments and buffers at which gradients are taken.
        targets: `(model, batch, generator) -> batch` with drawn targets in the place of the recorded ones.
        batch_of: ids -> collated batch.
        ids: samples, [n].
        coordinates: the carried coordinates, m of the P weights.
        draws: gradients of each sample.
        seed: draws depend on it and on the position of a sample in `ids`, not on `micro_batch`.
        micro_batch: samples of one forward pass; changes the rounding alone.
        dtype: of the result; the parameters' if not given.
        taps: layers whose weights' gradients are not formed.
    """
    rows = torch.empty(len(ids), draws, coordinates.carried, dtype=at.layout.dtype if dtype is None else dtype)
    for number, block in enumerate(chunks(ids, BLOCK)):
        batch = batch_of(block)
        state = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        generator = torch.Generator(next(iter(at.params.values())).device).manual_seed(state)
        first = number * BLOCK
        for draw in range(draws):
            with torch.no_grad():
                drawn = targets(at.model, batch, generator)
            places = np.arange(len(block))
            parts = sample_gradients(
                at, lambda some, b=drawn: _rows(b, some), places, coordinates, micro_batch=micro_batch, taps=taps
            )
            for start, part in zip(range(0, len(block), micro_batch), parts, strict=True):
                join(part, rows[first + start : first + start + micro_batch, draw][: len(block) - start])
    return rows


def _rows(batch: Any, places: np.ndarray) -> Any:
    return tree_map(lambda leaf: leaf[torch.from_numpy(places).to(leaf.device)], batch)
