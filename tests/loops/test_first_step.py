"""What a recorder says before the training, or at its first step: one line, with the line to change."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import loops_plain
import orderscope as osc
from loops_plain import make
from orderscope.loops import notices

DATA = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))


class Functional(nn.Module):
    """Dropout that is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.layer(x), 0.3, self.training)


class Rows(nn.Module):
    """A model that torch.func cannot map over samples: its output's shape depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.layer(x)
        return out.index_put((torch.nonzero(x[:, 0] > 0)[:, 0],), torch.zeros(2))


def steps(model: nn.Module, path: Path, count: int = 2, **options: Any) -> osc.Recorder:
    """Train on the sum of squares of what the model returns."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with osc.Recorder(path, model, optimizer, **options) as rec:
        for t in range(count):
            ids = torch.arange(4 * t, 4 * t + 4)
            output = model(DATA[ids])
            (output[0] if isinstance(output, tuple) else output).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            rec.step(ids)
    return rec


SAID: dict[str, tuple[Callable[[], nn.Module], type[notices.RecorderWarning], str]] = {
    "dropout": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.2)),
        notices.ChanceWarning,
        r"active dropout of 0\.2 in '1': .* add osc\.no_dropout\(model\)",
    ),
    "functional dropout": (Functional, notices.ChanceWarning, "random numbers in the forward pass.*osc.no_dropout"),
    "batch statistics": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)),
        notices.BatchStatisticsWarning,
        r"batch statistics in '1'.*call \.eval\(\) on these layers in every epoch",
    ),
    "recurrent": (lambda: nn.GRU(3, 2), notices.SlowPathWarning, r"one after the other \(GRU in the model\)"),
    "not mapped": (Rows, notices.SlowPathWarning, r"one after the other \(vmap: .*recording takes some times as long"),
}


