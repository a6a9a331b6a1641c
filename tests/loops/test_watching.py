"""What ids and moments tell of a training that goes wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import orderscope as osc
from loops_plain import make
from orderscope.loops import notices

KINDS = [osc.Recorder, osc.Watcher]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_without_the_optimizers_state(kind: Any, tmp_path: Path) -> None:
    first = make("plain")
    with kind(tmp_path / "run", first.model, first.opt) as rec:
        first.run(rec, 0, 5)
    again = make("plain")
    again.model.load_state_dict(first.model.state_dict())  # and the optimizer's is forgotten
    rec = kind(tmp_path / "run", again.model, again.opt, step=5)
    with pytest.warns(notices.ColdMomentsWarning, match=r"moments of AdamW are empty: load them too, optimizer.load"):
        again.run(rec, 5, 7)
    rec.close()
    unsaid = make("plain")  # of a loop that says no step
    unsaid.model.load_state_dict(first.model.state_dict())
    rec = kind(tmp_path / "run", unsaid.model, unsaid.opt)
    with pytest.warns(notices.ColdMomentsWarning, match="with weights that were trained already"):
        unsaid.run(rec, 0, 1)
    rec.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_with_it_and_a_start_over_are_fine(kind: Any, tmp_path: Path) -> None:
    first = make("plain")
    with kind(tmp_path / "run", first.model, first.opt) as rec:
        first.run(rec, 0, 5)
    again = make("plain")
    again.model.load_state_dict(first.model.state_dict())
    again.opt.load_state_dict(copy.deepcopy(first.opt.state_dict()))
    with kind(tmp_path / "run", again.model, again.opt) as rec:
        again.run(rec, 5)
    assert rec.said == set()
    assert rec.order.tolist() == again.order.tolist()
    afresh = make("plain")
    with (
        pytest.warns(notices.StartedOverWarning, match=r"the 10 steps .* superseded .* leave the training out"),
        kind(tmp_path / "run", afresh.model, afresh.opt) as rec,
    ):
        afresh.run(rec)
    assert rec.said == {notices.StartedOverWarning}


def ordered(order: Any, path: Path, **options: Any) -> osc.Recorder:
    """Watch a loop that trains these batches."""
    loop = make("plain")
    with osc.Watcher(path, loop.model, loop.opt, **options) as rec:
        for ids in order:
            loop.order = np.array([ids])
            loop.run(rec)
    return rec


def test_a_sample_that_comes_twice_in_the_epoch(tmp_path: Path) -> None:
    order = np.arange(40).reshape(10, 4)
    order[3, 2] = 1
    with pytest.warns(notices.RepeatedSamplesWarning, match=r"sample 1 came again at step 3, when 12 of .* 40 samples"):
        ordered(order, tmp_path / "run", samples=40)
    order[3] = [12, 13, 13, 15]
    with pytest.warns(notices.RepeatedSamplesWarning, match="sample 13 came again at step 3"):
        ordered(order, tmp_path / "within-a-batch", samples=40)


def test_epochs_that_are_shuffled_anew_are_fine_also_with_a_rest_that_is_dropped(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    epochs = [rng.permutation(38)[:36].reshape(9, 4) for _ in range(4)]
    assert ordered(np.concatenate(epochs), tmp_path / "dropped", samples=38).said == set()
    whole = np.concatenate([rng.permutation(38) for _ in range(4)])  # a batch may lie in two epochs
    assert ordered(whole.reshape(-1, 4), tmp_path / "across", samples=38).said == set()


def test_samples_that_never_come(tmp_path: Path) -> None:
    order = np.concatenate([np.arange(20).reshape(5, 4)] * 3)
    with pytest.warns(notices.RecorderWarning) as told:
        ordered(order, tmp_path / "run", samples=40)
    assert [w.category for w in told] == [notices.RepeatedSamplesWarning, notices.UnseenSamplesWarning]
    assert "20 of 40 samples never came in 1.5 epochs' worth of steps (samples 20, 21, 22, ...)" in str(told[1].message)


def test_an_epoch_gone_on_with_is_judged_by_what_was_seen_before(tmp_path: Path) -> None:
    loop = make("plain")
    with osc.Watcher(tmp_path / "run", loop.model, loop.opt, samples=40) as rec:
        loop.run(rec, 0, 5)
    state = copy.deepcopy(loop.opt.state_dict())

    def go_on(order: np.ndarray) -> osc.Recorder:
        again = make("plain")
        again.model.load_state_dict(loop.model.state_dict())
        again.opt.load_state_dict(copy.deepcopy(state))
        again.order = order
        with osc.Watcher(tmp_path / "run", again.model, again.opt, samples=40) as rec:
            again.run(rec)
        return rec

    assert go_on(loop.order[5:]).said == set()
    with pytest.warns(notices.RecorderWarning) as told:
        go_on(loop.order[:3])  # begins the epoch anew
    assert notices.OtherOrderWarning in {w.category for w in told}
    assert notices.RepeatedSamplesWarning in {w.category for w in told}


def test_a_record_that_begins_in_mid_epoch_says_nothing_of_that_epoch(tmp_path: Path) -> None:
    loop = make("plain")
    loop.run(None, 0, 5)
    order = np.concatenate([loop.order[5:], np.random.default_rng(0).permutation(40).reshape(10, 4)])
    loop.order = order
    with osc.Watcher(tmp_path / "run", loop.model, loop.opt, samples=40) as rec:
        loop.run(rec)
    assert rec.said == set()


def test_two_ranks_on_the_same_samples(tmp_path: Path) -> None:
    full = make("plain")

    def run(path: Path, parts: list[np.ndarray]) -> set[Any]:
        said = set()
        for rank in (1, 0):
            loop = make("plain")
            loop.order = parts[rank]
            with osc.Recorder(path, loop.model, loop.opt, rank=rank, world_size=2) as rec:
                loop.run(rec)
            said |= rec.said
        return said

    assert run(tmp_path / "parted", np.array_split(full.order, 2, axis=1)) == set()
    with pytest.warns(notices.SameBatchWarning, match=r"ranks 0 and 1 trained on the same samples at 10 of 10 steps"):
        run(tmp_path / "same", [full.order, full.order[:, ::-1]])


def test_a_watcher_keeps_no_states_and_says_so(tmp_path: Path) -> None:
    loop = make("plain")
    bare = make("plain")
    bare.run()
    with osc.Watcher(tmp_path / "run", loop.model, loop.opt) as rec:
        loop.run(rec)
    assert rec.order.tolist() == loop.order.tolist()
    assert not (tmp_path / "run" / "states").exists()
    for mine, theirs in zip(loop.model.parameters(), bare.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(osc.OrderscopeError, match=r"no state kept in .*osc.Watcher keeps none.*osc.Recorder"):
        rec.task(loss=loop.loss, data=loop.data)


def test_ids_outside_of_the_data_set(tmp_path: Path) -> None:
    with pytest.warns(notices.RepeatedSamplesWarning, match="sample id 39 at step 9, of 39 samples"):
        ordered(np.arange(40).reshape(10, 4), tmp_path / "run", samples=39)
