"""The position map, against the truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import orderscope as osc
import tasks_tiny
from law_tasks import simulated
from orderscope.sketching.gradients import set_parameters
from orderscope.studies.positions import Heat


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> osc.Simulator:
    return simulated(tasks_tiny.char(steps=12), tmp_path_factory.mktemp("positions"), anchors=4, probes=4)[0]


@pytest.fixture(scope="module")
def heat(sim: osc.Simulator) -> Heat:
    return osc.positions(sim, places=np.arange(12))


def true_loss(sim: osc.Simulator, unit: int, order: np.ndarray) -> float:
    """On a recorded batch, at the weights an order truly leads to."""
    task = sim.task
    assert task is not None
    truth = osc.retrain(task, order, keep_parameters=True)
    assert truth.parameters is not None
    model = task.build_model()
    set_parameters(model, task.layout, truth.parameters[0])
    with torch.no_grad():
        return float(task.loss(model, task.batch(sim.order[unit])).double().mean())


def moved(sim: osc.Simulator, unit: int, place: int) -> np.ndarray:
    return osc.orders.resolve(f"move:{unit},{place}", sim.order)


def test_the_diagonal_is_the_recorded_loss(sim: osc.Simulator, heat: Heat) -> None:
    np.testing.assert_array_equal(np.diagonal(heat.value), heat.recorded)
    assert (np.diagonal(heat.error) == 0).all()
    assert (np.diagonal(heat.held_out) == sim.reference["eval"]).all()
    assert heat.recorded[3] == pytest.approx(true_loss(sim, 3, sim.order), rel=1e-6)
    np.testing.assert_array_equal(heat.at, heat.units)


def test_cells_are_trusted_as_orders_are(sim: osc.Simulator, heat: Heat, monkeypatch: pytest.MonkeyPatch) -> None:
    assert heat.trusted.shape == heat.value.shape
    assert np.diagonal(heat.trusted).all()  # known
    assert heat.trusted.mean() > 0.5
    near = {name: replace(fitted, farthest=1e-9) for name, fitted in sim.calibration.items()}
    monkeypatch.setitem(sim.__dict__, "calibration", near)
    far = osc.positions(sim, [3], places=[3, 7])
    assert far.trusted.tolist() == [[True, False]]


def test_cells_rank_as_true_ones(sim: osc.Simulator, heat: Heat) -> None:
    rng = np.random.default_rng(0)
    cells = [(int(i), int(j)) for i, j in rng.integers(12, size=(24, 2)) if i != j]
    true = np.array([true_loss(sim, i, moved(sim, i, j)) for i, j in cells])
    found = np.array([heat.value[c] for c in cells])
    error = np.array([heat.error[c] for c in cells])
    own = np.array([heat.recorded[i] for i, _ in cells])
    assert spearmanr(found - own, true - own)[0] > 0.9
    assert np.mean(np.abs(found - true) <= error) > 0.8


def test_held_out_is_the_prediction(sim: osc.Simulator, heat: Heat) -> None:
    predicted = sim.predict(moved(sim, 2, 9)).metrics["eval"][0]
    spread = np.abs(heat.held_out - sim.reference["eval"]).max()
    assert abs(heat.held_out[2, 9] - predicted) < 0.3 * spread
    assert heat.metric == "eval"


def test_some_units_and_places(sim: osc.Simulator, heat: Heat) -> None:
    told: list[tuple[str, int, int]] = []
    some = osc.positions(sim, [7, 2, 7], places=[11, 0], progress=lambda *args: told.append(args))
    np.testing.assert_array_equal(some.units, [2, 7])
    np.testing.assert_array_equal(some.places, [0, 11])
    np.testing.assert_allclose(some.value, heat.value[np.ix_([2, 7], [0, 11])], rtol=1e-5)
    assert told[-1] == ("positions", 4, 4)


def test_default_places_reach_from_first_to_last(sim: osc.Simulator) -> None:
    places = osc.positions(sim, [0]).places
    assert places[0] == 0
    assert places[-1] == 11


def test_on_some_coordinates_losses_are_expanded(tmp_path: Path) -> None:
    kw = tasks_tiny.char(steps=12)
    sim, _ = simulated(kw, tmp_path, anchors=4, probes=4, coords=600)
    assert not sim.exact
    found = osc.positions(sim, [1, 5], places=[0, 11])
    true = np.array([[true_loss(sim, u, moved(sim, u, p)) for p in (0, 11)] for u in (1, 5)])
    assert np.isfinite(found.value).all()
    # Trained last rather than first a batch is remembered better; the expansion sees it too.
    assert (np.sign(found.value[:, 1] - found.value[:, 0]) == np.sign(true[:, 1] - true[:, 0])).all()


def test_without_probes_the_error_is_unknown(tmp_path: Path) -> None:
    sim, _ = simulated(tasks_tiny.classifier(steps=6), tmp_path, anchors=3, probes=0)
    found = osc.positions(sim, [1], places=[0, 1, 5])
    assert np.isinf(found.error[0, [0, 2]]).all() or np.isnan(found.error[0, [0, 2]]).all()
    assert np.isfinite(found.value).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": [12]}, r"units=\[12\]; expected steps from 0 to 11"),
        ({"units": [-1]}, r"units=\[-1\]"),
        ({"units": []}, r"units=\[\]"),
        ({"units": [0.5]}, r"units=\[0.5\]"),
        ({"units": [0], "places": [99]}, r"places=\[99\]"),
        ({"units": [0], "metric": "bleu"}, "metric 'bleu'; expected one of eval"),
    ],
)
def test_wrong_questions(sim: osc.Simulator, options: dict, message: str) -> None:
    with pytest.raises(osc.OrderscopeError, match=message):
        osc.positions(sim, **options)


def test_needs_the_task(sim: osc.Simulator) -> None:
    with pytest.raises(osc.OrderscopeError, match="without its task"):
        osc.positions(osc.Simulator(sim.path))


def test_trained_cells_are_true(sim: osc.Simulator) -> None:
    found = osc.positions(sim, [1, 5, 9], places=[0, 5, 11], verify=4)
    assert len(found.cells) == len(found.true) == len(found.true_held_out) == 4
    (i, j), own = found.cells[0], found.true[0]
    order = moved(sim, int(found.units[i]), int(found.places[j]))
    assert own == pytest.approx(true_loss(sim, int(found.units[i]), order), rel=1e-6)
    assert all(found.units[i] != found.places[j] for i, j in found.cells)
    assert len({tuple(cell) for cell in found.cells.tolist()}) == 4
    with pytest.raises(osc.OrderscopeError, match="verify=-1"):
        osc.positions(sim, verify=-1)


def test_neighbours_are_others_of_the_group(sim: osc.Simulator, heat: Heat) -> None:
    """On the diagonal it is the recorded model's loss on the other samples of the group."""
    task = sim.task
    assert task is not None
    truth = osc.retrain(task, sim.order, keep_parameters=True)
    assert truth.parameters is not None
    model = task.build_model()
    set_parameters(model, task.layout, truth.parameters[0])
    group = task.group_codes[sim.order[3][0]]
    others = [i for i in range(task.samples) if task.group_codes[i] == group and i not in sim.order[3]]
    with torch.no_grad():
        expected = float(task.loss(model, task.batch(others)).double().mean())
    assert heat.neighbours[3, 3] == pytest.approx(expected, rel=1e-4)
    # where a batch stands moves the loss on itself more than that on its neighbours
    assert np.ptp(heat.value, axis=1).mean() > np.ptp(heat.neighbours, axis=1).mean()