@pytest.mark.parametrize("name", SAID)
def test_it_is_said_once_in_one_line_and_nothing_else_changes(name: str, tmp_path: Path) -> None:
    build, kind, text = SAID[name]
    torch.manual_seed(0)
    bare, watched = build(), build()
    watched.load_state_dict(bare.state_dict())
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        steps(bare, tmp_path / "bare", check=False)
    torch.manual_seed(1)
    with pytest.warns(notices.RecorderWarning) as told:
        rec = steps(watched, tmp_path / "run")
    assert [w.category for w in told] == [kind]
    assert re.search(text, str(told[0].message))
    assert "\n" not in str(told[0].message)
    assert rec.said == {kind}
    for mine, theirs in zip(watched.state_dict().values(), bare.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.2)).eval(),
        lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval(),
        lambda: osc.no_dropout(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.2))),
        lambda: nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.GELU()),
    ],
)
def test_of_a_sound_model_nothing_is_said(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    assert steps(build(), tmp_path / "run").said == set()  # warnings are errors here


def test_strict_stops_the_training_at_its_first_step(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.2))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(osc.OrderscopeError, match="active dropout"):
        steps(model, tmp_path / "run", strict=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_hooks_of_the_model_are_not_called_more_often(tmp_path: Path) -> None:
    calls = []
    model = nn.Linear(3, 2)
    model.register_forward_hook(lambda *_: calls.append(1))
    steps(model, tmp_path / "run")
    assert len(calls) == 2


def parts(loop: loops_plain.Loop, **changes: Any) -> dict[str, Any]:
    return {"model": loop.build, "loss": loop.loss, "data": loop.data, "max_grad_norm": loop.clip,
            "metrics": {"eval": loop.data}, "groups": ["a"] * len(loop.data)} | changes  # fmt: skip


WRONG: dict[str, tuple[str, Callable[[loops_plain.Loop], dict[str, Any]], type[notices.RecorderWarning], str]] = {
    "another loss": (
        "plain", lambda loop: {"loss": lambda m, b: loop.loss(m, b) ** 2}, notices.TaskWarning,
        r"not what the loop does at its first step: its gradient has norm .* in another direction",
    ),
    "shifted ids": (
        "plain", lambda loop: {"data": [loop.data[(i + 1) % 40] for i in range(40)]}, notices.TaskWarning,
        "compare loss=, data=",
    ),
    "no clipping": (
        "clipped", lambda loop: {"max_grad_norm": None}, notices.TaskWarning,
        r"it seems to clip, at 0\.1: pass max_grad_norm=0\.1",
    ),
    "a loss of the batch": (
        "plain", lambda loop: {"loss": lambda m, b: loop.loss(m, b).mean()}, notices.TaskWarning,
        r"found a loss of shape \[\].*one value per sample",
    ),
    "a fault": ("plain", lambda loop: {"loss": lambda m, b: m.nothing}, notices.TaskWarning, "fails at the first step"),
    "no groups": ("plain", lambda loop: {"groups": None}, notices.NoGroupsWarning, r"pass groups=\[label of sample 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_task_given_before_the_training_is_compared_at_its_first_step(name: str, tmp_path: Path) -> None:
    which, change, kind, text = WRONG[name]
    loop = make(which)
    given = parts(loop, **change(loop))
    with (
        pytest.warns(kind, match=text),
        osc.Recorder(tmp_path / "run", loop.model, loop.opt, task=given) as rec,
    ):
        loop.run(rec)


@pytest.mark.parametrize("name", ["plain", "clipped", "accumulated", "groups"])
def test_a_task_that_is_the_loop_is_taken_in_silence_and_need_not_be_given_again(name: str, tmp_path: Path) -> None:
    loop = make(name)
    bare = make(name)
    bare.run()
    with osc.Recorder(tmp_path / "run", loop.model, loop.opt, task=parts(loop)) as rec:
        loop.run(rec)
    assert rec.said == set()
    for mine, theirs in zip(loop.model.parameters(), bare.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    osc.record(rec.task(), tmp_path / "run", probes=0, sketch=False)


def test_a_finished_run_says_how_to_start_afresh_or_go_on(tmp_path: Path) -> None:
    loop = make("plain")
    with osc.Recorder(tmp_path / "run", loop.model, loop.opt) as rec:
        loop.run(rec)
    osc.record(rec.task(loss=loop.loss, data=loop.data), tmp_path / "run", probes=0, sketch=False)
    text = r"recorded and probed already; .* to start afresh delete it \(rm -r .*run\) .* to go on with it"
    with pytest.raises(osc.OrderscopeError, match=text):
        osc.Recorder(tmp_path / "run", loop.model, loop.opt)
    with pytest.raises(osc.OrderscopeError, match=text):
        osc.LightningRecorder(tmp_path / "run")  # not only when its training begins


def test_a_loader_with_a_short_last_batch() -> None:
    loader = torch.utils.data.DataLoader([torch.tensor(float(i)) for i in range(10)], batch_size=4)
    with pytest.warns(notices.UnevenStepsWarning, match=r"2 samples, the others 4: .* drop_last=True"):
        osc.with_ids(loader)


def test_a_loop_whose_task_was_refused_is_recorded_anew(tmp_path: Path) -> None:
    """Not "recorded and probed already": nothing was trained from that task."""
    loop = make("plain")
    with osc.Recorder(tmp_path / "run", loop.model, loop.opt) as rec:
        loop.run(rec)
    wrong = rec.task(loss=lambda model, batch: 3 * loop.loss(model, batch) ** 2, data=loop.data, scaling=None)
    with pytest.raises(osc.OrderscopeError):
        osc.record(wrong, tmp_path / "run", probes=0, sketch=False)
    again = make("plain")
    with osc.Recorder(tmp_path / "run", again.model, again.opt) as rec:
        again.run(rec)
    osc.record(rec.task(loss=again.loss, data=again.data), tmp_path / "run", probes=0, sketch=False)
