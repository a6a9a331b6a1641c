"""Simple forms of a proposed order: the nearest schedule of groups and the nearest sort, and how much gain they
keep."""

from __future__ import annotations

import math

import numpy as np

from orderscope.search.readable import nearest_schedule, nearest_sort
from orderscope.search.rows import REFERENCE_ROW, Row, Simple, Sorted
from orderscope.search.setting import Setting
from orderscope.search.step_signals import gradient_norms
from orderscope.search.work import Work

OF_SAMPLES = (
    "loss", "length", "compression_ratio", "lexical_diversity", "readability", "learnability", "weak_minus_strong",
    "unsureness", "difficulty", "concentration",
)  # fmt: skip


def scheduled(work: Work, setting: Setting, best: Row, train: bool) -> Simple | None:
    """The schedule of groups nearest to the best order; None if there is one group only, or the best is the reference.

    Args:
        work: the state of the search.
        setting: the setting of its first portfolio.
        best: the order.
        train: whether the schedule may be trained.
    """
    sim = work.sim
    codes, names = sim.window.group_codes, sim.description["group_names"]
    schedule = nearest_schedule(best.order, codes, names)
    if best.name == REFERENCE_ROW or schedule is None:
        return None
    used_codes = np.searchsorted(np.unique(codes[sim.order]), codes)
    pure = bool(((sim.window.fractions > 0).sum(1) == 1).all())
    regroup = not pure and setting.steps_of(best.order) is None
    if not regroup and not pure:
        return None  # batches that mix groups and stay whole have no shares to schedule
    order = schedule.order(sim.order, used_codes if regroup else used_codes[sim.order[:, 0]], regroup=regroup)
    return Simple(*_played(work, best, order, train), schedule=schedule)


def sorted_alike(work: Work, setting: Setting, best: Row, train: bool) -> Sorted | None:
    """The sort by a recorded signal that is closest to the best order; None if no sort is close.

    Args:
        work: the state of the search.
        setting: the setting of its first portfolio.
        best: the order.
        train: whether the sort may be trained.
    """
    if best.name == REFERENCE_ROW:
        return None
    steps = setting.steps_of(best.order)
    signals = sample_signals(setting)
    if steps is None:
        flat, ids = setting.order.reshape(-1, 1), best.order.reshape(-1)
        items = {name: values[flat[:, 0]] for name, values in signals.items()}
        along = {name: values[ids] for name, values in signals.items()}
        positions = np.repeat(np.arange(setting.steps), setting.order.shape[1])
    else:
        flat, positions = setting.order, np.arange(setting.steps)
        items = {name: values[flat].mean(1) for name, values in signals.items()} | step_signals(setting)
        along = {name: values[steps] for name, values in items.items()}
    by = nearest_sort(along, positions)
    if by is None:
        return None
    places = np.argsort(-items[by.signal] if by.falling else items[by.signal], kind="stable")
    return Sorted(*_played(work, best, flat[places].reshape(setting.order.shape), train), by=by)


def sample_signals(setting: Setting) -> dict[str, np.ndarray]:
    """Name -> one number per sample, [samples], for the signals that this task has."""
    signals = {name.replace("_", " "): getattr(setting.samples, name)() for name in OF_SAMPLES}
    return {name: values for name, values in signals.items() if values is not None}


def step_signals(setting: Setting) -> dict[str, np.ndarray]:
    """Name -> one number per recorded step, [steps]."""
    signals = {"gradient norm": gradient_norms(setting.sim.window)}
    return signals if setting.influence is None else signals | {"influence": setting.influence}


def _played(work: Work, best: Row, order: np.ndarray, train: bool) -> tuple[np.ndarray, float, float, float | None]:
    """A simple form's order after repair to meet the constraints, its predicted metric, the share of the best order's
    gain that it keeps, and its true metric."""
    sim, objective = work.sim, work.request.objective
    if work.request.rules is not None:
        order = work.request.rules.repaired(order[None])[0]
    prediction = sim.predict(order, metrics=list(objective.names), allow_other_samples=True)
    value, reference = float(objective.reported(prediction.metrics)[0]), float(objective.reported(sim.reference))
    if train:
        work.confirm([order], quiet=True)
    trained = work.true.get(order.tobytes())
    true = None if trained is None else float(objective.reported(trained.metrics))
    form, full = (value, best.predicted) if true is None or best.confirmed is None else (true, best.confirmed)
    gain = objective.sign * (reference - full)
    return order, value, objective.sign * (reference - form) / gain if gain > 0 else math.nan, true
