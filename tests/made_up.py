"""What a search and a position map would have left in a run, made up; names that would harm a careless page."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

import orderscope as osc
from orderscope.search.confirm import PartGain
from orderscope.search.readable import Schedule
from orderscope.search.result import Elsewhere
from orderscope.studies.heatmap import Heat
from orderscope.studies.step_map import StepErrorMap

SCRIPT = "<script>alert('é')</script>"
IMAGE = '"><img src=x onerror=alert(1)>'
DOLLARS = "$\\frac{ & $"
ESCAPE = "c\x1b[2J"


def simple() -> SimpleNamespace:
    schedule = Schedule((SCRIPT, IMAGE), np.array([[1.5, 0.5], [0.5, 1.5]]))
    return SimpleNamespace(schedule=schedule, predicted=2.82, confirmed=2.83, kept=0.75)


def proposal(task: osc.Task) -> SimpleNamespace:
    parts = [PartGain("confirming", 6, 2.86, 2.81, 0.02, 2.82, 0.04, 0.01),
             PartGain("searched", 6, 2.86, 2.80, 0.02, None, 0.06, None)]  # fmt: skip
    rows = [
        SimpleNamespace(name=IMAGE, source=SCRIPT, predicted=2.81, error=0.02, confirmed=2.82, parts=parts,
                        order=np.roll(task.order, 2, axis=0)),
        SimpleNamespace(name="sort", source="baseline", predicted=2.83, error=float("nan"), confirmed=None, parts=[],
                        order=task.order),
    ]  # fmt: skip
    return SimpleNamespace(
        order=np.roll(task.order, 2, axis=0), metric=SCRIPT, maximize=False,
        predicted=2.81, error=0.02, confirmed=2.82, reference=2.86,
        random={"mean": 2.85, "std": 0.01}, gain_sigma=np.float64(3.0), scored=100, cost=25.0, best_of_n=2.83,
        undetectable=False, verdict=f"order matters ({SCRIPT})", searched=True, refined=False, why="", effect=None,
        elsewhere=Elsewhere(0.1, 0.03),
        simple=simple(), sort=None, parts=parts, notes=[SCRIPT], table=rows, true={SCRIPT: 2.82}, front=[
            SimpleNamespace(name=IMAGE, metrics={SCRIPT: 2.81, DOLLARS: 2.9}, true={SCRIPT: 2.82, DOLLARS: 2.91}),
            SimpleNamespace(name="sort", metrics={SCRIPT: 2.83, DOLLARS: 2.8}, true={}),
        ],
    )  # fmt: skip


def heat(steps: int) -> Heat:
    at, places = np.arange(0, steps, 2), np.arange(0, steps, 3)
    value = 2.5 - 0.01 * places[None] + 0.01 * at[:, None]
    return Heat(
        units=at, places=places, at=at, value=value, error=np.full(value.shape, 0.015), recorded=value.mean(1),
        held_out=value + 0.2, neighbours=value + 0.1, metric=SCRIPT, cells=np.array([[0, 1], [1, 0]]),
        true=value[[0, 1], [1, 0]] + 0.01, true_held_out=np.array([2.8, 2.9]),
    )  # fmt: skip


def step_errors(steps: int) -> StepErrorMap:
    """Two runs whose errors come from step 1, four fifths of their squares, and from step 2."""
    effect = np.zeros((2, steps))
    effect[:, 1], effect[:, 2] = (0.002, -0.002), (-0.001, 0.001)
    share = np.full(effect.shape, 0.03)
    share[1, 4] = np.nan
    return StepErrorMap(
        SCRIPT, ("probe-0", IMAGE), ("probe-1",), share, 2 * share, share + 0.5, effect,
        error=np.array([0.002, -0.001]), weights=np.array([0.0012, -0.0011]), cost=3.0,
    )  # fmt: skip
