"""Errors of left-out predictions step by step, as `orderscope.studies.step_errors` finds them and as they are kept."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from orderscope.errors import OrderscopeError
from orderscope.studies.agreement import correlation

SEGMENTS = 10
TABLES, COLUMNS = ("gradient", "interpolation", "cosine", "effect"), ("error", "weights")


@dataclass(frozen=True)
class Segment:
    """Some steps of the window, over all left-out runs.

    Args:
        start, stop: the first step, and the first of the next segment.
        gradient: median error of the predicted gradients, as a share of the gradients' norm.
        interpolation: the same of what interpolation between anchors alone would predict.
        cosine: median cosine of the curvature's correction with what interpolation misses.
        effect: root mean square over runs of what the segment's errors do to the metric.
        mean: their mean over runs, with its sign.
        share: the mean square as a share of the sum of those of all segments.
    """

    start: int
    stop: int
    gradient: float
    interpolation: float
    cosine: float
    effect: float
    mean: float
    share: float


@dataclass(frozen=True)
class StepErrorMap:
    """Where left-out predictions go wrong: one row a run, one column a step.

    A step is not a number where the run trained on a batch that was not recorded.

    Args:
        metric: the held-out loss that effects are on.
        runs: names of the true runs, each predicted without its own states.
        without: names of those that trained on no recorded batch: of regrouped samples no gradients are kept.
        gradient: norm of the predicted gradient's error over the gradient's, [runs, steps].
        interpolation: the same of the interpolation alone, [runs, steps].
        cosine: of the curvature's correction with what interpolation misses, [runs, steps]; also not a number where
            there is no correction, as in a state that another run was in too.
        effect: what the error does to the final metric, in its units, [runs, steps]; only roughly, with second
            moments held fixed, of a run with batches that were not recorded and under NAdam; see `agreement`.
        error: predicted minus true metric of each run, before calibration, [runs].
        weights: the part of it that is due to the predicted final weights, [runs]: what `effect` adds up to, nearly.
            The rest is of telling the metric at these weights without the run's own end.
        cost: trainings that it took to find them; not a number where it is not known what a training costs.
    """

    metric: str
    runs: tuple[str, ...]
    without: tuple[str, ...]
    gradient: np.ndarray
    interpolation: np.ndarray
    cosine: np.ndarray
    effect: np.ndarray
    error: np.ndarray
    weights: np.ndarray
    cost: float = math.nan

    @property
    def steps(self) -> int:
        return self.effect.shape[1]

    @cached_property
    def total(self) -> np.ndarray:
        """Sum of the effects of all steps, [runs]."""
        return np.nansum(self.effect, axis=1)

    @property
    def agreement(self) -> float:
        """Correlation of `total` with `weights` over the runs; not a number for fewer than three."""
        return correlation(self.total, self.weights) if len(self.runs) > 2 else math.nan

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The window in ten parts of about as many steps, or as many as it has steps."""
        if not self.runs:
            return ()
        cuts = np.linspace(0, self.steps, min(SEGMENTS, self.steps) + 1).round().astype(int).tolist()
        sums = np.stack(
            [np.nansum(self.effect[:, a:b], axis=1) for a, b in zip(cuts[:-1], cuts[1:], strict=True)], axis=1
        )
        squares = np.square(sums).mean(axis=0)
        whole = float(squares.sum())
        return tuple(
            Segment(
                start=a,
                stop=b,
                gradient=_median(self.gradient[:, a:b]),
                interpolation=_median(self.interpolation[:, a:b]),
                cosine=_median(self.cosine[:, a:b]),
                effect=float(np.sqrt(squares[i])),
                mean=float(sums[:, i].mean()),
                share=float(squares[i]) / whole if whole > 0 else math.nan,
            )
            for i, (a, b) in enumerate(zip(cuts[:-1], cuts[1:], strict=True))
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything but names and cost."""
        return {name: np.asarray(getattr(self, name), dtype=np.float64) for name in (*TABLES, *COLUMNS)}


def rms(values: np.ndarray) -> float:
    """Root mean square of [n]; not a number of none."""
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else math.nan


def held_out_loss(description: Mapping[str, Any], metric: str | None) -> str:
    """The held-out loss of that name, or the task's first.

    Args:
        description: of the recorded task.
        metric: its name; None for the first.

    Raises:
        OrderscopeError: it is none.
    """
    losses = [name for name in description["metric_names"] if description["metrics"].get(name) is not None]
    if metric is None and losses:
        return losses[0]
    if metric is None or metric not in losses:
        raise OrderscopeError(
            "a run without held-out losses" if metric is None else f"metric {metric!r}",
            f"a held-out loss, one of {', '.join(losses)}" if losses else "a held-out loss, whose gradients are known",
            "name one of those" if losses else "record a task with a data set among its metrics=",
        )
    return metric


def _median(values: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of none
        return float(np.nanmedian(values))
