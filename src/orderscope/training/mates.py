"""Does a sample's loss depend on its batch? Looked at in some steps of the reference run, the first among them.

There each batch is read and evaluated once more, a quarter of it drawn at random and then the rest: parts of unequal
size are hardly ever alike in what a loss could divide by. What divides by the batch's tokens, draws random numbers or
reads random data is different there. It costs one forward pass a step looked at.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from orderscope.task import Task
from orderscope.task.checks import check_mates
from orderscope.task.rounding import coarsest, tolerated
from orderscope.task.untouched import untouched
from orderscope.training.loop import Session

STEPS = 12  # about how many steps are looked at, evenly spaced


class Mates:
    """A watcher of the reference run, which raises where a sample has another loss without the others of its batch.

    Args:
        task: what is trained.
        session: model, optimizer and scheduler of the run.
        order: sample ids, [steps, batch].
    """

    def __init__(self, task: Task, session: Session, order: np.ndarray) -> None:
        self._task, self._session, self._order = task, session, order
        self._tolerance: float | None = None

    def gradient(self, step: int, losses: Tensor) -> None:
        ids, model = self._order[step], self._session.model
        if step % max(1, len(self._order) // STEPS):
            return
        if not bool(torch.isfinite(losses).all()):
            return  # another check refuses losses that are not finite
        others = torch.empty_like(losses)
        with untouched(model, seed=step + 1):  # other random numbers in every step
            drawn = np.random.default_rng(step).permutation(len(ids))
            quarter = max(1, len(ids) // 4)
            for part in (drawn[:quarter], drawn[quarter:]):
                if not len(part):
                    continue
                batch = self._task.batch(ids[part])
                if self._tolerance is None:
                    others[part], eps = coarsest(lambda: self._task.loss(model, batch))  # noqa: B023
                    self._tolerance = tolerated(self._session.layout.dtype, eps)
                else:
                    others[part] = self._task.loss(model, batch)
        assert self._tolerance is not None
        check_mates(losses, others, ids.tolist(), self._tolerance, f"at step {step}")

    def norm(self, step: int, value: Tensor | None) -> None:
        pass
