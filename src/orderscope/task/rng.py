"""States of the process's random generators: saved, restored, seeded."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

MT19937 = 624  # words of the state of numpy's generator


def rng_state() -> dict[str, Tensor]:
    """States of the global generators: "torch", "cuda<i>" of each device in use, "host" for numpy and Python's random.

    "host" is float64, which holds their 32-bit words and their spare Gaussian alike.
    """
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, spare = random.getstate()
    numpy_part = [*keys, position, has_gauss, gauss]
    python_part = [version, *words, spare is not None, spare or 0.0]
    states = {
        "torch": torch.get_rng_state(),
        "host": torch.tensor(np.array([*numpy_part, *python_part], dtype=np.float64)),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states |= {f"cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def set_rng_state(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["torch"])
    host = states["host"].numpy()
    keys, (position, has_gauss, gauss) = host[:MT19937], host[MT19937 : MT19937 + 3]
    np.random.set_state(("MT19937", keys.astype(np.uint32), int(position), int(has_gauss), float(gauss)))
    version, *words, has_spare, spare = host[MT19937 + 3 :].tolist()
    random.setstate((int(version), tuple(int(word) for word in words), spare if has_spare else None))
    for name, state in states.items():
        if name.startswith("cuda"):
            torch.cuda.set_rng_state(state, int(name.removeprefix("cuda")))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fixed random numbers inside, the caller's own afterwards."""
    with kept():
        if torch.accelerator.is_available():
            torch.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)  # the same, without asking every kind of device
        np.random.seed(seed)
        random.seed(seed)
        yield


@contextmanager
def kept() -> Iterator[None]:
    """Random numbers go on afterwards as if none had been drawn inside."""
    host, numbers, plain = torch.get_rng_state(), np.random.get_state(), random.getstate()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_rng_state(host)
        np.random.set_state(numbers)
        random.setstate(plain)
        if devices:
            torch.cuda.set_rng_state_all(devices)
