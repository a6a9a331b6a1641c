"""What sample ids and moments say about a training that goes wrong: it forgot its moments on resuming, goes on with
other data, shows samples twice or never, or trains two ranks on the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orderscope.loops.legs import Loop, place, read_loop
from orderscope.loops.notices import (
    ColdMomentsWarning,
    OtherOrderWarning,
    RecorderWarning,
    RepeatedSamplesWarning,
    SameBatchWarning,
    StartedOverWarning,
    UnseenSamplesWarning,
)
from orderscope.store import RunStore
from orderscope.training.state import TrainingState

Notice = tuple[type[RecorderWarning], str]
EARLY = 64  # first steps whose sample ids are kept in memory, to compare ranks


class Watch:
    """Sees the ids of every step, in their order.

    Args:
        samples: of the data set, None where that is not known: then epochs are not looked at.
        before: what was recorded there before this start of the loop.
    """

    def __init__(self, samples: int | None, before: Loop | None) -> None:
        self._samples, self._before = samples, before
        self._seen = np.zeros(samples or 0, dtype=bool)  # in this epoch
        self._ever = self._seen.copy()
        self._largest = self._trained = self._count = 0  # samples: of a step, in all, seen in this epoch
        self._blind = False  # in the midst of an epoch whose beginning is not known
        self.early: dict[int, np.ndarray] = {}

    def begin(self, first: int, fresh: bool) -> None:
        """Where the loop begins: what was recorded before that step was seen.

        Args:
            first: the step it begins at.
            fresh: whether nothing was trained before the record begins.
        """
        rows = None if self._before is None else self._before.rows
        known = [] if rows is None or self._before is None else rows.batches[: max(0, first - self._before.first)]
        self._blind = not fresh and not known
        for ids in known if self._samples is not None else []:
            self._epoch(0, ids)

    def step(self, step: int, ids: np.ndarray) -> list[Notice]:
        """Look at the samples of a step.

        Args:
            step: of the loop.
            ids: sample ids, int64 [batch].

        Returns:
            What there is to warn of.
        """
        if len(self.early) < EARLY:
            self.early[step] = np.sort(ids)
        return [*self._other_order(step, ids), *self._epoch(step, ids)]

    def end(self) -> list[Notice]:
        """The findings at the end of the loop."""
        missing = int((~self._ever).sum())
        if self._samples is None or self._trained <= self._samples + self._largest or missing <= self._largest:
            return []
        first = ", ".join(map(str, np.flatnonzero(~self._ever)[:3]))
        return [(
            UnseenSamplesWarning,
            f"{missing} of {self._samples} samples never came in {self._trained / self._samples:.2g} epochs' worth of "
            f"steps (samples {first}, ...): look at the sampler, and that every rank has its own part",
        )]  # fmt: skip

    def _other_order(self, step: int, ids: np.ndarray) -> list[Notice]:
        if self._before is None or self._before.rows is None:
            return []
        at = step - self._before.first
        if not 0 <= at < len(self._before.rows.batches) or np.array_equal(self._before.rows.batches[at], ids):
            return []
        known = self._before.rows.batches[at]
        return [(
            OtherOrderWarning,
            f"step {step} trains on other samples than before the resume ({_some(ids)} instead of {_some(known)}): "
            "give the sampler a seeded generator, and skip the batches that were trained "
            "(accelerate's skip_first_batches, a sampler with state_dict)",
        )]  # fmt: skip

    def _epoch(self, step: int, ids: np.ndarray) -> list[Notice]:
        if self._samples is None or not len(ids):
            return []
        self._largest, self._trained = max(self._largest, len(ids)), self._trained + len(ids)
        if ids.min() < 0 or ids.max() >= self._samples:
            outside = ids[(ids < 0) | (ids >= self._samples)]
            return [(RepeatedSamplesWarning, f"sample id {outside[0]} at step {step}, of {self._samples} samples: call "
                     "rec.step with indices into the data set")]  # fmt: skip
        count, again = self._count, self._seen[ids]
        self._ever[ids] = True
        self._seen[ids] = True
        if not again.any() and len(set(ids.tolist())) == len(ids):
            self._count += len(ids)
            return []
        if self._blind or self._samples - count <= self._largest:  # an epoch ended: the rest may have been dropped
            self._blind = False
            self._seen[:] = False
            self._seen[ids[again]] = True
            self._count = int(self._seen[np.unique(ids)].sum())
            return []
        self._count += len(np.unique(ids[~again]))
        values, times = np.unique(ids, return_counts=True)
        twice = ids[again][0] if again.any() else values[times > 1][0]
        return [(
            RepeatedSamplesWarning,
            f"sample {twice} came again at step {step}, when {count} of the epoch's {self._samples} samples had been "
            "seen: a sampler with replacement, a data set that holds it twice, or a restarted epoch (then skip what "
            "was trained before the resume)",
        )]  # fmt: skip


def started_over(path: Path, before: Loop | None, first: int) -> list[Notice]:
    """Whether a finished loop starts again from its beginning, which replaces its recording.

    Args:
        path: of the run, for the message.
        before: what was recorded of the loop, None for nothing.
        first: the step it begins at.
    """
    if before is None or before.rows is None or before.legs[-1].end is None or first > before.first:
        return []
    return [(
        StartedOverWarning,
        f"the {len(before.rows)} steps recorded there before are superseded by this training; to go on from them leave "
        f"the training out: osc.recorded({str(path)!r}).task(...); to keep them too give another path",
    )]  # fmt: skip


def cold_moments(
    optimizer: torch.optim.Optimizer, state: TrainingState, *, step: int | None, moved: bool
) -> list[Notice]:
    """Whether a loop that is under way starts with an optimizer that knows nothing of it.

    Args:
        optimizer: the loop's.
        state: at the start.
        step: steps trained before, as far as anybody said.
        moved: whether the weights are others than at the start of the run.
    """
    momentum = not isinstance(optimizer, torch.optim.SGD) or any(g.get("momentum") for g in optimizer.param_groups)
    empty = not bool(state.present.any()) or not any(bool(m.any()) for m in state.moments.values())
    if not (momentum and empty and (moved or step)):
        return []
    where = f"at step {step}" if step else "with weights that were trained already"
    return [(
        ColdMomentsWarning,
        f"training resumes {where}, but the moments of {type(optimizer).__name__} are empty: load them too, "
        'optimizer.load_state_dict(checkpoint["optimizer"])',
    )]  # fmt: skip


def same_batches(path: Path, rank: int, mine: dict[int, np.ndarray]) -> list[Notice]:
    """Whether another rank, as far as it is on disk, trained a step on the same samples.

    Args:
        path: of rank 0's run.
        rank: of this process.
        mine: step -> sorted ids of this rank.
    """
    other = 0 if rank else 1
    loop = read_loop(RunStore.open(place(path, other)))
    theirs: Sequence[Any] = [] if loop.rows is None else loop.rows.batches
    pairs = [(s, ids, theirs[s - loop.first]) for s, ids in mine.items() if 0 <= s - loop.first < len(theirs)]
    same = [step for step, ids, others in pairs if len(ids) and np.array_equal(np.sort(others), ids)]
    if not same:
        return []
    return [(
        SameBatchWarning,
        f"ranks {min(rank, other)} and {max(rank, other)} trained on the same samples at {len(same)} of "
        f"{len(mine)} steps, first at step {same[0]}: give the loader a DistributedSampler, or let accelerate prepare "
        "it",
    )]  # fmt: skip


def _some(ids: np.ndarray) -> str:
    return ", ".join(map(str, ids[:4].tolist())) + (", ..." if len(ids) > 4 else "")
