"""Curvature that is nearly empty: concave losses, saturated outputs."""

import pytest
import torch

import orderscope as osc
from orderscope.engine.compress import compress
from tasks_tiny import classifier, generator


@pytest.mark.parametrize("size", [1.0, 1e-12, 1e-25, 1e-37])
def test_rows_of_any_size_keep_their_leading_directions(size):
    rows = torch.randn(60, 5, generator=generator(0)) @ torch.randn(5, 40, generator=generator(1))
    kept = compress(rows * size, 0.999999)
    assert len(kept) <= 5 + 1
    assert bool(torch.isfinite(kept).all())
    if size > 1e-30:
        torch.testing.assert_close(kept.double().T @ kept.double() / size**2, rows.double().T @ rows.double(),
                                   rtol=1e-3, atol=1e-2)  # fmt: skip


def test_no_curvature_at_all_and_a_single_row_of_it():
    assert not compress(torch.zeros(50, 30), 0.95).any()
    one = torch.zeros(50, 30)
    one[7] = torch.randn(30, generator=generator(2)) * 1e-20
    kept = compress(one, 0.95)
    assert len(kept) == 1
    torch.testing.assert_close(kept.abs(), one[7:8].abs(), rtol=1e-4, atol=0)


def test_a_concave_loss_is_recorded_and_asked(tmp_path):
    kw = classifier()
    loss = kw["loss"]
    task = osc.Task(**kw | {
        "loss": lambda m, b: -loss(m, b),
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, maximize=True),
    })  # fmt: skip
    sim = osc.Simulator(osc.record(task, tmp_path / "run", probes=2, jobs=1).path, task)
    assert sim.predict(task.order).metrics["eval"] == sim.reference["eval"]
