"""Candidates that the proxy scores before some are trained, where it errs less than the carried replay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import orderscope as osc
import tasks_tiny
from law_tasks import simulated
from orderscope.baselines.proxy import few_of
from orderscope.search import screening
from orderscope.search.screening import combined
from orderscope.search.strategy import Scores
from orderscope.simulation.effort import ProxyEstimator, proxy_errs_less, why_inaccurate
from searching import propose


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> osc.Simulator:
    return simulated(tasks_tiny.char(steps=12), tmp_path_factory.mktemp("screened"), anchors=3, probes=5)[0]


def test_short_runs_that_are_predicted_well_are_not_screened(
    sim: osc.Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert why_inaccurate(sim, ["eval"]) is None
    monkeypatch.setattr(screening, "ProxyEstimator", None)  # is not even made
    found = propose(sim, budget=60, verify=2, seconds=30)
    assert not any("of each batch to choose" in note for note in found.notes)


def test_nothing_is_screened_by_a_proxy_that_errs_more(sim: osc.Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening, "why_inaccurate", lambda *args: "in a run of 12 steps")
    assert not proxy_errs_less(sim, ProxyEstimator(sim, None), ["eval"], sim.calibration)
    found = propose(sim, budget=60, verify=2, seconds=30)
    assert not any("of each batch to choose" in note for note in found.notes)


def test_what_both_estimates_say_is_best_is_trained(
    sim: osc.Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: dict[bytes, float] = {}
    seen: list[dict[bytes, float]] = []
    original = screening.screened

    def kept(*args):
        seen.append(original(*args))
        return seen[-1]

    monkeypatch.setattr(screening, "why_inaccurate", lambda *args: "in a run of 12 steps")
    monkeypatch.setattr(screening, "ProxyEstimator", lambda sim, effort: ProxyEstimator(sim, 0.5))
    monkeypatch.setattr(screening, "proxy_errs_less", lambda *args: True)
    monkeypatch.setattr("orderscope.search.rounds.screened", kept)
    found = propose(sim, budget=60, verify=2, seconds=30, searched=1.0)
    scored = seen[0]
    assert 3 < len(scored) <= screening.POOL
    assert any(f"{len(scored)} candidates were trained on" in note for note in found.notes)
    confirmed = {row.order.tobytes() for row in found.table if row.confirmed is not None}
    assert min(scored, key=scored.__getitem__) in confirmed
    # Those are the means of both estimates, by precision; with effort 1/2 the proxies are trainings on half of a batch.
    order = np.frombuffer(min(scored, key=scored.__getitem__), dtype=sim.order.dtype).reshape(sim.order.shape)
    proxy, carried = ProxyEstimator(sim, 0.5), sim.predict(order[None], metrics=["eval"])
    (value,), (error,) = (part["eval"] for part in proxy(order[None], ("eval",), None))
    assert sim.task is not None
    ranks = np.random.default_rng(sim.plan.seed).permutation(sim.description["samples"])
    half = osc.retrain(
        osc.Task(**tasks_tiny.char(steps=12) | {"order": few_of(sim.order, sim.order.shape[1] // 2, ranks)}),
        few_of(np.stack([sim.order, order]), sim.order.shape[1] // 2, ranks),
        allow_other_samples=True,  # an order that regroups has other few samples
    )
    rows = np.asarray(half.losses["eval"], dtype=np.float64)
    width = (rows[1] - rows[0]).std(ddof=1) / np.sqrt(len(rows[0]))
    both = combined(
        Scores(carried.metrics["eval"], carried.error["eval"], np.zeros(1)),
        Scores(np.array([value]), np.array([error]), np.array([width])),
    )
    assert scored[order.tobytes()] == pytest.approx(both.bound[0], rel=1e-4)


def test_estimates_are_combined_by_precision() -> None:
    one = Scores(np.array([1.0, 1.0, -5.0]), np.array([0.1, 0.1, np.inf]), np.zeros(3))
    other = Scores(np.array([2.0, 2.0, 2.0]), np.array([0.1, 0.2, 0.2]), np.full(3, 0.01))
    both = combined(one, other)
    assert both.value == pytest.approx([1.5, 1.2, 2.0])
    assert both.error == pytest.approx([0.1 / np.sqrt(2), 0.2 / np.sqrt(5), 0.2])
    assert both.spread == pytest.approx(0.01)
