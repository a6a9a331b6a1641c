"""The parts of a page: words, strips, figures, and what is kept in a run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import orderscope as osc
from made_up import IMAGE, SCRIPT, heat, proposal
from orderscope.answers.asked import asked_orders, remember_orders, resolve_order
from orderscope.answers.effect import Effect, effects
from orderscope.answers.stored import heats, keep_heat, keep_proposal, proposals
from orderscope.report.figure import COLORS, drawing
from orderscope.report.predicted import Pairs
from orderscope.report.strip import legend, strip
from orderscope.report.words import count, figures, listed, plain, short, signed, two
from orderscope.simulation.verdict import held_out_noise


def test_numbers() -> None:
    assert figures(2.51298, 0.0062) == ("2.5130", "±0.0062")
    assert figures(2.51298, 12.0) == ("3", "±12")
    assert figures(0.5, 0.0) == ("0.5", "±0")
    assert figures(2.51298, math.nan) == ("2.513", "none")
    assert signed(-0.00421, 0.0013) == "−0.0042"
    assert signed(0.5, math.nan) == "+0.5"
    assert [two(x) for x in (0.0089, 0.314, 12.3, 0.0, 3e-7, math.nan)] == [
        "0.0089",
        "0.31",
        "12",
        "0",
        "3.0e-07",
        "unknown",
    ]
    assert (count(1, "run"), count(1200, "run")) == ("1 run", "1,200 runs")
    assert [listed(list("abc")[:n]) for n in range(4)] == ["none", "a", "a and b", "a, b and c"]


def test_names() -> None:
    assert plain("ok é\t\x1b[31m‮") == "ok é\\t\\x1b[31m\\u202e"
    assert short("a" * 100, 9) == "aaaa…aaaa"


def test_strips_escape_and_join_equal_steps() -> None:
    names, codes = [IMAGE, "b"], np.array([0, 0, 0, 0, 1, 1])
    drawn = strip(np.arange(6).reshape(3, 2), codes, names, SCRIPT)
    assert drawn.count("<rect") == 2
    assert "steps 0 to 1" in drawn
    assert "<img" not in drawn + legend(names)
    assert "<script" not in drawn
    assert strip(np.zeros((2, 1), int), codes, ["a"], "x") == legend(["a"]) == ""
    assert "3 more groups" in legend([str(i) for i in range(10)])


def test_mixed_steps_are_drawn_in_shares() -> None:
    drawn = strip(np.array([[0, 1, 2, 3]]), np.array([0, 0, 0, 1]), ["a", "b"], "x")
    assert 'height="0.75" class="g0"><title>a 75 %, step 0' in drawn
    assert 'y="0.75" width="1" height="0.25" class="g1"' in drawn
    long = strip(np.arange(4000).reshape(2000, 2), np.arange(4000) % 2, ["a", "b"], "x")
    assert long.count("<rect") == 2


def test_a_drawing_takes_its_colours_from_the_page() -> None:
    def draw(figure, narrow):
        figure.subplots().plot([0, 1], [0, 1], color=COLORS["s3"], label="x")

    drawn = drawing("x", '"label"', draw, 2.0)
    assert drawn.count("<svg") == 2
    assert "var(--s3)" in drawn
    assert not any(word in drawn for word in ("#0101", "xmlns", "metadata", "DejaVu", "http"))
    assert drawn == drawing("x", '"label"', draw, 2.0)


def test_agreement() -> None:
    true = np.array([1.0, 2.0, 3.0, 4.0])
    found = Pairs("unseen", true + np.array([0.1, -0.1, 0.1, 0.9]), np.full(4, 0.5), true).agreement
    assert found["coverage"] == 0.75
    assert found["mae_ratio"] == pytest.approx(0.3)
    assert found["pearson"] > 0.9
    few = Pairs("probes", true[:1], np.full(1, np.nan), true[:1]).agreement
    assert all(math.isnan(few[name]) for name in ("pearson", "mae_ratio", "coverage"))
    two = Pairs("probes", true[:2], np.full(2, 0.1), true[:2]).agreement
    assert math.isnan(two["pearson"])  # a line goes through any two points
    assert two["coverage"] == 1.0


def test_noise_of_held_out_rows_is_the_paired_standard_error(bare_run: Path, hostile: osc.Task) -> None:
    """Against the same number from models trained anew."""
    sim = osc.Simulator(bare_run)
    truth = osc.retrain(hostile, np.concatenate([hostile.order[None], sim.probe_orders]))
    losses = truth.losses[SCRIPT].astype(np.float64)
    errors = [np.std(row - losses[0], ddof=1) / np.sqrt(len(row)) for row in losses[1:]]
    assert held_out_noise(sim, SCRIPT)[0] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-6)
    (effect,) = effects(sim, [SCRIPT])
    assert (effect.runs, effect.sigma, effect.noise) == (4, sim.sigma_order(SCRIPT), effect.held_out)
    assert math.isnan(effect.floor)


def test_a_measured_floor_stands_beside_it(full_run: Path) -> None:
    (effect,) = effects(osc.Simulator(full_run), [SCRIPT])
    assert effect.floor == 1e-5
    assert effect.noise == effect.held_out > effect.floor


@pytest.mark.parametrize(
    ("sigma", "floor", "held_out", "verdict"),
    [
        (1.0, 0.1, 0.4, "order matters"),
        (1.0, math.nan, 0.4, "order matters"),
        (1.0, 0.0, math.nan, "order matters"),
        (1.0, 0.1, 0.6, "on these rows"),
        (1.0, 0.6, 0.1, "on these rows"),
        (1.0, 1.4, 0.1, "nothing to look for"),
        (1.0, math.nan, 1.4, "nothing to look for"),
        (1.0, math.nan, math.nan, "unknown"),
    ],
)
def test_verdicts(sigma: float, floor: float, held_out: float, verdict: str) -> None:
    assert Effect("eval", 2.0, sigma, 5, floor, held_out).verdict == verdict
    assert Effect("eval", 2.0, math.nan, 1, floor, held_out).verdict == "unknown"


def test_orders_asked_about_are_remembered_once(bare_run: Path, hostile: osc.Task) -> None:
    sim = osc.Simulator(bare_run)
    for texts in (["reverse"], ["reverse", "swap:0,1"]):
        remember_orders(bare_run, texts)
    assert asked_orders(osc.RunStore.open(bare_run)) == ["reverse", "swap:0,1"]
    assert (resolve_order(sim, "reverse") == hostile.order[::-1]).all()
    assert (resolve_order(sim, f"late:{IMAGE}")[-1] < 4 * hostile.steps).all()
    by_loss = resolve_order(sim, "sort:loss")
    assert not (by_loss == hostile.order).all()
    remember_orders(bare_run / "nothing-here", ["reverse"])
    assert not (bare_run / "nothing-here").exists()


def test_kept_answers_come_back(bare_run: Path, hostile: osc.Task, tmp_path: Path) -> None:
    with osc.RunStore.create(tmp_path / "run") as store:
        assert [keep_proposal(store, proposal(hostile)) for _ in range(2)] == ["proposal/000", "proposal/001"]
        keep_heat(store, heat(hostile.steps))
    store = osc.RunStore.open(tmp_path / "run")
    kept = proposals(store)[-1]
    assert (kept.order == proposal(hostile).order).all()
    assert (kept.facts["confirmed"], kept.table[1]["error"], kept.facts["gain_sigma"]) == (2.82, None, 3.0)
    assert (heats(store)[0].value == heat(hostile.steps).value).all()
