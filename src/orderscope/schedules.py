"""Learning-rate schedules as arrays, one rate a step: what `Simulator.predict(orders, lr=...)` takes.

The learning rate belongs to the position, so a schedule is a what-if like an order. All functions are pure and return
float64 [steps]; rates are in the units of `peak`. With `warmup` steps the rate first climbs linearly, reaching `peak`
at step `warmup`; what follows is stretched over the steps that are left. `floor` is the value that a decay tends to, as
a share of `peak`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from orderscope.errors import OrderscopeError, check_whole


def constant(steps: int, peak: float, *, warmup: int = 0) -> np.ndarray:
    """The same rate throughout.

    Args:
        steps: number of steps.
        peak: the largest rate.
        warmup: steps over which the rate rises to the peak.

    Example:
        >>> constant(4, 1.0, warmup=2)
        array([0.5, 1. , 1. , 1. ])
    """
    return _shaped(steps, peak, warmup, 1.0, lambda x: np.ones_like(x))


def linear(steps: int, peak: float, *, warmup: int = 0, floor: float = 0.0) -> np.ndarray:
    """Linear decay, peak * (1 - t / steps).

    Args:
        steps: number of steps.
        peak: the largest rate.
        warmup: steps over which the rate rises to the peak.
        floor: the last rate, as a share of the peak.

    Example:
        >>> linear(4, 1.0)
        array([1.  , 0.75, 0.5 , 0.25])
    """
    return _shaped(steps, peak, warmup, floor, lambda x: 1 - x)


def cosine(steps: int, peak: float, *, warmup: int = 0, floor: float = 0.0) -> np.ndarray:
    """Half a cosine, peak * (1 + cos(pi t / steps)) / 2.

    Args:
        steps: number of steps.
        peak: the largest rate.
        warmup: steps over which the rate rises to the peak.
        floor: the last rate, as a share of the peak.

    Source: Loshchilov and Hutter, "SGDR", 2017.

    Example:
        >>> cosine(4, 1.0).round(3)
        array([1.   , 0.854, 0.5  , 0.146])
    """
    return _shaped(steps, peak, warmup, floor, lambda x: (1 + np.cos(np.pi * x)) / 2)


def rex(steps: int, peak: float, *, warmup: int = 0, floor: float = 0.0) -> np.ndarray:
    """Reflected exponential decay, peak * (1 - x) / (1 - x / 2) with x = t / steps: above linear, falling late.

    Args:
        steps: number of steps.
        peak: the largest rate.
        warmup: steps over which the rate rises to the peak.
        floor: the last rate, as a share of the peak.

    Source: Chen, Wolfe and Kyrillidis, "REX: revisiting budgeted training with an improved schedule", 2022.

    Example:
        >>> rex(4, 1.0).round(3)
        array([1.   , 0.857, 0.667, 0.4  ])
    """
    return _shaped(steps, peak, warmup, floor, lambda x: (1 - x) / (1 - x / 2))


def stable_then_decay(
    steps: int, peak: float, *, decay: float = 0.2, warmup: int = 0, floor: float = 0.0
) -> np.ndarray:
    """Warm up, hold, and decay linearly over the last share `decay` of the steps.

    Args:
        steps: number of steps.
        peak: the largest rate.
        decay: share of the steps over which the rate falls.
        warmup: steps over which the rate rises to the peak.
        floor: the last rate, as a share of the peak.

    Source: Hu et al., "MiniCPM" (warmup-stable-decay), 2024.

    Example:
        >>> stable_then_decay(5, 1.0, decay=0.4)
        array([1. , 1. , 1. , 1. , 0.5])
    """
    _share("decay", decay)

    def shape(x: np.ndarray) -> np.ndarray:
        return np.clip((1 - x) / decay, 0.0, 1.0) if decay else np.ones_like(x)

    return _shaped(steps, peak, warmup, floor, shape)


def refined(norms: np.ndarray, peak: float, *, adam: bool = True, warmup: int = 0, smooth: float = 0.1) -> np.ndarray:
    """The linear decay refined by how large gradients were: rate_t ~ w_t * sum of w_s over the steps s > t, with
    w = 1 / norm for Adam and 1 / norm^2 for SGD; norms are first smoothed by a running median.

    Where norms do not change it is the linear decay.

    Args:
        norms: norm of the gradient at each step, [steps].
        peak: largest rate.
        adam: whether the optimizer divides by the gradients' size.
        warmup: steps over which it climbs to what the formula gives.
        smooth: window of the median, as a share of the steps.

    Source: Defazio, Cutkosky, Mehta and Mishchenko, "Optimal linear decay learning rate schedules and further
    refinements", arXiv 2310.07831.

    Example:
        >>> refined(np.ones(4), 1.0)
        array([1.        , 0.66666667, 0.33333333, 0.        ])
    """
    norms = np.asarray(norms, dtype=np.float64)
    if norms.ndim != 1 or not len(norms) or not (np.isfinite(norms) & (norms >= 0)).all():
        raise OrderscopeError(f"gradient norms of shape {list(norms.shape)}", "one finite norm a step", "change norms=")
    _share("smooth", smooth)
    half = int(smooth * len(norms) / 2)
    padded = np.pad(norms, half, mode="edge")
    median = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=1)
    weight = 1 / np.maximum(median, 1e-12 + 1e-6 * median.max()) ** (1 if adam else 2)
    shape = weight * np.append(np.cumsum(weight[::-1])[::-1][1:], 0.0)
    shape = shape / shape.max() if shape.max() > 0 else np.ones_like(shape)
    climb = _shaped(len(norms), peak, warmup, 1.0, lambda x: np.ones_like(x))
    return climb * shape


def rewarm(rates: np.ndarray, at: int, *, warmup: int = 0, peak: float | None = None) -> np.ndarray:
    """A schedule that starts again at step `at`: its own shape, squeezed into the steps that are left.

    Args:
        rates: the schedule up to `at`, and the shape of what follows, [steps].
        at: step at which it starts again.
        warmup: steps of the new climb.
        peak: largest rate of the second part; that of the first if not given.

    Example:
        >>> rewarm(linear(4, 1.0), 2)
        array([1.  , 0.75, 1.  , 0.5 ])
    """
    rates = np.asarray(rates, dtype=np.float64)
    steps = len(rates)
    if not 0 <= at < steps:
        raise OrderscopeError(f"at={at}", f"a step from 0 to {steps - 1}", "change at=")
    highest = float(rates.max())
    top = highest if peak is None else peak
    rest = steps - at

    def shape(x: np.ndarray) -> np.ndarray:
        return np.interp(x * steps, np.arange(steps), rates) / highest if highest else np.zeros_like(x)

    return np.concatenate([rates[:at], _shaped(rest, top, warmup, 0.0, shape)])


SCHEDULES: dict[str, Callable[..., np.ndarray]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "rex": rex,
    "stable_then_decay": stable_then_decay,
}


def _shaped(
    steps: int, peak: float, warmup: int, floor: float, shape: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Warm-up, then floor + (1 - floor) * shape(x) times the peak, x in [0, 1) over the other steps."""
    check_whole(1, steps=steps)
    if not (np.isfinite(peak) and peak >= 0):
        raise OrderscopeError(f"peak={peak!r}", "a finite learning rate >= 0", "change peak=")
    check_whole(0, warmup=warmup)
    if warmup >= steps:
        raise OrderscopeError(
            f"warmup={warmup!r} of {steps} steps", "a warm-up of fewer steps than the schedule has", "change warmup="
        )
    _share("floor", floor)
    climb = np.arange(1, warmup + 1) / max(1, warmup)
    left = steps - warmup
    return peak * np.concatenate([climb, floor + (1 - floor) * shape(np.arange(left) / left)])


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise OrderscopeError(f"{name}={value!r}", "a share from 0 to 1", f"change {name}=")
